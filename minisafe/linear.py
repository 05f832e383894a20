"""`Projection`: one way to call the linear maps of a layer, however their weights are stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisafe.lora import Applied


class Step(Protocol):
    """What a projection needs of a forward's step (`minisafe.model.Step` has more)."""

    @property
    def adapters(self) -> tuple[Applied, ...]: ...


class Projection(nn.Module):
    """Linear maps that read the same input, such as q, k and v.

    parts: Hugging Face module name -> out_features.

    The plain form holds every part's weight as the checkpoint stores it, so that a memory-mapped
    file is used in place.
    """

    def __init__(self, in_features: int, parts: Mapping[str, int], bias: bool = False):
        super().__init__()
        self.names = tuple(parts)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(size, in_features)) for size in parts.values()
        )
        self.biases = nn.ParameterList(
            nn.Parameter(torch.empty(size)) for size in parts.values() if bias
        )

    def tensors(self) -> Iterator[tuple[str, nn.Module, str]]:
        """(Hugging Face name, module that holds it, attribute) of every tensor."""
        for place, name in enumerate(self.names):
            yield f"{name}.weight", self.weights, str(place)
            if len(self.biases):
                yield f"{name}.bias", self.biases, str(place)

    def forward(self, x: Tensor, step: Step) -> tuple[Tensor, ...]:
        """(B, T, in_features) -> one (B, T, out_features) a part."""
        biases = self.biases if len(self.biases) else [None] * len(self.names)
        return tuple(
            adapted(F.linear(x, weight, bias), x, name, step)
            for name, weight, bias in zip(self.names, self.weights, biases, strict=True)
        )


def adapted(y: Tensor, x: Tensor, name: str, step: Step) -> Tensor:
    """`y`, with the step's low-rank deltas for module `name` added on their rows.

    The delta is written into its rows, so rows without an adapter stay bit-equal.
    """
    for applied in step.adapters:
        delta = applied.adapter.deltas.get(name)
        if delta is not None:
            y[applied.rows] += delta(x[applied.rows])
    return y
