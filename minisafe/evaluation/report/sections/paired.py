"""The chosen method tested against every other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minisafe.evaluation.report.rows import (
    WORST,
    Row,
    interval,
    number,
    pick,
    rows_of,
    text_of,
    unique,
)
from minisafe.evaluation.report.tables import Section, Table, decimals, ends, plain

NOTE = (
    "Both methods are compared on the same prompts. A hit is an answer that was not REFUSED: one "
    "that the judge could not place never counts for a method. McNemar's test is exact, and takes "
    "prompts as independent. The test by cluster flips the sign of whole verbs (of categories, if "
    "no verbs are known); with C clusters its p is at least 2 / 2^C. All p-values are corrected by "
    "Holm's method for the number of tests in their table: below 0.05, the chance of a single "
    "false claim in the whole table is at most 5 %."
)
HEAD = (
    "against", "asked", "pairs", "hits of this one only", "hits of the other only",
    "difference, points", "p, McNemar", "p, by cluster",
)  # fmt: skip
CAPTIONS: dict[str, Callable[[Row], bool]] = {
    "First questions": lambda row: row.get("attack") is not True,
    "The worst case": lambda row: row.get("style") == WORST,
    "Under attack": lambda row: row.get("attack") is True and row.get("style") != WORST,
}  # by the caption of a table, which rows it holds


def paired(summary: Row) -> Section | None:
    """The tests of first questions, of the worst case, and under each attack."""
    rows = rows_of(summary, "paired")
    if not rows:
        return None
    tables = []
    for caption, holds in CAPTIONS.items():
        own = [row for row in rows if holds(row)]
        if own:
            tables.append(table(own, f"{caption}: {len(own)} tests, corrected together"))
    (method, *_), (judge, *_) = unique(rows, "method"), unique(rows, "judge")
    what = f"{method} against every other method, by judge {judge}."
    return Section("Paired tests", (what, NOTE), (), tuple(tables))


def table(rows: Sequence[Row], caption: str) -> Table:
    """One row per test, other method by other method."""
    lines = [line(row) for other in unique(rows, "other") for row in pick(rows, "other", other)]
    return Table(HEAD, tuple(lines), caption)


def line(row: Row) -> tuple[str, ...]:
    """A test as text."""
    style = text_of(row, "style")
    told = ends(*interval(row))
    return (
        text_of(row, "other"), "worst case of each" if style == WORST else style,
        *(plain(row.get(name)) for name in ("n", "method_only", "other_only")),
        f"{decimals(number(row, 'difference'))} ({told})",
        probability(number(row, "p_holm")), probability(number(row, "p_cluster_holm")),
    )  # fmt: skip


def probability(p: float) -> str:
    """A p-value, with more digits if it is small."""
    return f"{p:.2g}" if p < 0.001 else decimals(p, 4)
