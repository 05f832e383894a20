"""Logistic regression, fitted to its minimum: the same examples give the same classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PARTS = ("weight", "bias", "mean", "spread")
STRENGTH = 1e-2  # of the penalty on squared weights, beside the mean loss
CONSTANT = 10.0  # the feature of the bias: large, so that the penalty hardly touches it


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
    y = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).double()
    share = torch.where(y == 1, 0.5 / len(positive), 0.5 / len(negative))
    mean, spread = x.mean(dim=0), x.std(dim=0, correction=0)
    spread = torch.where(spread > 1e-6, spread, torch.full_like(spread, torch.inf))
    constant = torch.full((len(x), 1), CONSTANT, dtype=x.dtype)
    scaled = torch.cat([(x - mean) / spread, constant], dim=1)
    weight = scaled.T @ minimised(scaled @ scaled.T, y, share)
    found = weight[:-1], CONSTANT * weight[-1:], mean, spread
    return Classifier(*(each.float() for each in found))


def minimised(kernel: Tensor, y: Tensor, share: Tensor) -> Tensor:
    """How much each example's features count in the best weights, (n,): Newton's method on the
    weighted logistic loss plus the penalty. There are fewer examples than features, so it works on
    their products, kernel (n, n). Steps that do not lower the loss are halved."""

    def loss(a: Tensor) -> float:
        each = F.binary_cross_entropy_with_logits(kernel @ a, y, reduction="none")
        return float((share * each).sum() + STRENGTH * (a @ kernel @ a))

    a, best = torch.zeros_like(y), torch.inf
    while (now := loss(a)) < best - 1e-12:
        best = now
        z = kernel @ a
        p = z.sigmoid()
        curve = share * p * (1 - p)
        left = curve[:, None] * kernel + 2 * STRENGTH * torch.eye(len(y), dtype=y.dtype)
        step = torch.linalg.solve(left, curve * z - share * (p - y)) - a
        while loss(a + step) > now and step.abs().max() > 1e-12:
            step = step / 2
        a = a + step
    return a
