"""Rotary position embedding (Su et al., 2021), with the halves in Hugging Face's order."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minisafe.config import LlamaConfig


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate every head by the angles of its position.

    x: (B, T, heads, head_dim). cos, sin: from `rotary_tables`, one row per position, broadcastable
    to x.
    """
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def rotary_tables(frequencies: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions 0 to n - 1, (n, head_dim) float32 each. The first half of the
    sines is negated, so that a rotation needs no change of sign.

    frequencies: (head_dim / 2,), from `inverse_frequencies`.
    """
    angles = torch.outer(torch.arange(n).float(), frequencies)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def inverse_frequencies(config: LlamaConfig) -> Tensor:
    """Rotary angles per position, (head_dim / 2,); Llama-3 scaling slows the low frequencies."""
    exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    turns = scaling.original_max_positions * frequencies / (2 * math.pi)  # in the original context
    smooth = (turns - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    smooth = smooth.clamp(0, 1)  # 1: unchanged, 0: slowed by the full factor
    return frequencies * (smooth + (1 - smooth) / scaling.factor)


class Rotary:
    """A model's rotary tables, made on first use and made longer when longer texts need them."""

    def __init__(self, config: LlamaConfig):
        self.config = config
        self.held: tuple[Tensor, Tensor] | None = None

    def tables(self, n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """`rotary_tables` for at least positions 0 to n - 1: (>= n, head_dim) each."""
        held = self.held
        if held is None or held[0].dtype != dtype or held[0].device != device or len(held[0]) < n:
            size = min(max(2 * n, 256), max(n, self.config.max_positions))
            with torch.inference_mode(False):  # otherwise training could not use the table later
                cos, sin = rotary_tables(inverse_frequencies(self.config), size)
                held = self.held = cos.to(device, dtype), sin.to(device, dtype)
        return held
