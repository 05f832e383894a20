"""Rotary position embedding (Su et al., 2021), with the halves in Hugging Face's order."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minisafe.config import LlamaConfig, RopeScaling, Yarn


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate every head by the angles of its position.

    x: (B, T, heads, head_dim). cos, sin: from `rotary_tables`, one row per position, broadcastable
    to x.
    """
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def rotary_tables(config: LlamaConfig, n: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions 0 to n - 1, (n, head_dim) float32 each. The first half of the
    sines is negated, so that a rotation needs no change of sign."""
    angles = torch.outer(torch.arange(n).float(), inverse_frequencies(config))
    scaling = config.rope_scaling
    factor = scaling.attention_factor if isinstance(scaling, Yarn) else 1.0
    cos, sin = angles.cos() * factor, angles.sin() * factor
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def inverse_frequencies(config: LlamaConfig) -> Tensor:
    """Rotary angles per position, (head_dim / 2,); scaling slows the low frequencies."""
    exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if isinstance(scaling, Yarn):
        kept = yarn_kept(config, scaling)
    else:
        kept = llama3_kept(frequencies, scaling)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def llama3_kept(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """How far each frequency stays as it is: 1, unchanged; 0, slowed by the full factor."""
    turns = scaling.original_max_positions * frequencies / (2 * math.pi)  # in the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return ((turns - low) / (high - low)).clamp(0, 1)


def yarn_kept(config: LlamaConfig, scaling: Yarn) -> Tensor:
    """The same for YaRN (Peng et al., 2023): a ramp over the pairs of a head. Its bounds are those
    of transformers, which limits the last to head_dim - 1, not to the last pair."""

    def pair_that_turns(times: float) -> float:
        length = scaling.original_max_positions / (2 * math.pi * times)  # tokens per radian
        return config.head_dim * math.log(length) / (2 * math.log(config.rope_theta))

    first, last = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, config.head_dim - 1)
    pairs = torch.arange(config.head_dim // 2).float()
    return 1 - ((pairs - first) / (last - first or 0.001)).clamp(0, 1)


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
                cos, sin = rotary_tables(self.config, size)
                held = self.held = cos.to(device, dtype), sin.to(device, dtype)
        return held
