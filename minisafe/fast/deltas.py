"""An adapter's deltas for several linear maps of one input, added to their joined outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minisafe.lora import LoraAdapter, LoraDelta

FUSED_RANK = 64  # up to this total rank, the deltas of a projection's parts are one product


@dataclass(frozen=True)
class FusedDeltas:
    """The low-rank deltas of a projection's parts as one, in float32: for few rows, float32
    products cost less than bf16 ones. a: (in_features, r), b: (r, sum of out_features), scaled."""

    a: Tensor
    b: Tensor

    def add_to(self, y: Tensor, x: Tensor) -> None:
        """Add to y (rows, T, sum of out_features) in place. x: (rows, T, in_features)"""
        inner = torch.mm(x.reshape(-1, x.shape[-1]).float(), self.a)
        if y.dtype == torch.float32 and y.is_contiguous():
            y.view(-1, y.shape[-1]).addmm_(inner, self.b)
        else:
            y.add_(torch.mm(inner, self.b).view(y.shape))


@dataclass(frozen=True)
class SeparateDeltas:
    """The same, one after another. parts: (output columns, delta) of every part that has one."""

    parts: tuple[tuple[slice, LoraDelta], ...]

    def add_to(self, y: Tensor, x: Tensor) -> None:
        for columns, delta in self.parts:
            y[..., columns].add_(delta(x))

    def fused(self, width: int) -> FusedDeltas:
        """The same as one delta, for outputs of `width` columns."""
        a = torch.cat([delta.a for _, delta in self.parts]).t().float().contiguous()
        b = a.new_zeros(a.shape[1], width)
        row = 0
        for columns, delta in self.parts:
            rank = len(delta.a)
            b[row : row + rank, columns] = delta.b.t().float() * delta.scaling
            row += rank
        return FusedDeltas(a, b)


def gather_deltas(
    sizes: Mapping[str, int], adapter: LoraAdapter
) -> FusedDeltas | SeparateDeltas | None:
    """The adapter's deltas for the parts of a projection, or None if it has none. Fused up to
    `FUSED_RANK`, because fusing adds zeros between them that grow with their ranks."""
    parts = []
    start = 0
    for name, size in sizes.items():
        if name in adapter.deltas:
            parts.append((slice(start, start + size), adapter.deltas[name]))
        start += size
    separate = SeparateDeltas(tuple(parts))
    if sum(len(delta.a) for _, delta in parts) > FUSED_RANK:
        return separate
    return separate.fused(start) if parts else None
