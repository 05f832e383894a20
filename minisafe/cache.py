"""One key-value cache for all layers: preallocated, per-row lengths, rewindable, growable.

This one has a single way to write; `minisafe.fast` has one with quicker writes. The smaller dtypes
in which keys and values may be stored are in `cache_dtype`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from minisafe.cache_dtype import bytes_per_token, parts, rounded, stored_dtype, widened
from minisafe.config import LlamaConfig
from minisafe.errors import OutOfMemory, PromptError


@dataclass(frozen=True)
class Placement:
    """Where one forward's block of (B, T) tokens goes.

    Row `b` of the block is cache row `rows.start + b`; its first `counts[b]` tokens take the
    columns from `starts[b]` on, the rest of its T tokens is padding and goes nowhere.
    """

    rows: slice
    starts: tuple[int, ...]
    counts: tuple[int, ...]
    width: int
    device: torch.device | str = "cpu"  # the cache's

    @cached_property
    def stop(self) -> int:
        """The first column that no row of the block has filled after the forward."""
        return max(start + count for start, count in zip(self.starts, self.counts, strict=True))

    @cached_property
    def uniform(self) -> bool:
        """Whether all rows start together and none is padded."""
        return set(self.starts) == {self.starts[0]} and set(self.counts) == {self.width}

    @cached_property
    def cells(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of all tokens that are no padding: row and column in the block, column in the cache."""
        found = [
            (row, column, self.starts[row] + column)
            for row, count in enumerate(self.counts)
            for column in range(count)
        ]
        cells = torch.tensor(found, dtype=torch.long, device=self.device).view(-1, 3)
        block_rows, block_columns, columns = cells.unbind(1)
        return block_rows, block_columns, columns


class KVCache:
    """Keys and values of every layer: `(n_layers, rows, n_kv_heads, capacity, head_dim)` each.

    A token of absolute position p stands in column p of its row. `lengths[row]` counts the tokens
    of a row; rewinding only lowers it, since later tokens overwrite and the mask hides the rest.

    Args:
        dtype: the model's, in which keys and values come and go.
        cache_dtype: the one they are held in, of `CACHE_DTYPES`. "auto": `dtype`. "int8": with a
            scale in `dtype` for every layer, row, head and token, `(..., capacity, 1)`.

    Raises `SettingError` for another `cache_dtype`, `OutOfMemory` where there is no room.
    """

    def __init__(
        self,
        config: LlamaConfig,
        rows: int,
        capacity: int = 256,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        cache_dtype: str = "auto",
    ):
        self.config, self.limit = config, config.max_positions
        self.lengths = [0] * rows
        self.dtype, self.device = dtype, torch.device(device)
        self.cache_dtype, self.stored = cache_dtype, stored_dtype(cache_dtype, dtype)
        self.held = self._allocate(min(capacity, self.limit))

    @property
    def keys(self) -> Tensor:
        """All keys as they are held, also those behind a row's length."""
        return self.held[0]

    @property
    def values(self) -> Tensor:
        return self.held[1]

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        """How many tokens of a row there is room for now."""
        return self.held[0].shape[3]

    @property
    def n_bytes(self) -> int:
        return sum(each.nbytes for each in self.held)

    def _allocate(self, capacity: int) -> tuple[Tensor, ...]:
        shape = (self.config.n_layers, self.rows, self.config.n_kv_heads, capacity)
        try:  # zeros, not empty: a masked column has weight 0, and 0 * NaN would still be NaN
            return tuple(
                torch.zeros(*shape, size, dtype=dtype, device=self.device)
                for size, dtype in parts(self.config.head_dim, self.stored, self.dtype)
            )
        except (RuntimeError, MemoryError):
            each = bytes_per_token(self.config, self.dtype, self.cache_dtype)
            raise OutOfMemory(
                f"a key-value cache for {self.rows} rows of {capacity} tokens needs "
                f"{self.rows * capacity * each / 2**20:.0f} MiB, which could not be had; use a "
                "smaller batch, a shorter context or a smaller dtype (--cache-dtype int8)"
            ) from None

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` tokens per row; raises `PromptError` past the context length."""
        if capacity > self.limit:
            raise PromptError(
                f"{capacity} tokens do not fit the model's context of {self.limit}; shorten the "
                "prompt or lower --max-new-tokens"
            )
        if capacity <= self.capacity:
            return
        held, old = self.held, self.capacity
        self.held = self._allocate(min(self.limit, max(capacity, 2 * old)))
        for new, before in zip(self.held, held, strict=True):
            new[:, :, :, :old] = before

    def place(self, counts: Sequence[int], width: int, rows: slice | None = None) -> Placement:
        """Room and columns for a block of `width` tokens of which row b brings `counts[b]`."""
        rows = slice(0, self.rows) if rows is None else rows
        placement = Placement(rows, tuple(self.lengths[rows]), tuple(counts), width, self.device)
        self.reserve(placement.stop)
        return placement

    def write(self, layer: int, k: Tensor, v: Tensor, place: Placement) -> tuple[Tensor, Tensor]:
        """Store a block's keys and values, `(B, n_kv_heads, T, head_dim)`; return all so far."""
        exact = self.stored == self.dtype
        block = (k, v) if exact else rounded(k, v, self.stored)
        so_far = tuple(each[layer, place.rows, :, : place.stop] for each in self.held)
        rows, block_columns, columns = place.cells
        for into, new in zip(so_far, block, strict=True):
            into[rows, :, columns] = new[rows, :, block_columns]
        return (so_far[0], so_far[1]) if exact else widened(so_far, self.dtype)

    def advance(self, place: Placement) -> None:
        """Count a block that every layer has written."""
        self.lengths[place.rows] = [
            start + count for start, count in zip(place.starts, place.counts, strict=True)
        ]

    def rewind(self, row: int, length: int) -> None:
        """Forget all but the first `length` tokens of a row."""
        if not 0 <= length <= self.lengths[row]:
            raise ValueError(f"row {row} holds {self.lengths[row]} tokens; cannot go to {length}")
        self.lengths[row] = length

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, which move together in the order given."""
        index = torch.tensor(list(rows), dtype=torch.long, device=self.device)
        self.held = tuple(each.index_select(1, index) for each in self.held)
        self.lengths = [self.lengths[row] for row in rows]
