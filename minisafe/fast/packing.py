"""Texts of different lengths in one forward without work for the padding.

Everything but attention treats each token by itself. So a padded block of (B, T) tokens runs as N
rows of one token each, without its padding, and only attention sees it as (B, T).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from minisafe.cache import Placement
from minisafe.layout import Layout
from minisafe.lora import Applied


@dataclass(frozen=True)
class Unpadded(Layout):
    """The tokens of a (B, T) block without its padding: N of them, row after row.

    cells: block row and block column of each, (N,) both. offsets: where each row's tokens begin
    among them, and N.
    """

    cells: tuple[Tensor, Tensor]
    offsets: tuple[int, ...]

    @classmethod
    def of(cls, place: Placement, device: torch.device) -> Unpadded:
        """The layout of a block whose rows are not all `place.width` tokens long."""
        real = torch.arange(place.width)[None] < torch.tensor(place.counts)[:, None]  # (B, T)
        rows, columns = real.nonzero().to(device).unbind(1)
        return cls(place, (rows, columns), (0, *accumulate(place.counts)))

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (N, 1, ...)"""
        return x[self.cells].unsqueeze(1)

    def spread(self, x: Tensor) -> Tensor:
        """(N, 1, ...) -> (B, T, ...), zero at the padding."""
        padded = x.new_zeros(len(self.offsets) - 1, self.place.width, *x.shape[2:])
        padded[self.cells] = x.squeeze(1)
        return padded

    def last(self, x: Tensor) -> Tensor:
        """(N, 1, ...) -> (B, 1, ...)"""
        return x[[max(stop - 1, 0) for stop in self.offsets[1:]]]

    def cell(self, row: int, column: int) -> tuple[int, int]:
        return self.offsets[row] + column, 0

    def adapters(self, adapters: tuple[Applied, ...]) -> tuple[Applied, ...]:
        rows = range(len(self.offsets) - 1)
        spans = [rows[applied.rows] for applied in adapters]
        return tuple(
            replace(applied, rows=slice(self.offsets[span.start], self.offsets[span.stop]))
            for applied, span in zip(adapters, spans, strict=True)
        )
