"""A plain linear map with less Python overhead, which matters in a small model."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from minisafe.linear import Linear, add_deltas
from minisafe.lora import AdaptedRows


class HeldLinear(Linear):
    """A plain linear map that does not look up its weight through `nn.Module`; `prepare` turns a
    `Linear` into one, in place."""

    def forward(self, x: Tensor, adapters: Sequence[AdaptedRows]) -> Tensor:
        y = F.linear(x, self._parameters["weight"], self.bias)  # type: ignore[arg-type]
        return add_deltas(y, x, self.name, adapters) if adapters else y

    __call__ = forward
