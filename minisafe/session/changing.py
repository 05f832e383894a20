"""A session under other settings: what may change between answers, and what needs a new load."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from minisafe.errors import SafetyWarning, SettingError
from minisafe.guidance import SGDS, Rule
from minisafe.session.asked import check_asked
from minisafe.session.faster import engine_for
from minisafe.session.own_rule import is_own, rule_name
from minisafe.session.promise import check_numbers
from minisafe.session.settings import SETTABLE, Settings, resolve
from minisafe.vectors import Steering

if TYPE_CHECKING:
    from minisafe.session.session import Session

CALIBRATED = {"sa_scale", "sa_positions"}  # a calibration holds for one value of each


def changed(session: Session, changes: Mapping[str, Any]) -> Session:
    """The session with these settings; shares what is loaded. Raises `SettingError`."""
    for name in changes:
        if name not in SETTABLE:
            raise SettingError(
                f"{name!r} cannot be changed now; expected one of {', '.join(SETTABLE)}"
            )
    settings, names = resolve(changes, vars(session.settings)), set(changes)
    check_asked(settings, dict.fromkeys(changes, "flag"))
    rule, steering = session.rule, session.steering
    if names & {"sgds_lambda", "margin"}:
        rule = rule_under(session, settings)
    if names & CALIBRATED:
        steering = steering_under(session, settings)
    if session.alone is not None and names & CALIBRATED:
        raise SettingError(
            "this cannot be changed now: messages are also read alone, by a gate that was "
            "calibrated for the present setting; start again with --no-read-alone"
        )
    gate = session.gate
    if gate is not None and names & {*CALIBRATED, "system"}:
        warnings.warn(
            "the gate is off: it was calibrated for other settings", SafetyWarning, stacklevel=3
        )
        gate = None
    check_numbers(settings, steering, rule)
    engine = engine_for(settings.speculate, session.streams)
    return replace(
        session, settings=settings, rule=rule, steering=steering, gate=gate, engine=engine
    )


def rule_under(session: Session, settings: Settings) -> Rule:
    """The rule under other numbers; it cannot be switched on or off."""
    if is_own(session.rule):
        raise SettingError(
            f"guidance is by the program's own rule, {rule_name(session.rule)}, which these "
            "settings do not reach; give `with_rule` another one"
        )
    if not isinstance(session.rule, SGDS) or settings.sgds_lambda == 0:
        raise SettingError(
            "guidance cannot be switched on or off now; start again with --sgds-lambda"
        )
    return settings.make_rule()


def steering_under(session: Session, settings: Settings) -> Steering:
    """The steering under other numbers; it cannot be switched on or off."""
    if session.steering is None or settings.sa_scale == 0:
        raise SettingError("steering cannot be switched on or off now; start again with --sa-scale")
    return replace(session.steering, scale=settings.sa_scale, positions=settings.sa_positions)
