"""How far apart two next-token distributions are."""

from __future__ import annotations

import torch
from torch import Tensor


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats, both (..., vocab) -> (...). 0 log 0 is 0; p > 0 where q = 0 gives inf.

    Rounding may make it slightly negative.
    """
    return torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_q)).sum(dim=-1)


def total_variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Half the L1 distance between two distributions, 0 to 1. Both (..., vocab) -> (...)."""
    return (0.5 * (log_p.exp() - log_q.exp()).abs().sum(dim=-1)).clamp(0, 1)
