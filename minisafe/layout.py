"""How the layers of one forward hold a block of tokens. Here: as it was given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minisafe.cache import Placement
from minisafe.lora import Applied


@dataclass(frozen=True)
class Layout:
    """A block of (B, T) tokens, padding and all.

    Only attention needs tokens by row and position. Everything else treats each token by itself, so
    another layout may give the layers other rows (`minisafe.fast.packing` leaves out the padding).
    """

    place: Placement

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> as the layers have it."""
        return x

    def spread(self, x: Tensor) -> Tensor:
        """As the layers have it -> (B, T, ...)"""
        return x

    def last(self, x: Tensor) -> Tensor:
        """Of each row the last real token, or any where it has none -> (B, 1, ...)"""
        if self.place.width == 1:
            return x
        last = torch.tensor([max(count - 1, 0) for count in self.place.counts], device=x.device)
        return x[torch.arange(len(last), device=x.device), last].unsqueeze(1)

    def cell(self, row: int, column: int) -> tuple[int, int]:
        """Where the layers have the token in this row and column of the block."""
        return row, column

    def adapters(self, adapters: tuple[Applied, ...]) -> tuple[Applied, ...]:
        """Adapters on rows of the block -> the same on rows as the layers have them."""
        return adapters
