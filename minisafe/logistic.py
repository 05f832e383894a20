"""Logistic regression, fitted to its minimum: the same examples give the same weights. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

CONSTANT = 10.0  # the feature of the bias: large, so that the penalty hardly touches it
BLOCK = 1 << 14  # features


def fit(positive: Tensor, negative: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Weight (f,) and bias (1,), float64, of (n, f) positive and (m, f) negative examples, so that
    p = sigmoid(x @ weight + bias). Both classes weigh alike.

    strength: of the penalty on squared weights, beside the mean loss. Only `BLOCK` features are
    held in float64 at a time: there may be as many as a vocabulary has ids.
    """
    y = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).double()
    share = torch.where(y == 1, 0.5 / len(positive), 0.5 / len(negative))
    kernel = torch.full((len(y), len(y)), CONSTANT**2, dtype=torch.float64)
    for _, centred in blocks(positive, negative):
        kernel += centred @ centred.T
    counts = minimised(kernel, y, share, strength)
    bias = CONSTANT**2 * counts.sum().reshape(1)
    weights = []
    for mean, centred in blocks(positive, negative):
        weights.append(centred.T @ counts)
        bias = bias - mean @ weights[-1]
    return torch.cat(weights), bias


def blocks(positive: Tensor, negative: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Block by block of the features, their means and all examples without them, in float64."""
    both = torch.split(positive, BLOCK, dim=1), torch.split(negative, BLOCK, dim=1)
    for one, other in zip(*both, strict=True):
        x = torch.cat([one, other]).double()
        mean = x.mean(dim=0)
        yield mean, x - mean


def minimised(kernel: Tensor, y: Tensor, share: Tensor, strength: float) -> Tensor:
    """How much each example's features count in the best weights, (n,): Newton's method on the
    weighted logistic loss plus the penalty. There are fewer examples than features, so it works on
    their products, kernel (n, n). Steps that do not lower the loss are halved."""

    def loss(a: Tensor) -> float:
        each = F.binary_cross_entropy_with_logits(kernel @ a, y, reduction="none")
        return float((share * each).sum() + strength * (a @ kernel @ a))

    a, best = torch.zeros_like(y), torch.inf
    while (now := loss(a)) < best - 1e-12:
        best = now
        z = kernel @ a
        p = z.sigmoid()
        curve = share * p * (1 - p)
        left = curve[:, None] * kernel + 2 * strength * torch.eye(len(y), dtype=y.dtype)
        step = torch.linalg.solve(left, curve * z - share * (p - y)) - a
        while loss(a + step) > now and step.abs().max() > 1e-12:
            step = step / 2
        a = a + step
    return a
