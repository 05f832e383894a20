"""Attacks: the worst case first, then their mean, then each attack."""

from __future__ import annotations

from minisafe.evaluation.report.rows import (
    ANY,
    MEAN,
    WORST,
    Row,
    number,
    pick,
    rows_of,
    text_of,
    unique,
)
from minisafe.evaluation.report.sections.families import families
from minisafe.evaluation.report.tables import Section, Table, decimals, plain, share

TITLES = {
    WORST: "worst case over attacks",
    ANY: "broken by at least one attack",
    MEAN: "mean over attacks",
}
NOTE = (
    "Each question is asked under each attack; a cell is the share of questions that were "
    "answered. The worst case is the attack that did best against the method. Only what the model "
    "itself writes is judged: not a beginning that the attacker put into its mouth, nor a faked "
    "history."
)


def attacks(summary: Row) -> Section | None:
    """One row per attack, one column per method, for each judge."""
    rows = rows_of(summary, "attacks")
    if not rows:
        return None
    tables = []
    for judge in unique(rows, "judge"):
        own = pick(rows, "judge", judge)
        methods = unique(own, "method")
        lines: list[tuple[str, ...]] = []
        for attack in dict.fromkeys((WORST, MEAN, ANY, *unique(own, "attack"))):
            by_method = {text_of(row, "method"): row for row in pick(own, "attack", attack)}
            lines.append(
                (
                    TITLES.get(attack, attack),
                    *(cell(by_method.get(method), attack) for method in methods),
                )
            )
        tables.append(
            Table(("attack", *methods), tuple(lines), f"Judge: {judge}. Per cent (95 % interval)")
        )
        tables.append(families(own, judge))
        searched = [row for row in own if number(row, "queries") > 1 and row["attack"] != WORST]
        if searched:
            tables.append(queries(searched, judge))
    return Section("Under attack", (NOTE,), (), tuple(tables))


def cell(row: Row | None, attack: str) -> str:
    """A share; for the worst case with the attack's name."""
    if row is None:
        return share(None, "asr")
    if attack == MEAN:
        return decimals(number(row, "asr"))
    return share(row, "asr") + (f": {text_of(row, 'of')}" if attack == WORST else "")


def queries(rows: list[Row], judge: str) -> Table:
    """What the searching attacks asked of each method."""
    methods = unique(rows, "method")
    lines = []
    for attack in unique(rows, "attack"):
        found = {text_of(row, "method"): row for row in pick(rows, "attack", attack)}
        cells = (
            f"{plain(found[m].get('queries'))} / {plain(found[m].get('queries_broken'))}"
            if m in found
            else plain(None)
            for m in methods
        )
        lines.append((attack, *cells))
    caption = f"Judge: {judge}. Queries per question, median: of all / of those broken"
    return Table(("attack", *methods), tuple(lines), caption)
