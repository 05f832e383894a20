"""Guidance rules: they turn the log-probabilities of several streams into those to sample from.

`SGDS` is SafeInfer's rule, `Anchored` its successor; the others are the methods that they are
compared with. A rule is called with one (..., vocab) tensor per stream, the base's first.
`n_streams` is how many streams it reads, and `others` names those after the base. The expert is
the first of them; `expert` says whether it must be "unsafe" or "safe". `drawn_from` is the number
of the stream whose choice the rule corrects; that is the one to steer. `first_tokens` is how many
tokens of an answer the rule acts on, None for all; after them the other streams rest, and the base
continues alone. All rules are pure functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from minisafe.errors import SettingError


def safe_scores(
    lb: Tensor, lu: Tensor, lam: float, margin: float = 0.0, la: Tensor | None = None
) -> Tensor:
    """Safety-guided scores before normalisation: `s = lb - k * relu(lu - la - margin)`.

    `la` is the measure of what the expert likes too much; by default the base itself, `la = lb`.

    `k = lam / (1 - lam)`. With margin 0 this is `(lb - lam * max(lu, lb)) / (1 - lam)`, the rule
    of SafeInfer (arXiv 2406.12274, section on safety-guided decoding) and the `Union` operator of
    language-model arithmetic (arXiv 2311.14479). In this form, tokens that the expert does not
    prefer keep their score bit for bit.

    Args:
        lb, lu, la: log-probabilities of base, expert and anchor over the same ids, (..., vocab).
        lam: strength, 0 <= lam < 1. 0.99 is the authors' value, nearly a veto.
        margin: by how many nats the expert may prefer a token before it is pushed down, >= 0.

    Raises:
        SettingError: lam or margin is outside its range.
    """
    check_guidance(lam, margin)
    if la is None:
        excess = lu - lb
    else:  # what neither can choose is not in excess: -inf minus -inf would be NaN
        excess = torch.where(lu.isneginf(), -torch.inf, lu - la)
    if margin != 0:
        excess = excess - margin
    scores = torch.sub(lb, excess.relu_(), alpha=lam / (1 - lam))
    return torch.where(lb.isneginf(), lb, scores)  # -inf minus -inf would be NaN


def safe_log_probs(
    base_log_probs: Tensor,
    expert_log_probs: Tensor,
    lam: float,
    margin: float = 0.0,
    anchor_log_probs: Tensor | None = None,
) -> Tensor:
    """log softmax of `safe_scores`, (..., vocab). `lam = 0` returns `base_log_probs` itself.

    Raises `SettingError` if `lam` or `margin` is outside its range.
    """
    check_guidance(lam, margin)
    if lam == 0:
        return base_log_probs
    scores = safe_scores(base_log_probs, expert_log_probs, lam, margin, anchor_log_probs)
    return torch.log_softmax(scores, dim=-1)


def check_guidance(lam: float, margin: float) -> None:
    """Raise `SettingError` unless 0 <= lam < 1 and margin >= 0."""
    if not 0 <= lam < 1:
        raise SettingError(f"lambda is {lam}; expected 0 <= lambda < 1 (0 turns guidance off)")
    if not 0 <= margin < float("inf"):
        raise SettingError(f"margin is {margin}; expected a number of nats, 0 or more")


class Rule(Protocol):
    """What `policy.Policy` calls to combine the streams' log-probabilities."""

    @property
    def n_streams(self) -> int: ...
    @property
    def drawn_from(self) -> int: ...
    @property
    def first_tokens(self) -> int | None: ...
    def __call__(self, log_probs: tuple[Tensor, ...]) -> Tensor: ...


@dataclass(frozen=True)
class Plain:
    """No guidance: the base's own log-probabilities."""

    n_streams: ClassVar[int] = 1
    drawn_from: ClassVar[int] = 0
    first_tokens: ClassVar[int | None] = None

    def __call__(self, log_probs: tuple[Tensor, ...]) -> Tensor:
        return log_probs[0]


