"""How harmful a text is, from how every stream would begin to answer it. Pure.

A model that refuses shows it in the first token's probabilities, and an expert that complies shows
that too. So a linear probe reads both: logistic regression on the square roots of the next-token
probabilities of all streams (their differences are then Hellinger distances, so rare tokens count
as well as common ones). It is fitted on harmful and harmless development prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minisafe.errors import SettingError
from minisafe.logistic import fit

STRENGTH = 1e-3  # of the penalty on squared weights
LEAST = 8  # examples of each kind


@dataclass(frozen=True, eq=False)
class Probe:
    """weight: (streams, vocab) float32, the streams in the session's order; bias: (1,)."""

    weight: Tensor
    bias: Tensor

    def harm(self, log_probs: Tensor) -> Tensor:
        """The probability of harm, (n,), from log-probabilities at the answer's first token,
        (n, streams, vocab)."""
        device = log_probs.device
        score = (features(log_probs) * self.weight.to(device)).sum(dim=(1, 2))
        return (score + self.bias.to(device)).sigmoid()


def features(log_probs: Tensor) -> Tensor:
    """Square roots of the probabilities."""
    return (log_probs.float() / 2).exp()


def fit_probe(harmful: Tensor, harmless: Tensor) -> Probe:
    """The probe of examples, each (n, streams, vocab): `features` of answers' first tokens.

    Raises `SettingError` if there are fewer than `LEAST` of a kind.
    """
    for name, examples in (("harmful", harmful), ("harmless", harmless)):
        if len(examples) < LEAST:
            raise SettingError(
                f"{len(examples)} {name} examples to fit a probe on; expected {LEAST} or more; "
                "give more prompts"
            )
    weight, bias = fit(harmful.flatten(1), harmless.flatten(1), STRENGTH)
    return Probe(weight.float().reshape(harmful.shape[1:]), bias.float())


def stacked(log_probs: Sequence[Tensor | None]) -> Tensor:
    """The log-probabilities of a forward, per stream (rows, vocab), as (rows, streams, vocab)."""
    return torch.stack([each.float() for each in log_probs if each is not None], dim=1)
