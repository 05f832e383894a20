"""The safety decision: what an answer's next token is drawn from, and which streams read on. Pure.

Only `Policy.decide` makes it. The sampling loop, speculation and the scoring of likelihoods all
call it, so scoring uses the distribution that sampling would use.

1. After the prompt, the gate tests how far base (or anchor) and expert disagree. If it leaves an
   answer to the base, the decision is made again, from the base without the vector.
2. The rule acts on an answer that was not left to the base: on its first tokens, or on all.
3. Elsewhere the base's own log-probabilities are used.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minisafe.divergence import total_variation
from minisafe.errors import SafetyError
from minisafe.gate import Gate
from minisafe.guidance import Rule

LogProbs = Sequence[Tensor | None]  # per stream (rows, vocab), the base first; None: it rests


@dataclass(frozen=True)
class Seen:
    """What the decision needs to know about one answer.

    tokens: how many it has. gated: whether the gate may leave it to the base. left_to_base: whether
    the gate did, or whoever made the request. variation: the total variation between base and
    expert after the prompt, 0 to 1, or between anchor and expert if the rule samples from the
    anchor; None if they were not compared.
    """

    tokens: int = 0
    gated: bool = False
    left_to_base: bool = False
    variation: float | None = None


@dataclass(frozen=True)
class Decision:
    """The decision for a batch's answers.

    log_probs: (rows, vocab) to sample from. seen: per row, the answer's updated `Seen`. just_left:
    per row, whether the gate has just left the answer to the base. If so, the base rereads the
    prompt without the vector, and the row is decided again before a token is drawn.
    """

    log_probs: Tensor
    seen: tuple[Seen, ...]
    just_left: tuple[bool, ...]


@dataclass(frozen=True)
class Policy:
    """A rule, and a gate that may leave answers to the base; without one, all are guided."""

    rule: Rule
    gate: Gate | None = None

    def decide(self, seen: Sequence[Seen], log_probs: LogProbs) -> Decision:
        """What to sample each answer's next token from. log_probs: after its tokens so far.

        Raises `SafetyError` if the rule acts and a stream that it reads is missing.
        """
        now = self.look(seen, log_probs)
        pairs = zip(seen, now, strict=True)
        just_left = tuple(new.left_to_base and not old.left_to_base for old, new in pairs)
        acting = [self.acts(each) for each in now]
        base = log_probs[0]
        assert base is not None
        if not any(acting):
            return Decision(base, now, just_left)
        guided = self.rule(self.streams_read(log_probs))
        if not all(acting):
            rows = torch.tensor(acting, device=base.device)[:, None]
            guided = torch.where(rows, guided, base)
        return Decision(guided, now, just_left)

    def look(self, seen: Sequence[Seen], log_probs: LogProbs) -> tuple[Seen, ...]:
        """`seen`, updated after the prompt with the variation and the gate's decision. Answers that
        have begun, were compared before, or were left to the base already, stay as they are."""
        fresh = [
            each.tokens == 0 and each.variation is None and not each.left_to_base for each in seen
        ]
        if not any(fresh) or len(log_probs) <= max(1, self.rule.drawn_from):
            return tuple(seen)
        chosen, expert = log_probs[self.rule.drawn_from], log_probs[1]
        if chosen is None or expert is None:
            return tuple(seen)
        values: list[float] = total_variation(chosen, expert).tolist()
        found = []
        for each, is_fresh, value in zip(seen, fresh, values, strict=True):
            left = self.gate is not None and each.gated and not self.gate.opens(value)
            found.append(replace(each, variation=value, left_to_base=left) if is_fresh else each)
        return tuple(found)

    def acts(self, seen: Seen) -> bool:
        """Whether the rule acts on the next token. If it does, all its streams must have read the
        answer; if not, all but the base may rest."""
        return seen.tokens < self.guided_tokens(seen)

    def guided_tokens(self, seen: Seen) -> int:
        """How many tokens the rule acts on, counted from the answer's first."""
        if seen.left_to_base:
            return 0
        first = self.rule.first_tokens
        return sys.maxsize if first is None else first

    def streams_read(self, log_probs: LogProbs) -> tuple[Tensor, ...]:
        """The log-probabilities that the rule reads; raises `SafetyError` if any are missing."""
        n = self.rule.n_streams
        given = tuple(each for each in log_probs[:n] if each is not None)
        if len(given) < n:  # no stream may take the place of a missing one
            raise SafetyError(
                f"guidance needs {n} streams, but only {len(given)} of them read this text; "
                "nothing is answered unguided"
            )
        return given
