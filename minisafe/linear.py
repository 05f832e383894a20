"""A linear map; adapters may add low-rank deltas on some rows of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisafe.lora import AdaptedRows

# how a model's weights may be stored; `minisafe.fast` provides all but "plain"
WEIGHTS = ("auto", "plain", "packed", "int8")


class Linear(nn.Module):
    """`x @ weight.T + bias`, plus the deltas of the given adapters.

    The weight has the checkpoint's layout, so that a memory-mapped file is used in place.

    Args:
        name: the module's Hugging Face name, which adapters use.
    """

    __call__: Callable[..., Tensor]  # torch declares Any

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
    """Add the adapters' deltas for module `name` to `y`, each on its rows; returns `y`.

    Only rows with an adapter are written, so the others stay bit-equal.
    """
    for adapted in adapters:
        delta = adapted.adapter.deltas.get(name)
        if delta is not None:
            y[adapted.rows].add_(delta(x[adapted.rows]))
    return y
