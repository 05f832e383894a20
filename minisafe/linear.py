"""A linear map, to which adapters may add low-rank deltas on some rows of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisafe.lora import AdaptedRows

# how a model's weights may be stored; `minisafe.fast` has all but the plain way
WEIGHTS = ("auto", "plain", "packed", "int8")


class Linear(nn.Module):
    """`x @ weight.T + bias`, and the deltas of the adapters that are given.

    The weight is as the checkpoint stores it, so that a memory-mapped file is used in place.

    Args:
        name: Hugging Face's name of the module, by which an adapter knows it.
    """

    __call__: Callable[..., Tensor]  # torch states Any

    def __init__(self, in_features: int, out_features: int, bias: bool, name: str):
        super().__init__()
        self.name = name
        self.weight: Tensor = nn.Parameter(torch.empty(out_features, in_features))
        self.bias: Tensor | None = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor, adapters: Sequence[AdaptedRows]) -> Tensor:
        """(B, T, in_features) -> (B, T, out_features)"""
        y = F.linear(x, self.weight, self.bias)
        return add_deltas(y, x, self.name, adapters) if adapters else y


def add_deltas(y: Tensor, x: Tensor, name: str, adapters: Sequence[AdaptedRows]) -> Tensor:
    """Add to `y` the adapters' deltas for module `name`, each on its rows; returns it.

    A delta is written into its rows, so rows without an adapter stay bit-equal.
    """
    for adapted in adapters:
        delta = adapted.adapter.deltas.get(name)
        if delta is not None:
            y[adapted.rows].add_(delta(x[adapted.rows]))
    return y
