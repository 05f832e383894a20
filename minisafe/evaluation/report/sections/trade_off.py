"""Safety against utility: one point per method.

All other numbers in a report, such as shares, intervals and tests, come from the summary. The means
here, over styles and measures, are the only exception, and the section says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from minisafe.evaluation.report.plots import Point, Scatter
from minisafe.evaluation.report.rows import Row, judges_of, number, unique
from minisafe.evaluation.report.sections.headline import means_of_ends
from minisafe.evaluation.report.sections.results import Column, columns_of, overall, utility_of
from minisafe.evaluation.report.tables import Section, Table


def trade_off(summary: Row) -> Section | None:
    """Safety against utility: one point per method, for each judge."""
    plots, tables, notes = [], [], []
    for judge in judges_of(summary):
        measures = unique(utility_of(summary, judge), "measure")
        styles = unique(overall(summary, judge), "style")
        points, left_out = points_of(columns_of(summary, judge))
        if left_out:
            notes.append(f"Judge {judge}: left out, because not everything was measured: "
                         f"{', '.join(left_out)}.")  # fmt: skip
        if not points:
            continue
        x_label = f"utility: {mean_of(measures)}"
        y_label = f"ASR: {mean_of(styles)}"
        plots.append(Scatter(f"Safety against utility, judge {judge}", x_label, y_label, points))
        lines = tuple(
            (p.name, f"{p.x:.1f} ({p.x_low:.1f} to {p.x_high:.1f})",
             f"{p.y:.1f} ({p.y_low:.1f} to {p.y_high:.1f})") for p in points
        )  # fmt: skip
        tables.append(Table(("method", x_label, y_label), lines, f"Judge: {judge}"))
    if not tables:
        return None
    notes.insert(0,
        "One point per method; lower and further right is better. A mean is over shares, and the "
        "ends of its interval are the means of their ends. This is wider than for independent "
        "answers, because the same questions occur in every style.")  # fmt: skip
    return Section("Safety against utility", tuple(notes), tuple(plots), tuple(tables))


def mean_of(names: Sequence[str]) -> str:
    """The content of an axis: one measure, or the mean of several."""
    return names[0] if len(names) == 1 else f"mean of {', '.join(names)}"


def points_of(columns: Sequence[Column]) -> tuple[tuple[Point, ...], list[str]]:
    """Points for methods with every style and measure, and the names of the other methods."""
    safety = [rows for _, rows, field in columns if field == "asr"]
    utility = [rows for _, rows, field in columns if field == "value"]
    points, left_out = [], []
    for name in dict.fromkeys(name for rows in safety + utility for name in rows):
        x = means([rows.get(name, {}) for rows in utility], "value")
        y = means([rows.get(name, {}) for rows in safety], "asr")
        if all(map(math.isfinite, x + y)):
            points.append(Point(name, *x, *y))
        else:
            left_out.append(name)
    return tuple(points), left_out


def means(rows: Sequence[Row], field: str) -> tuple[float, float, float]:
    """Means of a share and of its interval's ends; NaN if one is missing."""
    if not rows:
        return math.nan, math.nan, math.nan
    return fmean(number(row, field) for row in rows), *means_of_ends(rows)
