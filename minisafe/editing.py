"""Edited models: changes of a base's own weights."""

from __future__ import annotations

from torch import nn

from minisafe.lora import LoraAdapter
from minisafe.model import Llama


def merge_adapter(model: Llama, adapter: LoraAdapter) -> None:
    """Add an adapter's deltas to the model's own weights, computed in float32."""
    tensors = {name: (holder, attribute) for name, holder, attribute in model.tensors()}
    for name, delta in adapter.deltas.items():
        holder, attribute = tensors[f"{name}.weight"]
        weight = getattr(holder, attribute)
        merged = (weight.float() + delta.weight()).to(weight.dtype)  # never into the mapped file
        setattr(holder, attribute, nn.Parameter(merged, requires_grad=False))
