"""The share of prompts on which the gate lets guidance act, and what its bound promises."""

from __future__ import annotations

from minisafe.errors import SettingError
from minisafe.evaluation.report.rows import Row, number, object_of, rows_of
from minisafe.evaluation.report.tables import Section, listing, plain, share
from minisafe.evaluation.statistics import exceedance, share_exceeded
from minisafe.gate import conformal_place

KINDS = ("benign", "borderline", "harmful")
OF_GATE = {"method": "method", "style": "asked"} | {
    f"touched_{kind}": f"guided, {kind} %" for kind in KINDS
}
MOST_PROMPTS = 1_000_000  # of a calibration; a longer sum would take too long
NOTE = "The share of prompts on which the gate lets guidance act; the others get plain answers."


def gate(summary: Row) -> Section | None:
    """The share of prompts on which the gate lets guidance act."""
    rows = rows_of(summary, "gate")
    if not rows:
        return None
    made = object_of(object_of(summary, "about"), "calibrations")
    bounds = dict.fromkeys(bound(object_of(made, name)) for name in made)
    table = listing(list(map(gate_row, rows)), OF_GATE)
    return Section("Gate", (NOTE, *filter(None, bounds)), (), (table,))


def bound(made: Row) -> str:
    """What a calibration promises, and what it does not; "" for one that cannot be."""
    n, epsilon = number(made, "n"), number(made, "epsilon")
    if not 1 <= n <= MOST_PROMPTS:
        return ""
    try:
        return coverage(int(n), conformal_place(int(n), epsilon), epsilon)
    except SettingError:
        return ""


def coverage(n: int, place: int, epsilon: float) -> str:
    """The bound of a calibration with n prompts and the `place`-th smallest as the threshold."""
    over, worst = exceedance(n, place, epsilon), share_exceeded(n, place)
    return (
        f"The bound is marginal coverage: on average over calibrations, guidance acts on at most "
        f"{epsilon:.1%} of prompts like the {n} of the calibration. A single calibration may do "
        f"worse: {over:.0%} of calibrations do, and one of twenty exceeds {worst:.1%}."
    )


def gate_row(row: Row) -> Row:
    """The row with each kind's share, interval and n in one field."""
    made = dict(row)
    for kind in KINDS:
        names = {f"touched_{kind}": "touched", f"low_{kind}": "low", f"high_{kind}": "high",
                 f"n_{kind}": "n"}  # fmt: skip
        found = {short: made.pop(name) for name, short in names.items() if name in made}
        if "touched" in found:
            size = f"; n = {plain(found['n'])}" if "n" in found else ""
            made[f"touched_{kind}"] = share(found, "touched") + size
    return made
