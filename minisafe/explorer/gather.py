"""All that a page shows, as values: one prompt's answers by lane and scale, and the pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minisafe.explorer.lanes import Lane, lanes_of, rule_in_words, scales_of, under
from minisafe.explorer.pair import PAIR, pair_of, why_no_pair
from minisafe.explorer.runs import Run, run
from minisafe.guidance import Plain
from minisafe.session import Session
from minisafe.session.chat_prompt import ChatPrompt
from minisafe.session.own_rule import rule_name
from minisafe.trace.recompute import LOWERED, MEASURE

Report = Callable[[str, int, int], None]  # what, done, in all
AS_IT_IS = "as it is"


@dataclass(frozen=True)
class Gathered:
    """What a page shows.

    lanes: with the number of the run that each has at each of `scales`; a lane whose runs do not
    depend on the scale has the same at all. own: the place of the session's own scale in `scales`.
    runs: the traced answers; the main one, which the session itself would give, is the last lane's
    at the own scale. pair: see `pair_of`. missing: why parts of the page are left out.
    """

    lanes: Sequence[tuple[Lane, Sequence[int]]]
    scales: Sequence[float]
    own: int
    runs: Sequence[Run]
    pair: dict[str, Any] | None
    missing: Sequence[str]

    @property
    def main(self) -> Run:
        """The answer that the session itself gives."""
        return self.runs[self.lanes[-1][1][self.own]]


def gather(
    session: Session, prompt: str | ChatPrompt, chat: bool = True, top: int = 20,
    pair: Sequence[str] = PAIR, report: Report | None = None,
) -> Gathered:  # fmt: skip
    """Trace a prompt in every lane and at every scale. See `explorer.page`."""
    header = session.trace(prompt, chat, top=top).header()  # refuses a wrong prompt before the work
    base, scales = under(session, 0.0, False), scales_of(session)
    lanes = lanes_of(session)
    wanted = [(scale, guided) for guided in guidances(session) for scale in scales]
    other = acts_otherwise(session, header)
    total, runs = len(wanted) + other, list[Run]()
    for scale, guided in wanted:
        show(report, len(runs), total)
        runs.append(run(under(session, scale, guided), base, prompt, chat, top))
    numbered = [(lane, runs_of(lane, wanted, scales)) for lane in lanes]
    if other:
        show(report, len(runs), total)
        lane = Lane(AS_IT_IS, why_otherwise(session), lanes[-1].steered, lanes[-1].guided)
        numbered.append((lane, [len(runs)] * len(scales)))
        runs.append(run(session, base, prompt, chat, top))
    show(report, total, total)
    no_pair = why_no_pair(session, runs[0].header["chat"])
    found = None if no_pair else pair_of(session, base, pair)
    own = 0 if session.steering is None else scales.index(session.steering.scale)
    return Gathered(numbered, scales, own, runs, found, missing(session, no_pair))


def show(report: Report | None, done: int, total: int) -> None:
    """Tell what is done, if anybody asks."""
    if report is not None:
        report("traced answers", done, total)


def guidances(session: Session) -> tuple[bool, ...]:
    """Without the rule, and with it if there is one."""
    return (False,) if isinstance(session.rule, Plain) else (False, True)


def runs_of(lane: Lane, wanted: Sequence[tuple[float, bool]], scales: Sequence[float]) -> list[int]:
    """A lane's run at each scale, by its place in `wanted`."""
    return [wanted.index((scale if lane.steered else 0.0, lane.guided)) for scale in scales]


def acts_otherwise(session: Session, header: dict[str, Any]) -> bool:
    """Whether the session itself answers this prompt in another way than its two stages would:
    a part of it alone, or by the base. header: of the session's own trace."""
    return session.gate is not None or header["left"] or header["alone"] is not None


def why_otherwise(session: Session) -> str:
    """What the session itself does besides, in words."""
    if session.gate is not None:
        return "the gate decides whether anything acts"
    if session.leaves_harmless:
        return "a part that is harmful by itself is answered alone, and all else by the base"
    return "a part that is harmful by itself is answered alone"


def missing(session: Session, no_pair: str) -> list[str]:
    """Why parts of the page are left out."""
    found = []
    if session.steering is None:
        found.append("Lanes and scales of SA: no vector acts in these settings.")
    if isinstance(session.rule, Plain):
        found.append("Expert, guidance and their sliders: no guidance acts in these settings.")
    elif rule_name(session.rule) not in LOWERED:
        found.append(
            f"Sliders of lambda and margin: {rule_in_words(session)} does more than lower scores, "
            "so its result cannot be worked out again from what is stored."
        )
    if no_pair:
        found.append(f"The pair: {no_pair}.")
    return found


def parts_of_rule(name: str) -> dict[str, str] | None:
    """What the rule lowers, and what the expert is measured by; None for one that does more."""
    return {"lowered": LOWERED[name], "measure": MEASURE[name]} if name in LOWERED else None
