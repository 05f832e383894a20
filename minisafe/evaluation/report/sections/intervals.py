"""Every interval of every share: the plain one, and those by cluster."""

from __future__ import annotations

from minisafe.evaluation.report.rows import (
    ALL,
    CLUSTERS,
    MEAN,
    Row,
    interval,
    number,
    rows_of,
    text_of,
)
from minisafe.evaluation.report.tables import Section, Table, decimals, ends, plain

NOTE = (
    "Answers to questions of one category, or with one verb, are alike, so the plain interval is "
    "too sure. The other two draw whole categories, or whole verbs, with replacement (cluster "
    "bootstrap, 2,000 draws): how far the share would move with other categories or verbs. Where "
    "all are alike, such as at 0 %, a bootstrap cannot tell, and there is none. With fewer than "
    "about 20 clusters it is still too narrow. The other tables show the widest of the three."
)
PARTS = {"rows": "asr", "attacks": "asr", "over_refusal": "refused", "utility": "value"}


def intervals(summary: Row) -> Section | None:
    """One row per share, if any of them has an interval by cluster."""
    lines = []
    for part, field in PARTS.items():
        for row in rows_of(summary, part):
            if text_of(row, "category") in ("", ALL) and text_of(row, "attack") != MEAN:
                names = (text_of(row, "judge"), text_of(row, "method"), content(part, row))
                told = (ends(*interval(row, kind)) for kind in ("", *CLUSTERS))
                lines.append((*names, plain(row.get("n")), decimals(number(row, field)), *told))
    holders = [row for part in PARTS for row in rows_of(summary, part)]
    if not any(f"low_{kind}" in row for row in holders for kind in CLUSTERS):
        return None
    head = ("judge", "method", "share", "n", "per cent", "plain", "by category", "by verb")
    return Section("Intervals", (NOTE,), (), (Table(head, tuple(lines)),))


def content(part: str, row: Row) -> str:
    """What a row is the share of."""
    if part == "rows":
        return f"ASR, {text_of(row, 'style')}"
    if part == "attacks":
        return f"ASR under attack, {text_of(row, 'attack')}"
    if part == "over_refusal":
        return f"over-refusal, {text_of(row, 'kind')}, {text_of(row, 'style')}"
    return f"utility, {text_of(row, 'measure')}"
