"""RoPE scaling from `rope_freqs.weight`, the divisors that llama.cpp stores for Llama 3."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from minisafe.checkpoint import limits
from minisafe.config import LlamaConfig, RopeScaling
from minisafe.rotary import inverse_frequencies

PUBLISHED = (1.0, 4.0)  # low_freq_factor and high_freq_factor of every Llama 3 with scaling
CLOSE = 1e-4  # relative; a wrong original context of one token in 8,192 is seen


def find_scaling(divisors: NDArray[np.float32], config: LlamaConfig) -> RopeScaling | None:
    """The Llama 3 scaling that divides the rotary frequencies by `divisors`, (head_dim / 2,).

    The file states neither the original context nor the two factors, and only their ratios act.
    So the published factors are tried first, then those that fit the frequencies between fast and
    slow ones, with 1 as the lower factor.

    Raises `ValueError` if no Llama 3 scaling gives these divisors.
    """
    config = replace(config, rope_scaling=None)
    plain = inverse_frequencies(config).double().numpy()
    if divisors.shape != plain.shape or not np.all(np.isfinite(divisors)) or divisors.min() <= 0:
        raise ValueError
    factor = float(divisors.max())
    if factor <= 1:
        if np.all(divisors == 1):
            return None
        raise ValueError
    for scaling in _candidates(plain, divisors.astype(np.float64), factor):
        scaled = inverse_frequencies(replace(config, rope_scaling=scaling))
        if torch.allclose(scaled.double(), torch.from_numpy(plain / divisors), rtol=CLOSE, atol=0):
            return scaling
    raise ValueError


def _candidates(
    plain: NDArray[np.float64], divisors: NDArray[np.float64], factor: float
) -> Iterator[RopeScaling]:
    """Scalings worth comparing. `share` is how little a frequency is slowed, from 0 to 1; it grows
    with the turns of a frequency in the original context, from `low` to `high` of them."""
    turns = plain / (2 * math.pi)  # per token
    share = (1 / divisors - 1 / factor) / (1 - 1 / factor)
    between = (share > 1e-3) & (share < 1 - 1e-3)
    low, high = PUBLISHED
    if between.any():
        contexts = (share[between] * (high - low) + low) / turns[between]
        yield from _scaling(factor, low, high, float(np.median(contexts)))
    elif (share <= 1e-3).any():
        yield from _scaling(factor, low, high, low / float(turns[share <= 1e-3].max()))
    if between.sum() > 1:
        slope, start = np.polyfit(turns[between], share[between], 1)
        if slope > 0 > start:
            yield from _scaling(factor, 1.0, 1 - 1 / start, float(-slope / start))


def _scaling(factor: float, low: float, high: float, context: float) -> Iterator[RopeScaling]:
    """The scaling, if its numbers are ones that a config may state."""
    tokens = round(context) if math.isfinite(context) else 0
    stated = {
        "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": tokens,
    }  # fmt: skip
    if high > low and all(value in limits.CONFIG[key] for key, value in stated.items()):
        yield RopeScaling(round(factor, 4), low, round(high, 4), tokens)