@dataclass(frozen=True)
class SGDS:
    """Safety-guided decoding over the streams (base, unsafe expert); see `safe_scores`."""

    lam: float = 0.99
    margin: float = 0.0
    first_tokens: int | None = None
    n_streams: ClassVar[int] = 2
    others: ClassVar[tuple[str, ...]] = ("expert",)
    drawn_from: ClassVar[int] = 0
    expert: ClassVar[str] = "unsafe"

    def __post_init__(self) -> None:
        check_guidance(self.lam, self.margin)
        check_rule(0.0, self.first_tokens)

    def __call__(self, log_probs: tuple[Tensor, ...]) -> Tensor:
        return safe_log_probs(log_probs[0], log_probs[1], self.lam, self.margin)


@dataclass(frozen=True)
class Anchored(SGDS):
    """Anchored guidance over the streams (base, unsafe expert, anchor): `s = la - k * relu(lu - la
    - margin)`.

    The anchor is a reader that the user's text moves less: the base with a safe adapter, or behind
    safe demonstrations. Where the text has turned the base itself, base and expert agree, and
    `SGDS` has nothing to push down; anchor and expert still differ. The base is what answers after
    `first_tokens`.
    """

    n_streams: ClassVar[int] = 3
    others: ClassVar[tuple[str, ...]] = ("expert", "anchor")
    drawn_from: ClassVar[int] = 2

    def __call__(self, log_probs: tuple[Tensor, ...]) -> Tensor:
        return safe_log_probs(log_probs[2], log_probs[1], self.lam, self.margin)


@dataclass(frozen=True)
class Veto(SGDS):
    """The anchor judges and the base chooses: `s = lb - k * relu(lu - la - margin)` over the
    streams (base, unsafe expert, anchor); see `Anchored`."""

    n_streams: ClassVar[int] = 3
    others: ClassVar[tuple[str, ...]] = ("expert", "anchor")

    def __call__(self, log_probs: tuple[Tensor, ...]) -> Tensor:
        lb, lu, la = log_probs
        return safe_log_probs(lb, lu, self.lam, self.margin, la)


# ---- the rules that SGDS is compared with ------------------------------------------------------


@dataclass(frozen=True)
class SafeDecoding:
    """SafeDecoding (Xu et al., ACL 2024, arXiv 2402.08983) over the streams (base, safe expert).

    On the first m tokens: p(x) ~ p_base(x) + alpha * (p_expert(x) - p_base(x)) for x in the
    intersection of both models' k likeliest tokens, with the smallest k that gives at least
    `common` of them, and 0 elsewhere. Negative values count as 0; if nothing is left, the base's
    own probabilities over the intersection are used. The authors' values are alpha 3, m 2,
    common 5.
    """

    alpha: float = 3.0
    first_tokens: int | None = 2
    common: int = 5
    n_streams: ClassVar[int] = 2
    others: ClassVar[tuple[str, ...]] = ("expert",)
    drawn_from: ClassVar[int] = 0
    expert: ClassVar[str] = "safe"

    def __post_init__(self) -> None:
        check_rule(self.alpha, self.first_tokens)
        if self.common < 1:
            raise SettingError(f"common_tokens is {self.common}; expected 1 or more")

    def __call__(self, log_probs: tuple[Tensor, ...]) -> Tensor:
        base, expert = (each.exp() for each in log_probs)
        shared = common_tokens(log_probs[0], log_probs[1], self.common)
        mixed = torch.where(shared, (base + self.alpha * (expert - base)).clamp(min=0), 0.0)
        empty = mixed.sum(dim=-1, keepdim=True) == 0
        mixed = torch.where(empty, torch.where(shared, base, 0.0), mixed)
        return (mixed / mixed.sum(dim=-1, keepdim=True)).log()


def common_tokens(one: Tensor, other: Tensor, count: int) -> Tensor:
    """Which tokens both rank among their k best, for the smallest k that gives `count` of them.

    one, other: (..., vocab) scores -> (..., vocab) bool. A token enters the intersection at the
    worse of its two ranks, so the `count`-th smallest of these worse ranks is that k.
    """
    ranks = [
        each.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1) for each in (one, other)
    ]
    worse = torch.maximum(*ranks)
    k = worse.kthvalue(min(count, worse.shape[-1]), dim=-1, keepdim=True).values
    return worse <= k


