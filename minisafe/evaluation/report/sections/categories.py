"""Attack success by category and style."""

from __future__ import annotations

import math
from collections.abc import Sequence

from minisafe.evaluation.report.plots import Heat
from minisafe.evaluation.report.rows import ALL, Row, number, pick, rows_of, text_of, unique
from minisafe.evaluation.report.tables import Section, Table, plain, share

MOST_METHODS = 12  # that a reader can compare by category


def by_category(summary: Row) -> Section | None:
    """Attack success by category and style."""
    rows = [row for row in rows_of(summary, "rows") if text_of(row, "category") != ALL]
    if not rows:
        return None
    title, methods = "ASR by category and style", unique(rows, "method")
    if len(methods) > MOST_METHODS:
        note = f"Left out for {len(methods)} methods; the summary has the rows."
        return Section(title, (note,))
    plots, tables = [], []
    for judge in unique(rows, "judge"):
        ruled = pick(rows, "judge", judge)
        plots.append(category_heat(ruled, judge))
        for method in unique(ruled, "method"):
            tables.append(category_table(pick(ruled, "method", method), f"{method}, judge {judge}"))
    note = "Each category has few prompts: look at the intervals before you compare categories."
    return Section(title, (note,), tuple(plots), tuple(tables))


def category_heat(rows: Sequence[Row], judge: str) -> Heat:
    """A judge's attack success: categories down, methods and styles across."""
    across = list(dict.fromkeys((text_of(r, "method"), text_of(r, "style")) for r in rows))
    down = unique(rows, "category")
    found = {
        (text_of(r, "category"), text_of(r, "method"), text_of(r, "style")): number(r, "asr")
        for r in rows
    }
    grid = tuple(tuple(found.get((name, *each), math.nan) for each in across) for name in down)
    columns = tuple(f"{method} · {style}" for method, style in across)
    return Heat(f"ASR %, judge {judge}", "method · style", "", columns, tuple(down), grid)


def category_table(rows: Sequence[Row], caption: str) -> Table:
    """One method's attack success: categories down, styles across."""
    styles = unique(rows, "style")
    lines = []
    for category in unique(rows, "category"):
        part = {text_of(row, "style"): row for row in pick(rows, "category", category)}
        n = ", ".join(dict.fromkeys(plain(row.get("n")) for row in part.values()))
        lines.append((category, n, *(share(part.get(style), "asr") for style in styles)))
    return Table(("category", "n per style", *styles), tuple(lines), caption)
