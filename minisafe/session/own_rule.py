"""A guidance rule of a program's own in place of the profile's: checked first, and named in what
acted.

The rule must read what is loaded, give probabilities, and be able to change an answer. That is
checked on drawn distributions, not on a model, so it takes milliseconds.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minisafe.errors import SafetyError, SettingError
from minisafe.guidance import RULES, Plain, Rule

if TYPE_CHECKING:
    from minisafe.session.session import Session

ROWS = 8  # drawn distributions per stream
SPREAD = 4.0  # standard deviation of their logits: streams that disagree at many tokens
PLAIN = (bool, int, float, str, type(None))


def with_rule(session: Session, rule: Rule) -> Session:
    """The session with `rule` in place of its own; shares what is loaded. See `Session.with_rule`,
    which says what it raises."""
    check_fits(session, rule)
    check_acts(rule, session.n_ids)
    return replace(session, rule=rule)


def check_fits(session: Session, rule: Rule) -> None:
    """Raise unless the rule reads all streams that are loaded, and draws from the one that is
    steered and compared now."""
    if not is_dataclass(rule) or isinstance(rule, type):
        raise SettingError(
            f"the rule is {rule!r}; expected an instance of a dataclass with n_streams, "
            "drawn_from, first_tokens and __call__ (examples/custom_rule.py)"
        )
    name, now = rule_name(rule), session.rule
    if isinstance(now, Plain):
        raise SafetyError(
            f"nothing is guided here, so the rule {name} has no expert to read; load a profile "
            "with an expert, safe decoding on and guidance above 0"
        )
    if rule.n_streams != len(session.streams):
        raise SafetyError(
            f"the rule {name} reads {rule.n_streams} streams, but {len(session.streams)} are "
            f"loaded (base, {', '.join(session.settings.others)}); each must be read"
        )
    if rule.drawn_from != now.drawn_from:
        raise SafetyError(
            f"the rule {name} draws from stream {rule.drawn_from}, but vector and calibration are "
            f"for stream {now.drawn_from}; expected drawn_from {now.drawn_from}"
        )
    first = rule.first_tokens
    if first is not None and first < 1:
        raise SettingError(f"first_tokens is {first}; expected 1 or more, or None")


def check_acts(rule: Rule, n_ids: int) -> None:
    """Raise unless the rule turns drawn distributions over `n_ids` ids into others, each row by
    itself."""
    name, streams = rule_name(rule), drawn(rule.n_streams, n_ids)
    found = rule(streams)
    if not isinstance(found, Tensor) or found.shape != streams[0].shape:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise SettingError(
            f"the rule {name} gives {got} for streams of shape {tuple(streams[0].shape)}; "
            "expected log-probabilities of that shape"
        )
    total = found.double().exp().sum(-1)
    off = int((total - 1).abs().nan_to_num(torch.inf).argmax())
    if not abs(float(total[off]) - 1) < 1e-3:
        raise SettingError(
            f"the rule {name} gives probabilities that sum to {float(total[off]):.4g}; expected 1: "
            "end it with torch.log_softmax(scores, dim=-1), and leave some token possible"
        )
    if torch.equal(found, streams[rule.drawn_from]):
        raise SafetyError(f"the rule {name} changes nothing, so it could not change an answer")
    alone = rule(tuple(each[:1] for each in streams))
    if not torch.allclose(alone.exp(), found[:1].exp(), atol=1e-4):
        raise SettingError(
            f"the rule {name} treats a row alone and in a batch differently; work along the last "
            "dimension only (dim=-1)"
        )


def drawn(n_streams: int, n_ids: int) -> tuple[Tensor, ...]:
    """The same log-probabilities at every call, (ROWS, n_ids) per stream."""
    generator = torch.Generator().manual_seed(0)
    logits = SPREAD * torch.randn(n_streams, ROWS, n_ids, generator=generator)
    return tuple(logits.log_softmax(-1))


def is_own(rule: Rule) -> bool:
    """Whether the rule is a program's own: none that a setting can name."""
    return type(rule) not in (*RULES.values(), Plain)


def rule_name(rule: Rule) -> str:
    """A rule's name in `guidance.RULES`, else that of its class."""
    names = (name for name, kind in RULES.items() if type(rule) is kind)
    return next(names, type(rule).__name__.lower())


def numbers_of(rule: Rule) -> dict[str, Any]:
    """A rule's own numbers and texts, by name; other values, such as tensors, are left out."""
    given = {each.name: getattr(rule, each.name) for each in fields(rule)}  # type: ignore[arg-type]
    return {name: value for name, value in given.items() if isinstance(value, PLAIN)}
