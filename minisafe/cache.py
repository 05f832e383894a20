"""One key-value cache for all layers: preallocated, per-row lengths, rewindable, growable.

It holds keys and values in the model's dtype, or in a smaller one (`CACHE_DTYPES`): then a block is
rounded when it is written, and one layer at a time is widened when it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from minisafe.config import LlamaConfig
from minisafe.errors import OutOfMemory, PromptError, SettingError

CACHE_DTYPES = ("auto", "float32", "bfloat16", "int8")


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

    @cached_property
    def stop(self) -> int:
        """The first column that no row of the block has filled after the forward."""
        return max(start + count for start, count in zip(self.starts, self.counts, strict=True))

    @cached_property
    def uniform(self) -> bool:
        """Whether all rows start together and none is padded."""
        return set(self.starts) == {self.starts[0]} and set(self.counts) == {self.width}

    def cells(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Block rows, block columns and cache columns of the tokens that are no padding."""
        found = [
            (row, column, self.starts[row] + column)
            for row, count in enumerate(self.counts)
            for column in range(count)
        ]
        cells = torch.tensor(found, dtype=torch.long, device=device).view(-1, 3)
        block_rows, block_columns, columns = cells.unbind(1)
        return block_rows, block_columns, columns


@dataclass(frozen=True)
class Views:
    """A placement's part of what a cache holds, by layer; made once for all layers.

    so_far: keys and values (and their scales) up to `place.stop`. Where a block of them goes: if
    it is uniform, to `block`; with one token a row, to the `vectors` of all there are; else to the
    `cells` of `so_far`.
    """

    place: Placement
    so_far: tuple[tuple[Tensor, ...], ...]
    block: tuple[tuple[Tensor, ...], ...] = ()
    vectors: Tensor | None = None
    cells: tuple[Tensor, Tensor, Tensor] | None = None


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
        self.replace(self._allocate(min(capacity, self.limit)))

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
    def n_bytes(self) -> int:
        return sum(each.nbytes for each in self.held)

    def _allocate(self, capacity: int) -> tuple[Tensor, ...]:
        shape = (self.config.n_layers, self.rows, self.config.n_kv_heads, capacity)
        kinds = [(self.config.head_dim, self.stored)] * 2
        if self.stored == torch.int8:
            kinds += [(1, self.dtype)] * 2
        try:  # zeros, not empty: a masked column has weight 0, and 0 * NaN would still be NaN
            return tuple(
                torch.zeros(*shape, size, dtype=dtype, device=self.device) for size, dtype in kinds
            )
        except (RuntimeError, MemoryError):
            each = bytes_per_token(self.config, self.dtype, self.cache_dtype)
            raise OutOfMemory(
                f"a key-value cache for {self.rows} rows of {capacity} tokens needs "
                f"{self.rows * capacity * each / 2**20:.0f} MiB, which could not be had; use a "
                "smaller batch, a shorter context or a smaller dtype (--cache-dtype int8)"
            ) from None

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` tokens a row; raises `PromptError` past the context length."""
        if capacity > self.limit:
            raise PromptError(
                f"{capacity} tokens do not fit the model's context of {self.limit}; shorten the "
                "prompt or lower --max-new-tokens"
            )
        if capacity <= self.capacity:
            return
        held, old = self.held, self.capacity
        self.replace(self._allocate(min(self.limit, max(capacity, 2 * old))))
        for new, before in zip(self.held, held, strict=True):
            new[:, :, :, :old] = before

    def replace(self, held: tuple[Tensor, ...]) -> None:
        """Hold other tensors, and let go of every view of those before."""
        self.held, self.capacity = held, held[0].shape[3]
        self._views: Views | None = None
        self._flat: tuple[tuple[Tensor, ...], ...] | None = None

    def place(self, counts: Sequence[int], width: int, rows: slice | None = None) -> Placement:
        """Room and columns for a block of `width` tokens of which row b brings `counts[b]`."""
        rows = slice(0, self.rows) if rows is None else rows
        starts = tuple(self.lengths[rows])
        placement = Placement(rows, starts, tuple(counts), width)
        self.reserve(placement.stop)
        return placement

    def write(self, layer: int, k: Tensor, v: Tensor, place: Placement) -> tuple[Tensor, Tensor]:
        """Store a block's keys and values, `(B, n_kv_heads, T, head_dim)`; return all so far."""
        views = self._views
        if views is None or views.place is not place:
            views = self._views = self._views_of(place)
        so_far, exact = views.so_far[layer], self.stored == self.dtype
        block = (k, v) if exact else rounded(k, v, self.stored)
        if views.block:
            for into, new in zip(views.block[layer], block, strict=True):
                into.copy_(new)
        elif views.vectors is not None:
            for into, new in zip(self.flat()[layer], block, strict=True):
                into.index_copy_(0, views.vectors, new.reshape(-1, new.shape[-1]))
        else:
            assert views.cells is not None
            rows, block_columns, columns = views.cells
            for into, new in zip(so_far, block, strict=True):
                into[rows, :, columns] = new[rows, :, block_columns]
        return (so_far[0], so_far[1]) if exact else widened(so_far, self.dtype)

    def _views_of(self, place: Placement) -> Views:
        so_far = [each[:, place.rows, :, : place.stop] for each in self.held]
        by_layer = tuple(zip(*(each.unbind() for each in so_far), strict=True))
        if place.uniform:
            block = [each[:, :, :, place.starts[0] :].unbind() for each in so_far]
            return Views(place, by_layer, tuple(zip(*block, strict=True)))
        if place.width > 1 or 0 in place.counts:
            return Views(place, by_layer, cells=place.cells(self.device))
        rows, heads = range(self.rows)[place.rows], range(self.config.n_kv_heads)
        vectors = [
            (row * len(heads) + head) * self.capacity + start
            for row, start in zip(rows, place.starts, strict=True)
            for head in heads
        ]
        return Views(place, by_layer, vectors=torch.tensor(vectors, device=self.device))

    def flat(self) -> tuple[tuple[Tensor, ...], ...]:
        """By layer, what is held as one vector a row, head and column: (..., head_dim or 1)."""
        if self._flat is None:
            by_layer = (each.view(len(each), -1, each.shape[-1]).unbind() for each in self.held)
            self._flat = tuple(zip(*by_layer, strict=True))
        return self._flat

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
        self.replace(tuple(each.index_select(1, index) for each in self.held))
        self.lengths = [self.lengths[row] for row in rows]


def stored_dtype(cache_dtype: str, dtype: torch.dtype) -> torch.dtype:
    """What `cache_dtype` means for a model of `dtype`; raises `SettingError` for another name."""
    if cache_dtype not in CACHE_DTYPES:
        raise SettingError(
            f"cache_dtype is {cache_dtype!r}; expected one of {', '.join(CACHE_DTYPES)}"
        )
    if cache_dtype == "auto":
        return dtype
    found: torch.dtype = getattr(torch, cache_dtype)
    return found


def bytes_per_token(config: LlamaConfig, dtype: torch.dtype, cache_dtype: str = "auto") -> int:
    """Bytes that one token of one row takes in the cache of a model of `dtype`."""
    stored = stored_dtype(cache_dtype, dtype)
    scale = dtype.itemsize if stored == torch.int8 else 0
    return 2 * config.n_layers * config.n_kv_heads * (config.head_dim * stored.itemsize + scale)


def rounded(k: Tensor, v: Tensor, stored: torch.dtype) -> tuple[Tensor, ...]:
    """Keys and values (..., head_dim) as `stored`; for int8 then their scales (..., 1) as well.

    int8: `x ~ q * scale`, symmetric, with a head's largest value at 127. This was measured
    (docs/log.md): about five times as exact as float8 at nearly the same size, and faster to widen.
    """
    if stored != torch.int8:
        return k.to(stored), v.to(stored)
    (k_q, k_scale), (v_q, v_scale) = quantized(k), quantized(v)
    return k_q, v_q, k_scale, v_scale


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 of x's shape, and scales (..., 1) in x's dtype; where x is not finite, they are not."""
    scale = (x.float().abs().amax(dim=-1, keepdim=True) / 127).to(x.dtype)
    scale = scale.clamp_min(torch.finfo(x.dtype).tiny)  # zeros are 0 of any scale
    q = (x.float() / scale.float()).round_().clamp_(-127, 127)
    return q.to(torch.int8), scale


def widened(held: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`rounded` keys and values in the model's dtype again."""
    keys, values = held[0].to(dtype), held[1].to(dtype)
    if len(held) == 2:
        return keys, values
    return keys.mul_(held[2]), values.mul_(held[3])
