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
        x = x.to(self.a.dtype)  # during training, a delta may have a higher precision than its base
        return F.linear(F.linear(x, self.a), self.b) * self.scaling

    def weight(self) -> Tensor:
        """The delta as a matrix (out_features, in_features), in float32."""
        return self.b.float() @ self.a.float() * self.scaling

    @property
    def is_zero(self) -> bool:
        """Whether the matrix is zero. Multiplies the factors only if neither is zero."""
        return not (self.a.any() and self.b.any() and self.weight().any())


@dataclass(frozen=True)
class LoraAdapter:
    """Deltas by the Hugging Face name of their module, such as
    `model.layers.0.self_attn.q_proj`."""

    deltas: Mapping[str, LoraDelta]
    name: str = "adapter"

    @property
    def is_zero(self) -> bool:
        """Whether every delta is zero, as in an adapter that was never trained."""
        return all(delta.is_zero for delta in self.deltas.values())


@dataclass(frozen=True)
class AdaptedRows:
    """An adapter and the rows of a forward's batch that it acts on."""

    adapter: LoraAdapter
    rows: slice
