"""From log-probabilities to a token. Pure, except that a draw advances its generator.

Order: presence and frequency penalty, temperature, top-k, top-p, min-p, draw. With temperature 0
the result is the most likely token after the penalties, and no random number is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minisafe.declared import NUMBER, WHOLE, Within, at_least, check_declared, declared

PENALTY = Within(lambda nats: abs(nats) < 1e4, "a finite number")


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. `top_k` 0, `top_p` 1 and `min_p` 0 are off.

    Penalties are subtracted from a token's log-probability: `presence_penalty` once if the answer
    contains the token, `frequency_penalty` once per occurrence.
    """

    temperature: float = declared(
        0.0, NUMBER, "Randomness of the draw; 0: greedy.", at_least(0, "0 (greedy) or more"),
        unset="0, unless the model's generation config says otherwise", in_chat=True,
    )  # fmt: skip
    top_k: int = declared(
        0, WHOLE, "Draw from the k most likely tokens; 0: all.", at_least(0, "0 (off) or more"),
        in_chat=True,
    )  # fmt: skip
    top_p: float = declared(
        1.0, NUMBER, "Draw from the most likely tokens that add up to p; 1: all.",
        Within(lambda p: 0 < p <= 1, "a number above 0, at most 1 (off)"), in_chat=True,
    )  # fmt: skip
    min_p: float = declared(
        0.0, NUMBER, "Draw from tokens at least p times as likely as the best; 0: all.",
        Within(lambda p: 0 <= p < 1, "0 (off) or more, below 1"), in_chat=True,
    )  # fmt: skip
    presence_penalty: float = declared(
        0.0, NUMBER, "Nats subtracted from every token that occurred.", PENALTY, in_chat=True
    )
    frequency_penalty: float = declared(
        0.0, NUMBER, "Nats subtracted from a token per occurrence.", PENALTY, in_chat=True
    )
    seed: int = declared(0, WHOLE, "Same seed, same text.", at_least(0), in_chat=True)

    @property
    def penalises(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty)

    def __post_init__(self) -> None:
        check_declared(self)


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


def row_generator(seed: int, index: int) -> torch.Generator:
    """The generator of prompt `index`: a prompt gets the same draws alone and in any batch."""
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def sample(
    log_probs: Tensor, settings: Sampling, counts: Mapping[int, int], generator: torch.Generator
) -> int:
    """One token id from (vocab,) log-probabilities, with one uniform draw and the inverse CDF."""
    if settings.temperature == 0:
        return int(penalised(log_probs, settings, counts).argmax())
    draw = torch.rand(1, generator=generator, dtype=torch.float64)
    return inverse_cdf(filtered(log_probs, settings, counts).exp().double().cpu(), draw)


def inverse_cdf(weights: Tensor, draw: Tensor) -> int:
    """The first id at which the running sum of the (vocab,) float64 weights exceeds `draw`, a
    share of their total, (1,) in [0, 1)."""
    cumulative = weights.cumsum(0)
    token = int(torch.searchsorted(cumulative, draw * cumulative[-1], right=True))
    if token < len(weights):
        return token
    return int(weights.nonzero()[-1])  # rounding put the draw at the very end


def accept_or_redraw(p: Tensor, q: Tensor, draft: int, accept: Tensor, again: Tensor) -> int:
    """A token distributed as `p`, given a draft distributed as `q`: (vocab,) float64 each.

    Returns the draft with probability min(1, p / q), else a draw from max(p - q, 0), which never
    yields the draft (Leviathan et al., 2023, arXiv 2211.17192; Chen et al., 2023,
    arXiv 2302.01318). `accept` and `again` are uniform in [0, 1), (1,) each.
    """
    p, q = p / p.sum(), q / q.sum()
    if bool(accept * q[draft] < p[draft]):
        return draft
    rest = (p - q).clamp(min=0)
    return inverse_cdf(rest if bool(rest.any()) else p, again)  # else p = q up to rounding
