"""Weights in their own dtype, in the layout that oneDNN's kernels read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minisafe.fast.joined import JoinedLinear
from minisafe.fast.kernels import packed_product, packs, wide_rows
from minisafe.linear import Linear
from minisafe.lora import AdaptedRows


class PackedLinear(JoinedLinear):
    """Weights in their own dtype and in oneDNN's blocked layout; plain rows if `packs` says no.

    A small matrix has a second copy in float32: for few rows, its product takes a third of the time
    and rounds no more (docs/log.md).
    """

    def store(self, parts: Sequence[Linear]) -> None:
        weights = [part.weight.detach() for part in parts]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        shape = weight.shape[0], weight.shape[1]
        self.packed = weight.device.type == "cpu" and packs(shape, weight.dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.packed else weight
        self.wide_rows = wide_rows(shape, weight.dtype) if self.packed else 0
        self.wide = weight.float() if self.wide_rows > 0 else None
        self.wide_bias = None if self.bias is None else self.bias.float()

    def forward(self, x: Tensor, adapters: Sequence[AdaptedRows]) -> Tensor:
        if self.wide is None or x.numel() > self.wide_rows * self.wide.shape[1]:
            return super().forward(x, adapters)
        return super().forward(x.float(), adapters).to(x.dtype)  # adds deltas before it rounds

    def product(self, x: Tensor) -> Tensor:
        if self.wide is not None and x.dtype == torch.float32:
            return F.linear(x, self.wide, self.wide_bias)
        if not self.packed:
            return F.linear(x, self.weight, self.bias)
        return packed_product(x, self.weight, self.bias)
