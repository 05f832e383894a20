"""The shares of the verdicts on harmful prompts."""

from __future__ import annotations

from minisafe.evaluation.report.rows import ALL, Row, number, rows_of, text_of
from minisafe.evaluation.report.tables import Section, Table, decimals, plain, share


def verdicts(summary: Row) -> Section | None:
    """The shares of the verdicts, for each method and style."""
    rows = [row for row in rows_of(summary, "rows") if text_of(row, "category") == ALL]
    if not rows:
        return None
    lines, notes = [], []
    for row in rows:
        told = (number(row, name) for name in ("refused", "inconclusive"))
        names = (text_of(row, name) for name in ("judge", "method", "style"))
        lines.append((*names, plain(row.get("n")), share(row, "asr"), *map(decimals, told)))
    sums = [sum(number(row, name) for name in ("asr", "refused", "inconclusive")) for row in rows]
    if any(abs(each - 100) > 0.5 for each in sums):
        notes.append("In some rows the three shares do not add up to 100 %; do not trust them.")
    head = ("judge", "method", "style", "n", "ATTACK_SUCCEEDED %", "REFUSED %", "INCONCLUSIVE %")
    table = Table(head, tuple(lines), "Answers to harmful prompts")
    return Section("Verdicts on harmful prompts", tuple(notes), (), (table,))
