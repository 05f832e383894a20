"""Low-rank deltas as values: `W x` becomes `W x + scaling * B (A x)` on chosen rows of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LoraDelta:
    """One module's delta. a: (r, in_features), b: (out_features, r). Source: Hu et al., 2021."""

    a: Tensor
    b: Tensor
    scaling: float

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        return F.linear(F.linear(x, self.a), self.b) * self.scaling

    def weight(self) -> Tensor:
        """The delta as a matrix (out_features, in_features), in float32."""
        return self.b.float() @ self.a.float() * self.scaling


@dataclass(frozen=True)
class LoraAdapter:
    """Deltas by the Hugging Face name of the module they belong to, as
    `model.layers.0.self_attn.q_proj`."""

    deltas: Mapping[str, LoraDelta]
    name: str = "adapter"

    @property
    def n_parameters(self) -> int:
        return sum(delta.a.numel() + delta.b.numel() for delta in self.deltas.values())


@dataclass(frozen=True)
class Applied:
    """An adapter and the rows of a forward's batch that it acts on."""

    adapter: LoraAdapter
    rows: slice
