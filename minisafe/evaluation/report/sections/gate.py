"""The share of prompts on which the gate lets guidance act."""

from __future__ import annotations

from minisafe.evaluation.report.rows import Row, rows_of
from minisafe.evaluation.report.tables import Section, listing, plain, share

KINDS = ("benign", "borderline", "harmful")
OF_GATE = {"method": "method"} | {f"touched_{kind}": f"guided, {kind} %" for kind in KINDS}


def gate(summary: Row) -> Section | None:
    """The share of prompts on which the gate lets guidance act."""
    rows = rows_of(summary, "gate")
    if not rows:
        return None
    note = "The share of prompts on which the gate lets guidance act; the others get plain answers."
    return Section("Gate", (note,), (), (listing(list(map(gate_row, rows)), OF_GATE),))


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
