"""Logistic regression, fitted to its minimum: the same examples give the same weights. Pure."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CONSTANT = 10.0  # the feature of the bias: large, so that the penalty hardly touches it


def fit(positive: Tensor, negative: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Weight (f,) and bias (1,), float64, of (n, f) positive and (m, f) negative examples, so that
    p = sigmoid(x @ weight + bias). Both classes weigh alike.

    strength: of the penalty on squared weights, beside the mean loss.
    """
    x = torch.cat([positive, negative]).double()
    y = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).double()
    share = torch.where(y == 1, 0.5 / len(positive), 0.5 / len(negative))
    mean = x.mean(dim=0)
    constant = torch.full((len(x), 1), CONSTANT, dtype=x.dtype)
    centred = torch.cat([x - mean, constant], dim=1)
    found = centred.T @ minimised(centred @ centred.T, y, share, strength)
    weight, bias = found[:-1], CONSTANT * found[-1:]
    return weight, bias - mean @ weight


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
