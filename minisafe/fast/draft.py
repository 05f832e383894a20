"""One request of a speculative generation: its answer, the block of drafts after it, and the rule
by which a draft is accepted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from minisafe.engine import RequestState
from minisafe.policy import Seen
from minisafe.sampling import filtered, inverse_cdf, penalised


class Draft:
    """A request's answer so far, and the block after it.

    starts: how many tokens base and expert had read before the answer. guided_tokens: how many
    tokens of the answer guidance acts on. read: how many tokens of answer and block the expert has
    read. expert_first: the expert's log-probabilities for the block's first token, if it has read
    everything before that token.

    ids, base: the block's tokens, and the base's log-probabilities for each; the first `n_verified`
    tokens are already verified. expert: the expert's log-probabilities for the tokens after those.
    q: per token, the distribution that it was drafted from, if the temperature is above 0.
    """

    def __init__(
        self,
        state: RequestState,
        starts: tuple[int, int],
        guided_tokens: int,
        expert_first: Tensor | None,
    ):
        self.state, self.starts, self.guided_tokens = state, starts, guided_tokens
        self.expert_first = expert_first
        self.read, self.prompt_steered = 0, state.steered
        self.uniforms: list[Tensor] = []  # (3, 1) per token of the answer
        self.clear()

    def clear(self) -> None:
        """Start a new block."""
        self.begin = len(self.state.answer)
        self.ids: list[int] = []
        self.base: list[Tensor] = []
        self.q: list[Tensor] = []
        self.expert = torch.empty(0)
        self.n_verified = 0

    def seen(self, place: int) -> Seen:
        """What the safety decision knows before the block's token `place`."""
        return replace(self.state.seen, tokens=self.begin + place)

    @property
    def n_unverified(self) -> int:
        """How many drafts still need the expert: those on which guidance acts."""
        return max(0, min(len(self.ids), self.guided_tokens - self.begin) - self.n_verified)

    def longest(self, n: int) -> int:
        """How many tokens the stream that is furthest ahead would have read in plain lockstep when
        the n-th token is taken."""
        expert = min(n - 1, max(0, self.guided_tokens - 1))
        return max(self.starts[0] + n - 1, self.starts[1] + expert)

    def unread(self, ended: bool) -> list[int]:
        """The ids that the expert still has to read, without the last one if it ends the row."""
        stop = min(self.begin + len(self.ids) - ended, self.guided_tokens - 1)
        return (self.state.answer + self.ids)[self.read : max(stop, self.read)]

    def counts(self, place: int) -> Mapping[int, int]:
        """How often each id occurs before the block's token `place`, for penalties."""
        if not self.state.request.sampling.penalises:
            return {}
        return self.state.counts + Counter(self.ids[:place])

    def uniform(self, place: int) -> Tensor:
        """The three uniform numbers of the block's token `place`, (3, 1) in [0, 1)."""
        while len(self.uniforms) <= self.begin + place:
            generator = self.state.generator
            self.uniforms.append(torch.rand(3, 1, generator=generator, dtype=torch.float64))
        return self.uniforms[self.begin + place]

    def extend(self, log_probs: Tensor, best: int) -> None:
        """Draft one more token. log_probs: the base's, (vocab,). best: their argmax."""
        sampling, place = self.state.request.sampling, len(self.ids)
        self.base.append(log_probs)
        if sampling.temperature > 0:
            q = filtered(log_probs, sampling, self.counts(place)).exp().double().cpu()
            self.q.append(q)
            best = inverse_cdf(q, self.uniform(place)[0])
        elif sampling.penalises:
            best = int(penalised(log_probs, sampling, self.counts(place)).argmax())
        self.ids.append(best)

    def verify(self, place: int, target: Tensor) -> int:
        """The answer's token at `place`: the draft if it is accepted, else one that is drawn again.
        target: (vocab,) log-probabilities."""
        sampling, counts = self.state.request.sampling, self.counts(place)
        if sampling.temperature == 0:
            return int(penalised(target, sampling, counts).argmax())
        p = filtered(target, sampling, counts).exp().double().cpu()
        _, accept, again = self.uniform(place)
        return accept_or_redraw(p, self.q[place], self.ids[place], accept, again)


def accept_or_redraw(p: Tensor, q: Tensor, draft: int, accept: Tensor, again: Tensor) -> int:
    """A token distributed as `p`, given a draft distributed as `q`: (vocab,) float64 each.

    The draft with probability min(1, p / q), else a draw from max(p - q, 0), which never gives the
    draft (Leviathan et al., 2023, arXiv 2211.17192; Chen et al., 2023, arXiv 2302.01318).
    `accept` and `again` are uniform in [0, 1), (1,) each.
    """
    p, q = p / p.sum(), q / q.sum()
    if bool(accept * q[draft] < p[draft]):
        return draft
    rest = (p - q).clamp(min=0)
    return inverse_cdf(rest if bool(rest.any()) else p, again)  # p = q but for rounding
