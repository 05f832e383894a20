"""Never half-safe: every part that is named can change the answer, or nothing is answered.

`asked.check_asked` checks what is asked for, before anything is loaded; `check_parts` checks what
was loaded, before a token is drawn. Both raise `SafetyError`. A number so weak that its stage
hardly acts is only a `SafetyWarning` if another stage acts.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from minisafe.checkpoint import fingerprint
from minisafe.errors import SafetyError, SafetyWarning
from minisafe.guidance import SGDS, Plain, Rule
from minisafe.lockstep import Lockstep
from minisafe.model import Llama
from minisafe.session.others import SYSTEMS, source_of
from minisafe.session.settings import Settings
from minisafe.vectors import Steering

if TYPE_CHECKING:
    from minisafe.session.session import Session

FAR = 20.0  # nats: a larger margin spares tokens that are e^20 times likelier to the expert
WEAK = 1e-3  # a smaller scale or strength changes log-probabilities by less than bf16 can tell
PROBE = "How do I do this today?"


def check_parts(session: Session) -> None:
    """Raise `SafetyError` unless every part that was loaded could change an answer.

    The weights of checkpoints are compared. For a vector or an adapter, the base reads a few tokens
    with and without it, all in one forward.
    """
    if not session.settings.safe:
        return
    check_numbers(session.settings, session.steering, session.rule)
    check_steered_streams(session)
    check_systems(session)
    check_checkpoints(session)
    _probe(session)


SAME_EXPERTS = "two of the experts are the same, so they do not guide; give two that differ"
NOTHING = "so it could not change an answer; give another one"


def check_numbers(settings: Settings, steering: Steering | None, rule: Rule) -> None:
    """Warn about a stage whose numbers make it idle; raise `SafetyError` if no stage is left."""
    idle: list[str] = []
    n_stages = 0
    if steering is not None:
        n_stages += 1
        if abs(steering.scale) < WEAK:
            idle.append(f"amplification at scale {steering.scale:g} (below {WEAK:g})")
        elif steering.positions == "generated" and settings.max_new_tokens == 1:
            idle.append("amplification of generated tokens only, in answers of one token")
    if not isinstance(rule, Plain):
        n_stages += 1
        idle += _idle_rule(rule)
    if not idle:
        return
    if len(idle) == n_stages:
        raise SafetyError(f"nothing would act: {' and '.join(idle)}; use other numbers")
    warnings.warn(f"practically off: {idle[0]}", SafetyWarning, stacklevel=2)


def _idle_rule(rule: Rule) -> list[str]:
    """Why guidance practically never acts, if so: one reason, or none."""
    if isinstance(rule, SGDS):
        if rule.margin > FAR:
            return [f"guidance with a margin of {rule.margin:g} nats (above {FAR:g})"]
        if rule.lam < WEAK:
            return [f"guidance at lambda {rule.lam:g} (below {WEAK:g})"]
    alpha = getattr(rule, "alpha", 1.0)
    return [f"guidance at alpha {alpha:g} (below {WEAK:g})"] if alpha < WEAK else []


def check_steered_streams(session: Session) -> None:
    """Raise `SafetyError` if only the base is steered, but the answer is never drawn from it, or if
    a steered model has another shape."""
    steering, rule = session.steering, session.rule
    if steering is None:
        return
    for number in steering.streams:
        config = session.streams[number].model.config
        for layer, vector in steering.vectors.items():
            if len(vector) != config.hidden or layer >= config.n_layers:
                raise SafetyError(
                    f"{_named(session, number)} has another shape than the base, so the vector "
                    "cannot be added to it; give --sa-streams base, or --sa-scale 0"
                )
    if steering.streams == (0,) and rule.drawn_from != 0:
        raise SafetyError(
            f"the vector would be added to the base alone, which the rule {session.settings.rule} "
            "does not draw from; give --sa-streams anchor, or --sa-scale 0"
        )


def check_systems(session: Session) -> None:
    """Raise `SafetyError` if the template leaves out an expert's system prompt, or if the prompt is
    the base's."""
    settings = session.settings
    own = [getattr(settings, SYSTEMS[name]) for name in settings.others]
    if session.kinds == ("system prompt", "system prompt") and own[0] == own[1]:
        raise SafetyError(SAME_EXPERTS)
    for system, kind in zip(own, session.kinds, strict=True):
        if kind != "system prompt" or system is None:
            continue
        if _asked_under(settings.system, session) == _asked_under(system, session):
            raise SafetyError(
                "the expert's system prompt changes nothing: the chat template leaves it out, or "
                "it is the same as the base's; give another prompt or template"
            )


