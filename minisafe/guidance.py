"""Guidance rules: log-probabilities of several streams in, those to sample from out. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minisafe.errors import SettingError


def safe_scores(lb: Tensor, lu: Tensor, lam: float, margin: float = 0.0) -> Tensor:
    """Safety-guided scores before normalisation: `s = lb - k * relu(lu - lb - margin)`.

    `k = lam / (1 - lam)`. With margin 0 this is `(lb - lam * max(lu, lb)) / (1 - lam)`, the rule
    of SafeInfer (arXiv 2406.12274, section on safety-guided decoding) and the `Union` operator of
    language-model arithmetic (arXiv 2311.14479); written this way, tokens that the expert does not
    prefer keep their score to the bit.

    Args:
        lb, lu: log-probabilities of base and expert over the same ids, (..., vocab).
        lam: strength, 0 <= lam < 1. 0.99 is the authors' value, nearly a veto.
        margin: how many nats the expert may prefer a token before it is pushed down, >= 0.

    Raises:
        SettingError: lam or margin is outside its range.
    """
    check_guidance(lam, margin)
    excess = torch.relu(lu - lb - margin)
    scores = lb - (lam / (1 - lam)) * excess
    return torch.where(lb.isneginf(), lb, scores)  # -inf minus -inf would be NaN


def safe_log_probs(
    base_log_probs: Tensor, expert_log_probs: Tensor, lam: float, margin: float = 0.0
) -> Tensor:
    """log softmax of `safe_scores`, (..., vocab). `lam = 0` returns `base_log_probs` itself.

    Raises `SettingError` where `lam` or `margin` is outside its range.
    """
    check_guidance(lam, margin)
    if lam == 0:
        return base_log_probs
    return torch.log_softmax(safe_scores(base_log_probs, expert_log_probs, lam, margin), dim=-1)


def check_guidance(lam: float, margin: float) -> None:
    """Raise `SettingError` unless 0 <= lam < 1 and margin >= 0."""
    if not 0 <= lam < 1:
        raise SettingError(f"lambda is {lam}; expected 0 <= lambda < 1 (0 turns guidance off)")
    if not 0 <= margin < float("inf"):
        raise SettingError(f"margin is {margin}; expected a number of nats, 0 or more")


@dataclass(frozen=True)
class Plain:
    """No guidance: the base's own log-probabilities."""

    def __call__(self, log_probs: tuple[Tensor, ...]) -> Tensor:
        return log_probs[0]


@dataclass(frozen=True)
class SGDS:
    """Safety-guided decoding over the streams (base, expert)."""

    lam: float = 0.99
    margin: float = 0.0

    def __post_init__(self) -> None:
        check_guidance(self.lam, self.margin)

    def __call__(self, log_probs: tuple[Tensor, ...]) -> Tensor:
        return safe_log_probs(log_probs[0], log_probs[1], self.lam, self.margin)
