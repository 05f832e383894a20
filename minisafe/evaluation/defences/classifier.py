"""Logistic regression, fitted to its minimum: the same examples give the same classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minisafe import logistic

PARTS = ("weight", "bias", "mean", "spread")
STRENGTH = 1e-2  # of the penalty on squared weights, beside the mean loss


@dataclass(frozen=True, eq=False)
class Classifier:
    """p = sigmoid(weight . (x - mean) / spread + bias). weight, mean, spread: (f,); bias: (1,)."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    spread: Tensor

    def probability(self, features: Tensor) -> float:
        """The probability of the positive class for features (f,)."""
        score = self.weight @ ((features - self.mean) / self.spread) + self.bias
        return float(score.sigmoid())

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Its tensors, as `named` reads them."""
        return {f"{name}.{part}": getattr(self, part) for part in PARTS}


def named(tensors: Mapping[str, Tensor], name: str) -> Classifier:
    """The classifier of that name among the tensors of a file."""
    return Classifier(*(tensors[f"{name}.{part}"] for part in PARTS))


def fit(positive: Tensor, negative: Tensor) -> Classifier:
    """The classifier of (n, f) positive and (m, f) negative examples; both classes weigh alike.

    Features are scaled to mean 0 and spread 1; those that never vary stay without effect.
    """
    x = torch.cat([positive, negative]).double()
    mean, spread = x.mean(dim=0), x.std(dim=0, correction=0)
    spread = torch.where(spread > 1e-6, spread, torch.full_like(spread, torch.inf))
    one, other = ((each.double() - mean) / spread for each in (positive, negative))
    weight, bias = logistic.fit(one, other, STRENGTH)
    return Classifier(weight.float(), bias.float(), mean.float(), spread.float())
