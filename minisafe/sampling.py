"""From log-probabilities to a token. Pure, except that a draw advances its generator.

Order: presence and frequency penalty, temperature, top-k, top-p, min-p, draw. With temperature 0
the result is the most likely token after the penalties, and no random number is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minisafe.declared import check_fields


def sample(
    log_probs: Tensor, settings: Sampling, counts: Mapping[int, int], generator: torch.Generator
) -> int:
    """One token id from (vocab,) log-probabilities, by one uniform draw through the inverse CDF."""
    if settings.temperature == 0:
        return int(penalised(log_probs, settings, counts).argmax())
    draw = torch.rand(1, generator=generator, dtype=torch.float64)
    return inverse_cdf(filtered(log_probs, settings, counts).exp().double().cpu(), draw)


def filtered(log_probs: Tensor, settings: Sampling, counts: Mapping[int, int]) -> Tensor:
    """Log-probabilities to draw from, (vocab,), normalised, with -inf for tokens filtered out.

    Args:
        log_probs: (vocab,), float32.
        counts: how often each token occurs in the answer so far, for the penalties.
    """
    scores = penalised(log_probs, settings, counts)
    if settings.temperature == 0:
        best = torch.full_like(scores, float("-inf"))
        best[scores.argmax()] = 0.0
        return best
    # the best score becomes 0 first, so that the quotient cannot overflow float32 to NaN
    temperature = max(settings.temperature, 1e-30)
    scores = torch.log_softmax((scores - scores.max()) / temperature, dim=-1)
    if 0 < settings.top_k < len(scores):
        keep = torch.full_like(scores, float("-inf"))
        top = scores.topk(settings.top_k).indices
        keep[top] = scores[top]
        scores = keep
    if settings.top_p < 1:
        scores = nucleus(scores, settings.top_p)
    if settings.min_p > 0:
        threshold = scores.max() + float(np.log(settings.min_p))
        scores = scores.masked_fill(scores < threshold, float("-inf"))
    return torch.log_softmax(scores, dim=-1)


def nucleus(scores: Tensor, top_p: float) -> Tensor:
    """The fewest most likely tokens whose probability reaches `top_p` (Holtzman et al., 2020)."""
    ordered, order = torch.softmax(scores, dim=-1).sort(descending=True, stable=True)
    before = ordered.cumsum(0) - ordered  # the probability of all likelier tokens
    return scores.index_fill(0, order[before >= top_p], float("-inf"))


def penalised(log_probs: Tensor, settings: Sampling, counts: Mapping[int, int]) -> Tensor:
    """Log-probabilities minus the penalties for tokens that the answer already contains."""
    presence, frequency = settings.presence_penalty, settings.frequency_penalty
    if not counts or not (presence or frequency):
        return log_probs
    ids = torch.tensor(list(counts), device=log_probs.device)
    times = torch.tensor(list(counts.values()), device=log_probs.device, dtype=log_probs.dtype)
    return log_probs.index_add(0, ids, -(presence + frequency * times))


def inverse_cdf(weights: Tensor, draw: Tensor) -> int:
    """The first id at which the running sum of the (vocab,) float64 weights exceeds `draw`, a
    share of their total, (1,) in [0, 1)."""
    cumulative = weights.cumsum(0)
    token = int(torch.searchsorted(cumulative, draw * cumulative[-1], right=True))
    if token < len(weights):
        return token
    return int(weights.nonzero()[-1])  # rounding put the draw at the very end


def row_generator(seed: int, index: int) -> torch.Generator:
    """The generator of prompt `index`: a prompt gets the same draws alone and in any batch."""
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. `top_k` 0, `top_p` 1 and `min_p` 0 are off.

    Penalties are subtracted from a token's log-probability: `presence_penalty` once if the answer
    contains the token, `frequency_penalty` once per occurrence. Raises `SettingError` for a value
    out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0

    @property
    def penalises(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty)

    def __post_init__(self) -> None:
        checks = {
            "temperature": (0 <= self.temperature < math.inf, "0 (greedy) or more"),
            "top_k": (0 <= self.top_k < math.inf, "0 (off) or more"),
            "top_p": (0 < self.top_p <= 1, "a number above 0, at most 1 (off)"),
            "min_p": (0 <= self.min_p < 1, "0 (off) or more, below 1"),
            "presence_penalty": (abs(self.presence_penalty) < 1e4, "a finite number"),
            "frequency_penalty": (abs(self.frequency_penalty) < 1e4, "a finite number"),
            "seed": (0 <= self.seed < math.inf, "0 or more"),
        }
        check_fields(self, checks)
