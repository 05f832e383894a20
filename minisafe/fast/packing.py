"""Texts of different lengths in one forward, without computing the padding.

Everything but attention processes each token by itself. So a padded block of (B, T) tokens runs as
N rows of one token each, without its padding, and only attention sees it as (B, T).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from minisafe.step import Step


@dataclass(frozen=True)
class PackedStep(Step):
    """A step of a (B, T) block without its padding: N tokens, row after row.

    Rotations, slots and adapters are those of N rows of one token each; `place`, the masks and the
    cache stay those of the block.

    cells: each token's row and column in the block, both (N,). offsets: the index of each row's
    first token among the N, and then N.
    """

    cells: tuple[Tensor, Tensor] = ()  # type: ignore[assignment]
    offsets: tuple[int, ...] = ()

    @classmethod
    def of(cls, step: Step) -> PackedStep:
        """The same step without its padding. Some rows must be shorter than `step.place.width`."""
        place, device = step.place, step.cos.device
        real = torch.arange(place.width)[None] < torch.tensor(place.counts)[:, None]  # (B, T)
        rows, columns = real.nonzero().to(device).unbind(1)
        offsets = (0, *accumulate(place.counts))
        firsts = torch.tensor(offsets, device=device)
        for bound in step.slots.waiting.values():
            for n, (slot, at_rows, at_columns) in enumerate(bound):
                bound[n] = slot, firsts[at_rows] + at_columns, torch.zeros_like(at_columns)
        spans = [range(len(place.counts))[adapted.rows] for adapted in step.adapters]
        adapters = tuple(
            replace(adapted, rows=slice(offsets[span.start], offsets[span.stop]))
            for adapted, span in zip(step.adapters, spans, strict=True)
        )
        given = vars(step) | {"adapters": adapters}
        packed = cls(**given, cells=(rows, columns), offsets=offsets)
        rows_each = (len(place.counts), -1, -1, -1)  # one row may hold for all
        cos, sin = step.cos.expand(rows_each), step.sin.expand(rows_each)
        return replace(packed, cos=packed.pack(cos), sin=packed.pack(sin))

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (N, 1, ...)"""
        return x[self.cells].unsqueeze(1)

    def spread(self, x: Tensor) -> Tensor:
        """(N, 1, ...) -> (B, T, ...), zero at the padding."""
        padded = x.new_zeros(len(self.place.counts), self.place.width, *x.shape[2:])
        padded[self.cells] = x.squeeze(1)
        return padded

    def last(self, x: Tensor) -> Tensor:
        """(N, 1, ...) -> (B, 1, ...)"""
        return x[[max(stop - 1, 0) for stop in self.offsets[1:]]]
