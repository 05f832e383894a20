"""Measure every invariant on a session."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch

from minisafe.check.invariants import Invariant
from minisafe.check.place import Place, make_place
from minisafe.check.plans import Plan, plain_readings, plans_of
from minisafe.errors import NonFiniteError
from minisafe.session.faster import put_in
from minisafe.session.session import Session

Progress = Callable[[str, int, int], None]  # (what, done, total)


@dataclass(frozen=True)
class Finding:
    """One invariant on one session. deviation: the largest, None if it does not apply (`why_not`);
    where: of which stream and prompt; tolerance: what it may be, both in the invariant's unit."""

    invariant: Invariant
    deviation: float | None
    tolerance: float
    where: str = ""
    why_not: str = ""

    @property
    def holds(self) -> bool | None:
        """None if it does not apply."""
        return None if self.deviation is None else self.deviation <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints; a deviation that is not finite is null."""
        finite = self.deviation is not None and math.isfinite(self.deviation)
        return {
            "name": self.invariant.name, "meaning": self.invariant.meaning, "holds": self.holds,
            "deviation": self.deviation if finite else None, "tolerance": self.tolerance,
            "unit": self.invariant.unit, "where": self.where, "why_not": self.why_not,
            "test": self.invariant.test,
        }  # fmt: skip


def check_session(
    session: Session,
    texts: Sequence[str],
    chat: bool,
    n_tokens: int = 12,
    progress: Progress | None = None,
) -> list[Finding]:
    """Measure every invariant on a session of `load_unprepared`; it is prepared on the way, so that
    the fast paths are held against the plain weights.

    Raises `PromptError` or `SettingError` for texts or an `n_tokens` that cannot be used.
    """
    place = make_place(session, texts, chat, n_tokens)
    settings = session.settings
    plain = all(stream.model.weights == "plain" for stream in session.streams)
    compiled = settings.compile or settings.compiled is not None
    if plain and (compiled or settings.weights != "plain"):
        place = replace(place, plain=plain_readings(place))
    put_in(session.streams, settings.weights, settings.compile, settings.compiled)
    plans = plans_of(place)
    total, done = sum(len(plan.parts) for plan in plans), count()

    def begin() -> None:
        if progress is not None:
            progress("measurements", next(done), total)

    return [measure(place, plan, begin) for plan in plans]


@torch.inference_mode()
def measure(place: Place, plan: Plan, begin: Callable[[], None]) -> Finding:
    """The largest deviation of a plan's measurements; infinite where logits are not finite. begin:
    called before each."""
    if not plan.parts:
        return Finding(plan.invariant, None, 0.0, why_not=plan.why_not)
    worst, where = -1.0, ""
    for name, part in plan.parts:
        begin()
        try:
            deviation = part()
        except NonFiniteError:
            deviation = math.inf
        if not deviation <= worst:  # NaN is never small
            worst, where = (math.inf if math.isnan(deviation) else deviation), name
    allowed = place.tolerance if plan.tolerance is None else plan.tolerance
    return Finding(plan.invariant, worst, allowed, where)
