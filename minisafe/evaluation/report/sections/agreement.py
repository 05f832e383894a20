"""The judges' agreement, and answers on which they disagree."""

from __future__ import annotations

import math
from collections.abc import Sequence

from minisafe.evaluation.report.rows import Row, key_of, number, object_of, rows_of, text_of
from minisafe.evaluation.report.tables import Cell, Link, Section, Table, decimals, excerpt, plain

MOST_DISAGREEMENTS = 50


def agreement(summary: Row, responses: Sequence[Row]) -> Section | None:
    """The judges' agreement, and answers on which they disagree."""
    rows = rows_of(summary, "agreement")
    if not rows:
        return None
    lines, tables = [], []
    known = {key_of(row): row for row in responses}
    for row in rows:
        parted = rows_of(row, "disagreements")
        pair = plain(row.get("judges"))
        told = (decimals(number(row, "agree")), decimals(number(row, "kappa"), 2))
        # The summary may list only some.
        total = int(max(len(parted), finite_or(number(row, "disagreements_in_all"), 0)))
        lines.append((pair, plain(row.get("n")), *told, f"{total:,}"))
        if parted:
            tables.append(disagreements(parted, known, f"{pair}, disagreements", total))
    note = (
        "Kappa is Cohen's kappa: agreement beyond chance, at most 1, and 0 for chance alone. Low "
        "agreement means that the ASR above depends on the judge."
    )
    head = ("judges", "n", "agree %", "kappa", "disagreements")
    return Section("Judges' agreement", (note,), (), (Table(head, tuple(lines)), *tables))


def finite_or(value: float, other: float) -> float:
    """The value, or `other` if it is not finite."""
    return value if math.isfinite(value) else other


def disagreements(
    rows: Sequence[Row], known: dict[tuple[str, str, str], Row], title: str, total: int
) -> Table:
    """Answers with two verdicts; of many, an evenly spread selection."""
    count = min(len(rows), MOST_DISAGREEMENTS)
    lines: list[tuple[Cell, ...]] = []
    for row in (rows[place * len(rows) // count] for place in range(count)):
        key = key_of(row)
        response = known.get(key, {})
        leads = Link(" · ".join(key), tuple(zip(("id", "method", "style"), key, strict=True)))
        told = "; ".join(f"{name}: {plain(v)}" for name, v in object_of(row, "verdicts").items())
        texts = (excerpt(text_of(response, name)) for name in ("question", "answer"))
        lines.append((leads, told, *texts))
    caption = f"{title}: {count:,} of {total:,}"
    return Table(("response", "verdicts", "question", "answer"), tuple(lines), caption)
