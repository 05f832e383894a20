"""The lanes of a page: the same prompt under no stage, under each alone, under both, and as the
session itself answers it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from minisafe.engine import Generation
from minisafe.guidance import Plain
from minisafe.session import Session
from minisafe.session.own_rule import rule_name

FACTORS = (0.0, 0.5, 1.0, 1.5, 2.0)  # of the session's scale, at which answers are stored
IN_WORDS = {"sgds": "sGDS"}


@dataclass(frozen=True)
class Lane:
    """A way to answer. name: "base", "SA", the rule's, "both" or "as it is". what: in words.
    steered, guided: whether the vector is added, and whether the rule acts."""

    name: str
    what: str
    steered: bool
    guided: bool


def lanes_of(session: Session) -> list[Lane]:
    """The lanes that a session has the parts for, all of them without gate and reading alone."""
    has_vector, has_rule = session.steering is not None, not isinstance(session.rule, Plain)
    rule = rule_in_words(session)
    found = [Lane("base", "no vector, no guidance", False, False)]
    if has_vector:
        found.append(Lane("SA", "the vector alone", True, False))
    if has_rule:
        found.append(Lane(rule, "guidance alone", False, True))
    if has_vector and has_rule:
        found.append(Lane("both", "vector and guidance", True, True))
    return found


def rule_in_words(session: Session) -> str:
    """The rule's name as a page shows it."""
    name = rule_name(session.rule)
    return IN_WORDS.get(name, name)


def under(session: Session, scale: float, guided: bool) -> Session:
    """The session with these stages alone: the vector at this scale (0: none), and the rule or
    not. Nothing is read alone, and no gate leaves an answer to the base."""
    if scale == 0 and not guided:
        return only_base(session.plain())
    settings = replace(session.settings, read_alone=False, gate=False)
    found = replace(
        session, settings=settings, gate=None, alone=None, probe=None, engine=Generation
    )
    found = scaled(found, scale)
    return found if guided else unguided(found)


def scaled(session: Session, scale: float) -> Session:
    """The session with the vector at another scale; 0 takes it out."""
    steering = None
    if scale != 0 and session.steering is not None:
        steering = replace(session.steering, scale=scale)
    return replace(session, settings=replace(session.settings, sa_scale=scale), steering=steering)


def unguided(session: Session) -> Session:
    """The session with the vector alone. It is added to the base: without a rule, nothing else is
    drawn from."""
    off: dict[str, Any] = {session.settings.strength: 0.0, "sa_streams": None}
    settings = replace(session.settings, **off)
    steering = session.steering and replace(session.steering, streams=(0,))
    return only_base(replace(session, settings=settings, rule=Plain(), steering=steering))


def only_base(session: Session) -> Session:
    """The session without the streams that nothing reads."""
    return replace(session, streams=session.streams[:1], kinds=())


def scales_of(session: Session) -> tuple[float, ...]:
    """The scales at which a page stores answers: 0, and the session's own among them."""
    if session.steering is None:
        return (0.0,)
    own = session.steering.scale
    return tuple(own if factor == 1 else float(f"{own * factor:.6g}") for factor in FACTORS)