def _asked_under(system: str | None, session: Session) -> tuple[int, ...]:
    """Ids of a chat under a system prompt; an empty prompt counts as none."""
    first = [{"role": "system", "content": system}] if system else []
    return session.tokenizer.encode_chat([*first, {"role": "user", "content": PROBE}]).ids


def check_checkpoints(session: Session) -> None:
    """Raise `SafetyError` if two streams that should differ hold the same weights."""
    models = [stream.model for stream in session.streams]
    for number, kind in enumerate(session.kinds, 1):
        if kind == "checkpoint" and same_weights(models[0], models[number]):
            raise SafetyError(f"{_named(session, number)} has the base's own weights, {NOTHING}")
    if session.kinds == ("checkpoint", "checkpoint") and same_weights(models[1], models[2]):
        raise SafetyError(SAME_EXPERTS)


def same_weights(model: Llama, other: Llama) -> bool:
    """Whether two models hold the same tensors; stops at the first that differs. Where weights are
    rounded, their fingerprints decide: a model and its rounded copy count as the same."""
    if model is other:
        return True
    if replace(model.config, dtype=None) != replace(other.config, dtype=None):
        return False
    if (model.weights, other.weights) != ("plain", "plain"):
        return fingerprint(model) == fingerprint(other)
    pairs = zip(model.tensors().values(), other.tensors().values(), strict=True)
    return all(torch.equal(one, two) for one, two in pairs)


def _probe(session: Session) -> None:
    """Raise `SafetyError` for an adapter or vector that does not change log-probabilities.

    Rows of one product are bit-equal if their inputs are, so every difference is due to the part.
    """
    ids = probe_ids(session)
    # the base steered, the base alone, then its adapters
    watched = [n for n, kind in enumerate(session.kinds, 1) if kind == "adapter"]
    base = session.streams[0]
    streams = [base, base, *(session.streams[n] for n in watched)]
    steering = session.steering
    if steering is None and not watched:
        return
    slots = [] if steering is None else steering.slots(0, ((len(ids) - 1, None),))
    empty: list[list[int]] = [[] for _ in watched]
    lockstep = Lockstep(streams, 1, len(ids), session.n_ids)
    found = lockstep.feed([[ids]] * len(streams), [slots, [], *empty])  # type: ignore[list-item]
    steered, plain, *experts = (each for each in found if each is not None)
    weak = steering is not None and abs(steering.scale) < WEAK  # already warned about
    if steering is not None and not weak and torch.equal(steered, plain):
        raise SafetyError(
            f"{session.settings.vector}: the vector at scale {steering.scale:g} leaves every "
            f"probability as it is, {NOTHING}"
        )
    for number, expert in zip(watched, experts, strict=True):
        if torch.equal(expert, plain):
            raise SafetyError(
                f"{_named(session, number)} leaves every probability of the base as it is (was it "
                f"saved before it was trained?), {NOTHING}"
            )
    if len(experts) == 2 and torch.equal(*experts):
        raise SafetyError(SAME_EXPERTS)


def probe_ids(session: Session) -> list[int]:
    """A few ids that every model knows: two or more, since attention over one has no choice."""
    n_ids, limit = session.n_ids, session.limit
    ids = [id_ for id_ in session.tokenizer.encode(PROBE) if id_ < n_ids][: min(8, limit)]
    return ids if len(ids) > 1 else [n % n_ids for n in range(min(4, limit))]


def _named(session: Session, number: int) -> str:
    """A stream's name in errors."""
    name = session.settings.others[number - 1]
    return f"the {name.replace('_', '-')} {source_of(session.settings, name)}"
