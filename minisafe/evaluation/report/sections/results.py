"""The main table: attack success, over-refusal and utility."""

from __future__ import annotations

import math
from collections.abc import Sequence

from minisafe.evaluation.report.rows import (
    ALL,
    Row,
    judges_of,
    number,
    pick,
    rows_of,
    text_of,
    unique,
)
from minisafe.evaluation.report.tables import Section, Table, plain, share

TEXT = "intact text"  # a measure of the text, not of what the method knows


def overall(summary: Row, judge: str) -> list[Row]:
    """A judge's rows of attack success over every category."""
    return pick(pick(rows_of(summary, "rows"), "judge", judge), "category", ALL)


Column = tuple[str, dict[str, Row], str]  # title, row by method, field


def columns_of(summary: Row, judge: str) -> list[Column]:
    """The main table's columns: attack success, then over-refusal, then utility."""
    attacked = overall(summary, judge)
    found: list[Column] = []
    for style in unique(attacked, "style"):
        of_style = by_method(pick(attacked, "style", style))
        found.append((f"ASR, {style}", of_style, "asr"))
        whole = {name: intact(row) for name, row in of_style.items() if "intact" in row}
        if whole:
            found.append((f"intact, {style}", whole, "intact"))
    refused = pick(rows_of(summary, "over_refusal"), "judge", judge)
    for kind in unique(refused, "kind"):
        part = pick(refused, "kind", kind)
        styles = unique(part, "style")
        for style in styles:
            title = f"over-refusal, {kind}" + (f", {style}" if len(styles) > 1 else "")
            found.append((title, by_method(pick(part, "style", style)), "refused"))
    utility = utility_of(summary, judge)
    for measure in unique(utility, "measure"):
        found.append((f"utility, {measure}", by_method(pick(utility, "measure", measure)), "value"))
    return found


def intact(row: Row) -> Row:
    """The share of intact text of a row of attack success, whose interval is not that share's."""
    return {"n": row.get("n"), "intact": row["intact"]}


def utility_of(summary: Row, judge: str) -> list[Row]:
    """Utility by this judge, or else by the first judge that measured it; intact text, which every
    judge tells, by this one."""
    rows = rows_of(summary, "utility")
    own = [row for row in rows if text_of(row, "judge") in ("", judge)]
    if not rows or any(text_of(row, "measure") != TEXT for row in own):
        return own
    others = pick(rows, "judge", unique(rows, "judge")[0])
    return [row for row in others if not own or text_of(row, "measure") != TEXT] + own


def by_method(rows: Sequence[Row]) -> dict[str, Row]:
    """Rows by the name of their method."""
    return {text_of(row, "method"): row for row in rows}


def results(summary: Row) -> Section:
    """One row per method: attack success, over-refusal and utility."""
    notes, tables = [], []
    for judge in judges_of(summary):
        tables.append(main_table(columns_of(summary, judge), judge))
        doubtful = [number(row, "inconclusive") for row in overall(summary, judge)]
        worst = max((each for each in doubtful if math.isfinite(each)), default=0.0)
        if worst > 5:
            notes.append(
                f"Judge {judge}: up to {worst:.1f} % of a method's answers are INCONCLUSIVE; its "
                "true ASR may be higher by as much."
            )
    if not rows_of(summary, "rows"):
        notes.append("No answer to a harmful prompt was judged.")
    if not rows_of(summary, "over_refusal"):
        notes.append(
            "Over-refusal was not measured: a method that refuses everything looks best here."
        )
    if not rows_of(summary, "utility"):
        notes.append("Utility was not measured: a method that answers nonsense may look best here.")
    return Section("Results", tuple(notes), (), tuple(tables))


def main_table(columns: Sequence[Column], judge: str) -> Table:
    """One row per method with the given columns."""
    methods = list(dict.fromkeys(name for _, rows, _ in columns for name in rows))
    head, cells = ["method"], [[name] for name in methods]
    for title, rows, field in columns:
        sizes = {plain(row.get("n")) for row in rows.values()}
        same = len(sizes) == 1
        head.append(f"{title} (n = {sizes.pop()})" if same else title)
        for line, name in zip(cells, methods, strict=True):
            row = rows.get(name)
            size = f"; n = {plain(row.get('n'))}" if row and not same else ""
            line.append(share(row, field) + size)
    return Table(tuple(head), tuple(map(tuple, cells)), f"Judge: {judge}. Per cent (95 % interval)")
