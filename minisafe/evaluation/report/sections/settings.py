"""The tried settings, as pictures and as a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from minisafe.evaluation.report.plots import Curves, Heat, Plot
from minisafe.evaluation.report.rows import Row, number, rows_of
from minisafe.evaluation.report.tables import Section, listing, plain

OF_SWEEP = {
    "sgds_lambda": "lambda", "sa_scale": "scale", "margin": "margin, nats", "sa_layer": "layer",
    "sa_positions": "positions", "asr": "ASR %", "utility": "utility %",
    "over_refusal": "over-refusal %",
}  # fmt: skip
MEASURES = ("asr", "utility", "over_refusal")


def sweep(summary: Row) -> Section | None:
    """The tried settings: lambda and scale as heat maps, margin as curves, all as a table."""
    rows = rows_of(summary, "sweep")
    if not rows:
        return None
    plots = (*heats(rows), *margin_curves(rows))
    note = (
        "Results on the prompts on which the settings were chosen are too good; choose settings on "
        "other prompts."
    )
    table = listing(rows, OF_SWEEP, "Every setting that was tried")
    return Section("Settings", (note,), plots, (table,))


def heats(rows: Sequence[Row]) -> tuple[Plot, ...]:
    """Heat maps over lambda and scale, for the other settings with the most rows."""
    rest, chosen = commonest(rows, ("margin", "sa_layer", "sa_positions"))
    down = sorted(finite(chosen, "sgds_lambda"))
    across = sorted(finite(chosen, "sa_scale"))
    if len(down) < 2 or len(across) < 2:
        return ()
    made = []
    for measure in MEASURES:
        found = {(number(r, "sgds_lambda"), number(r, "sa_scale")): number(r, measure)
                 for r in chosen}  # fmt: skip
        grid = tuple(tuple(found.get((lam, scale), math.nan) for scale in across) for lam in down)
        if any(math.isfinite(value) for line in grid for value in line):
            made.append(
                Heat(f"{OF_SWEEP[measure]} ({rest})", "scale", "lambda", shown(across), shown(down),
                     grid, measure == "utility")
            )  # fmt: skip
    return tuple(made)


def margin_curves(rows: Sequence[Row]) -> tuple[Plot, ...]:
    """Curves over the margin, for the other settings with the most margins."""
    # Among equals the strongest guidance comes first: without guidance a margin has no effect.
    strongest = sorted(rows, key=lambda row: number(row, "sgds_lambda"), reverse=True)
    rest, chosen = commonest(strongest, ("sgds_lambda", "sa_scale", "sa_layer", "sa_positions"))
    margins = sorted(finite(chosen, "margin"))
    if len(margins) < 2:
        return ()
    lines = []
    for measure in MEASURES:
        found = {number(row, "margin"): number(row, measure) for row in chosen}
        values = tuple(found.get(each, math.nan) for each in margins)
        if any(map(math.isfinite, values)):
            lines.append((OF_SWEEP[measure], values))
    return (Curves(f"Effect of the margin ({rest})", "margin, nats", tuple(margins), tuple(lines)),)


def commonest(rows: Sequence[Row], fixed: Sequence[str]) -> tuple[str, list[Row]]:
    """The most common values of the fixed settings (the first of equals), and their rows."""
    groups = Counter(tuple(plain(row.get(name)) for name in fixed) for row in rows)
    (values, _), *_ = groups.most_common(1)
    chosen = [row for row in rows if tuple(plain(row.get(name)) for name in fixed) == values]
    named = zip(fixed, values, strict=True)
    return ", ".join(f"{OF_SWEEP[name].split(',')[0]} {value}" for name, value in named), chosen


def finite(rows: Sequence[Row], name: str) -> set[float]:
    """The finite values of a field."""
    return {number(row, name) for row in rows if math.isfinite(number(row, name))}


def shown(values: Sequence[float]) -> tuple[str, ...]:
    """Numbers as axis labels."""
    return tuple(f"{value:g}" for value in values)
