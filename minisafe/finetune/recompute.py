"""Activation checkpointing: layers that keep no activations, and run again for the gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minisafe.model import Layer, Llama
from minisafe.step import Step


class RecomputedLayer(Layer):
    """A layer that is run again when its gradients are taken: less memory, more time."""

    def forward(self, x: Tensor, step: Step) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x, step)
        again: Tensor = checkpoint(super().forward, x, step, use_reentrant=False)
        return again


def recompute(model: Llama) -> None:
    """Let every layer of a plain model keep no activations, in place."""
    for layer in model.layers:
        layer.__class__ = RecomputedLayer
