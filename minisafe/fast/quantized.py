"""The modules of a model with int8 or int4 weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from minisafe.fast.int4 import hold_int4, int4_linear
from minisafe.fast.int8 import digits_fit, few_rows, int8_linear, pack_int8, packed_linear
from minisafe.fast.joined import JoinedLinear
from minisafe.fast.norm import scaled
from minisafe.linear import Linear
from minisafe.model import Embedding
from minisafe.rounding import GROUPS, quantize, quantize_groups


class RoundedLinear(Linear):
    """A linear map whose weight was read rounded, until it is joined with others.

    rounded: the values and scales of `rounding.quantize` or `rounding.quantize_groups`. `weight`
    has the shape alone, on the meta device.
    """

    def __init__(self, plain: Linear, rounded: tuple[Tensor, Tensor]):
        nn.Module.__init__(self)
        self.name, self.weight, self.bias = plain.name, plain.weight, plain.bias
        self.rounded = rounded


def joined(rounded: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The values and scales of several parts, row after row. A single part is not copied."""
    if len(rounded) == 1:
        return rounded[0]
    values, scales = zip(*rounded, strict=True)
    return torch.cat(values), torch.cat(scales)


class Int8Linear(JoinedLinear):
    """Weights in int8 with one scale per output channel; large matrices are packed."""

    may_pack: ClassVar[bool] = True

    def store(self, parts: Sequence[Linear]) -> None:
        q, scales = joined(
            [
                part.rounded if isinstance(part, RoundedLinear) else quantize(part.weight.detach())
                for part in parts
            ]
        )
        shape = q.shape[0], q.shape[1]
        pack = self.may_pack and digits_fit(shape, scales.dtype)
        self.packed = pack_int8(q, scales) if pack else None
        if not pack:
            few_rows(shape, scales.dtype)  # raced now instead of in the first answer
        self.rows = None if pack else (q, scales)

    def product(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            y = packed_linear(x, self.packed)
        else:
            assert self.rows is not None
            y = int8_linear(x, *self.rows)
        return y if self.bias is None else y.add_(self.bias)


class Int8Head(Int8Linear):
    """A tied head: its rows are also the embedding, so it is not packed."""

    may_pack = False


class Int8Embedding(Embedding):
    """The rows of a tied int8 head."""

    def __init__(self, q: Tensor, scales: Tensor, factor: float):
        nn.Module.__init__(self)
        self.q, self.scales, self.factor = q, scales, factor

    def forward(self, ids: Tensor) -> Tensor:
        return scaled(self.q[ids] * self.scales[ids].unsqueeze(-1), self.factor)


class Int4Linear(JoinedLinear):
    """Weights in int4, in groups of inputs."""

    def store(self, parts: Sequence[Linear]) -> None:
        rounded = [
            part.rounded
            if isinstance(part, RoundedLinear)
            else quantize_groups(part.weight.detach(), GROUPS[0])
            for part in parts
        ]
        self.held = hold_int4(*joined(rounded))

    def product(self, x: Tensor) -> Tensor:
        y = int4_linear(x, self.held)
        return y if self.bias is None else y.add_(self.bias)
