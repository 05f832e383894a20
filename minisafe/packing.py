"""Texts of different lengths in one forward without work for the padding.

Everything but attention treats each token by itself. So a padded block of (B, T) tokens runs as N
rows of one token each, without its padding, and only attention sees it as (B, T).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from minisafe.lora import Applied


@dataclass(frozen=True)
class Packing:
    """Which of a block's (B, T) tokens are no padding: N of them, row after row.

    cells: block row and block column of each, (N,) both. offsets: where each row's tokens begin
    among them, and N.
    """

    cells: tuple[Tensor, Tensor]
    offsets: tuple[int, ...]
    width: int

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (N, 1, ...)"""
        return x[self.cells].unsqueeze(1)

    def spread(self, x: Tensor) -> Tensor:
        """(N, 1, ...) -> (B, T, ...), zero at the padding."""
        padded = x.new_zeros(len(self.offsets) - 1, self.width, *x.shape[2:])
        padded[self.cells] = x.squeeze(1)
        return padded

    def last(self, x: Tensor) -> Tensor:
        """Each row's last token, or another's where it has none: (N, 1, ...) -> (B, 1, ...)"""
        return x[[max(stop - 1, 0) for stop in self.offsets[1:]]]

    def adapters(self, adapters: Sequence[Applied]) -> tuple[Applied, ...]:
        """Adapters on rows of the block -> the same on those rows' tokens."""
        rows = range(len(self.offsets) - 1)
        spans = [rows[applied.rows] for applied in adapters]
        return tuple(
            replace(applied, rows=slice(self.offsets[span.start], self.offsets[span.stop]))
            for applied, span in zip(adapters, spans, strict=True)
        )


def pack(counts: Sequence[int], width: int, device: torch.device) -> Packing:
    """The packing of a block whose row b has `counts[b]` tokens, not all `width`."""
    real = torch.arange(width)[None] < torch.tensor(counts)[:, None]  # (B, T)
    rows, columns = real.nonzero().to(device).unbind(1)
    return Packing((rows, columns), (0, *accumulate(counts)), width)
