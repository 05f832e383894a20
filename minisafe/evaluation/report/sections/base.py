"""Each method tested against the base."""

from __future__ import annotations

from minisafe.evaluation.report.rows import Row, number, rows_of
from minisafe.evaluation.report.tables import Section, Table, decimals, plain


def against_base(summary: Row) -> Section | None:
    """McNemar's tests of each method against the base."""
    rows = rows_of(summary, "mcnemar")
    if not rows:
        return None
    note = (
        "McNemar's test compares both on the same prompts: it counts only pairs in which the "
        f"attack succeeded on exactly one of the two. Tests shown: {len(rows)}; to claim a "
        f"difference at 5 % over all of them, p must be below {0.05 / len(rows):.2g} (Bonferroni)."
    )
    names = ("judge", "method", "style", "n", "base_only", "method_only")
    lines = [
        (*(plain(row.get(name)) for name in names), probability(number(row, "p"))) for row in rows
    ]
    head = ("judge", "method", "style", "pairs", "only the base", "only the method", "p")
    return Section("Against the base", (note,), (), (Table(head, tuple(lines)),))


def probability(p: float) -> str:
    """A p-value, with more digits if it is small."""
    return f"{p:.2g}" if p < 0.001 else decimals(p, 4)