@dataclass(frozen=True)
class SelfCD:
    """Self-contrastive decoding (Shi et al., ACL 2024, arXiv 2401.17633).

    s = lb + alpha * (lb - lr) over the streams (base, base under another system prompt): it moves
    away from the effect of that prompt. With a prompt that overstates safety, it removes needless
    refusals (the paper's use); with one that asks for harm, it is a defence.
    """

    alpha: float = 1.0
    first_tokens: int | None = None
    n_streams: ClassVar[int] = 2
    others: ClassVar[tuple[str, ...]] = ("expert",)
    drawn_from: ClassVar[int] = 0
    expert: ClassVar[str] = "unsafe"

    def __post_init__(self) -> None:
        check_rule(self.alpha, self.first_tokens)

    def __call__(self, log_probs: tuple[Tensor, ...]) -> Tensor:
        lb, lr = log_probs
        return normalised(lb, lb + self.alpha * (lb - finite(lr)))


@dataclass(frozen=True)
class ROSE:
    """Reverse prompt contrastive decoding (Zhong et al., 2024, arXiv 2402.11889).

    s = lb - alpha * lr over the streams (base, base under a reversed, harm-inducing system prompt).
    """

    alpha: float = 0.5
    first_tokens: int | None = None
    n_streams: ClassVar[int] = 2
    others: ClassVar[tuple[str, ...]] = ("expert",)
    drawn_from: ClassVar[int] = 0
    expert: ClassVar[str] = "unsafe"

    def __post_init__(self) -> None:
        check_rule(self.alpha, self.first_tokens)

    def __call__(self, log_probs: tuple[Tensor, ...]) -> Tensor:
        lb, lr = log_probs
        return normalised(lb, lb - self.alpha * finite(lr))


@dataclass(frozen=True)
class DExperts:
    """DExperts (Liu et al., ACL 2021, arXiv 2105.03023); with models of different sizes it is
    proxy-tuning (Liu et al., 2024, arXiv 2401.08565).

    s = lb + alpha * (le - la) over the streams (base, expert, anti-expert).
    """

    alpha: float = 1.0
    first_tokens: int | None = None
    n_streams: ClassVar[int] = 3
    others: ClassVar[tuple[str, ...]] = ("expert", "anti_expert")
    drawn_from: ClassVar[int] = 0
    expert: ClassVar[str] = "safe"

    def __post_init__(self) -> None:
        check_rule(self.alpha, self.first_tokens)

    def __call__(self, log_probs: tuple[Tensor, ...]) -> Tensor:
        lb, le, la = log_probs
        return normalised(lb, lb + self.alpha * (finite(le) - finite(la)))


def finite(log_probs: Tensor) -> Tensor:
    """Log-probabilities, at least -1e4 each, so that no difference is inf - inf."""
    return log_probs.clamp(min=-1e4)


def normalised(lb: Tensor, scores: Tensor) -> Tensor:
    """log softmax of the scores; tokens that are -inf in the base stay -inf."""
    return torch.log_softmax(scores.masked_fill(lb.isneginf(), -torch.inf), dim=-1)


def check_rule(alpha: float, first_tokens: int | None) -> None:
    """Raise `SettingError` unless alpha is a finite number >= 0 and first_tokens >= 1 or None."""
    if not 0 <= alpha < float("inf"):
        raise SettingError(f"alpha is {alpha}; expected a number, 0 or more")
    if first_tokens is not None and first_tokens < 1:
        raise SettingError(f"first_tokens is {first_tokens}; expected 1 or more, or None")


RULES: dict[str, type[SGDS | SafeDecoding | SelfCD | ROSE | DExperts]] = {
    "sgds": SGDS, "anchored": Anchored, "veto": Veto, "safedecoding": SafeDecoding,
    "self-cd": SelfCD, "rose": ROSE, "dexperts": DExperts,
}  # fmt: skip
