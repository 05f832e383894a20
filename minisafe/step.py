"""What all layers of one forward share, made once per forward."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from minisafe.cache import KVCache, Placement
from minisafe.lora import AdaptedRows
from minisafe.slots import BoundSlots

Window = int | None  # how many tokens a query sees, itself included; None: itself and all before


@dataclass(frozen=True)
class Step:
    """One forward's positions, rotations, masks, slots, adapters and cache.

    B rows, T tokens per row in this forward, n tokens per row in the cache after it.
    """

    place: Placement
    cos: Tensor  # (B or 1, T, 1, head_dim)
    sin: Tensor  # the same, the first half negative
    masks: dict[Window, Tensor]  # see `make_masks`
    slots: BoundSlots
    adapters: tuple[AdaptedRows, ...] = ()
    cache: KVCache | None = None

    def last(self, x: Tensor) -> Tensor:
        """Each row's last real token, or any token if it has none: (B, T, ...) -> (B, 1, ...)"""
        if self.place.width == 1:
            return x
        last = torch.tensor([max(count - 1, 0) for count in self.place.counts], device=x.device)
        return x[torch.arange(len(last), device=x.device), last].unsqueeze(1)


def positions_of(place: Placement, n: int, device: torch.device) -> Tensor:
    """Absolute positions of a block's tokens: (B, T), or (1, T) if all rows have the same."""
    starts = torch.tensor(place.starts[:1] if place.uniform else place.starts, device=device)
    positions = starts[:, None] + torch.arange(place.width, device=device)
    return positions.clamp_(max=n - 1)  # padding may run past the last column


def make_masks(
    windows: Iterable[Window], positions: Tensor, n: int, dtype: torch.dtype
) -> dict[Window, Tensor]:
    """Per window, a mask (B or 1, 1, T, n): 0 for a column that a query sees, else -inf. Built once
    per forward instead of once per layer."""
    columns = torch.arange(n, device=positions.device)
    masks: dict[Window, Tensor] = {}
    for window in set(windows):
        seen = columns <= positions[..., None]  # (B or 1, T, n)
        if window is not None:
            seen &= columns > positions[..., None] - window
        masks[window] = additive(seen.unsqueeze(1), dtype)
    return masks


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `seen`, else -inf: what attention adds to its scores."""
    return torch.zeros((), dtype=dtype, device=seen.device).where(seen, -torch.inf)
