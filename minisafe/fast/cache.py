"""A cache whose writes cost less: views are made once for all layers, and blocks are copied whole.

With a small model the plain cache's slices and indexed writes, made anew in every layer, take
longer than some of its products (docs/log.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minisafe.cache import KVCache, Placement
from minisafe.cache_dtype import rounded, widened


@dataclass(frozen=True)
class Views:
    """A placement's part of what a cache holds, by layer; made once for all layers.

    so_far: keys and values (and their scales) up to `place.stop`. Where a block of them goes: if
    it is uniform, to `block`; with one token a row, to the `vectors` of all there are; else to the
    placement's cells of `so_far`.
    """

    place: Placement
    so_far: tuple[tuple[Tensor, ...], ...]
    block: tuple[tuple[Tensor, ...], ...] = ()
    vectors: Tensor | None = None


class FastCache(KVCache):
    """`KVCache`, to the bit; what differs is how a block is written."""

    @property
    def held(self) -> tuple[Tensor, ...]:
        return self._held

    @held.setter
    def held(self, held: tuple[Tensor, ...]) -> None:
        """Hold other tensors, and let go of every view of those before."""
        self._held = held
        self._views: Views | None = None
        self._flat: tuple[tuple[Tensor, ...], ...] | None = None
        self._layers: dict[tuple[int, int], list[Tensor]] = {}

    def write(self, layer: int, k: Tensor, v: Tensor, place: Placement) -> tuple[Tensor, Tensor]:
        views = self._views
        if views is None or views.place is not place:
            views = self._views = self.views_of(place)
        so_far, exact = views.so_far[layer], self.stored == self.dtype
        block = (k, v) if exact else rounded(k, v, self.stored)
        if views.block:
            for into, new in zip(views.block[layer], block, strict=True):
                into.copy_(new)
        elif views.vectors is not None:
            for into, new in zip(self.flat()[layer], block, strict=True):
                into.index_copy_(0, views.vectors, new.reshape(-1, new.shape[-1]))
        else:
            rows, block_columns, columns = place.cells
            for into, new in zip(so_far, block, strict=True):
                into[rows, :, columns] = new[rows, :, block_columns]
        return (so_far[0], so_far[1]) if exact else widened(so_far, self.dtype)

    def views_of(self, place: Placement) -> Views:
        """The views that all layers of a block share."""
        so_far = [each[:, place.rows, :, : place.stop] for each in self.held]
        by_layer = tuple(zip(*(each.unbind() for each in so_far), strict=True))
        if place.uniform:
            block = [each[:, :, :, place.starts[0] :].unbind() for each in so_far]
            return Views(place, by_layer, tuple(zip(*block, strict=True)))
        if place.width > 1 or 0 in place.counts:
            return Views(place, by_layer)
        rows, n_heads, capacity = range(self.rows)[place.rows], *self.held[0].shape[2:4]
        vectors = [
            (row * n_heads + head) * capacity + start
            for row, start in zip(rows, place.starts, strict=True)
            for head in range(n_heads)
        ]
        return Views(place, by_layer, vectors=torch.tensor(vectors, device=self.device))

    def layers(self, rows: slice) -> list[Tensor]:
        """The keys of every layer for these rows, (B, n_kv_heads, capacity, head_dim) each, then
        the values: contiguous views, made once. For a cache that is held in the model's dtype."""
        known = self._layers.get((rows.start, rows.stop))
        if known is None:
            known = [part for each in self.held for part in each[:, rows].unbind(0)]
            self._layers[rows.start, rows.stop] = known
        return known

    def flat(self) -> tuple[tuple[Tensor, ...], ...]:
        """By layer, what is held as one vector a row, head and column: (..., head_dim or 1)."""
        if self._flat is None:
            by_layer = (each.view(len(each), -1, each.shape[-1]).unbind() for each in self.held)
            self._flat = tuple(zip(*by_layer, strict=True))
        return self._flat
