"""The modules of a model with int8 weights."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from minisafe.fast.int8 import (
    digits_fit,
    few_rows,
    int8_linear,
    pack_int8,
    packed_linear,
    quantize,
)
from minisafe.fast.joined import JoinedLinear
from minisafe.fast.norm import scaled
from minisafe.model import Embedding


class Int8Linear(JoinedLinear):
    """Weights in int8 with one scale per output channel; large matrices are packed."""

    may_pack: ClassVar[bool] = True

    def store(self, weights: list[Tensor]) -> None:
        rounded = [quantize(weight) for weight in weights]
        q = torch.cat([q for q, _ in rounded])
        scales = torch.cat([scales for _, scales in rounded])
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
