"""What a reader came for: a verdict in one sentence, the picture, the worst case per method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from minisafe.evaluation.report.plots import Point, Scatter
from minisafe.evaluation.report.rows import (
    MEAN,
    WORST,
    Row,
    number,
    pick,
    rows_of,
    text_of,
    unique,
    widest,
)
from minisafe.evaluation.report.sections.results import TEXT, overall, utility_of
from minisafe.evaluation.report.tables import NOTHING, Section, Table, decimals, share

BASE = "base"
HEAD = (
    "method", "first questions, worst style", "under attack, worst case", "under attack, mean",
    "known answers right", "borderline refused",
)  # fmt: skip
WORST_LABEL = "attack success, worst case measured, %"


def headline(summary: Row) -> Section | None:
    """The verdict on the first judge's rulings."""
    judges = unique([*rows_of(summary, "rows"), *rows_of(summary, "attacks")], "judge")
    if not judges:
        return None
    made = [Told(summary, judges[0], name) for name in methods_of(summary, judges[0])]
    points = tuple(each.point() for each in made if math.isfinite(each.point().x))
    picture = Scatter("Safety against utility", "known answers right, %", WORST_LABEL, points)
    caption = f"The worst case per method. Judge: {judges[0]}. Per cent (95 % interval)"
    table = Table(HEAD, tuple(each.line() for each in made), caption)
    verdict = sentence(made, summary)
    return Section("In short", (verdict,), (picture,) if points else (), (table,))


def methods_of(summary: Row, judge: str) -> list[str]:
    """The methods that answered harmful prompts."""
    rows = [*rows_of(summary, "rows"), *rows_of(summary, "attacks")]
    return unique(pick(rows, "judge", judge), "method")


class Told:
    """One method's numbers for the verdict; rows are empty where nothing was measured."""

    def __init__(self, summary: Row, judge: str, name: str):
        def own(part: str) -> list[Row]:
            return pick(pick(rows_of(summary, part), "judge", judge), "method", name)

        attacks = own("attacks")
        self.name = name
        self.plain = worst(pick(overall(summary, judge), "method", name))
        self.attack = next(iter(pick(attacks, "attack", WORST)), {})
        self.mean = number(next(iter(pick(attacks, "attack", MEAN)), {}), "asr")
        self.n_attacks = number(next(iter(pick(attacks, "attack", MEAN)), {}), "n")
        utility = pick(utility_of(summary, judge), "method", name)
        utility = [row for row in utility if text_of(row, "measure") != TEXT]
        known = [number(row, "value") for row in utility]
        self.known = fmean(known) if known else math.nan
        self.known_ends = means_of_ends(utility)
        self.borderline = worst(pick(own("over_refusal"), "kind", "borderline"), "refused")

    def point(self) -> Point:
        """The method in the picture: its worst case, attacked or not, over what it knows."""
        row = worst([row for row in (self.plain, self.attack) if row])
        return Point(self.name, self.known, *self.known_ends, number(row, "asr"), *widest(row))

    def line(self) -> tuple[str, ...]:
        """The method's row of the table."""
        return (
            self.name, named(self.plain, "style"), named(self.attack, "of"), decimals(self.mean),
            decimals(self.known), share(self.borderline or None, "refused"),
        )  # fmt: skip


def worst(rows: Sequence[Row], field: str = "asr") -> Row:
    """The row with the largest share; an empty one of none."""
    known = [row for row in rows if math.isfinite(number(row, field))]
    return max(known, key=lambda row: number(row, field), default={})


def means_of_ends(rows: Sequence[Row]) -> tuple[float, float]:
    """The means of the lower and of the upper ends of intervals."""
    if not rows:
        return math.nan, math.nan
    lows, highs = zip(*map(widest, rows), strict=True)
    return fmean(lows), fmean(highs)


def named(row: Row, name: str) -> str:
    """A share with its interval and the name of what did best."""
    return f"{share(row, 'asr')}: {text_of(row, name)}" if row else NOTHING


def sentence(made: Sequence[Told], summary: Row) -> str:
    """The verdict: the chosen method (else the first) beside the base."""
    by_name = {each.name: each for each in made}
    mine = by_name.get(text_of(summary, "against"), made[0])
    base = by_name.get(BASE) if mine.name != BASE else None
    harm = [
        f"{value(mine.plain)} % of harmful first questions in the worst style"
        + aside(value(base.plain) if base else NOTHING)
    ] if mine.plain else []  # fmt: skip
    if mine.attack:
        attack = f"{mine.n_attacks:.0f} attacks, {text_of(mine.attack, 'of')}"
        beside = aside(value(base.attack) if base else NOTHING)
        harm.append(f"{value(mine.attack)} % under the worst of {attack}{beside}")
    use = [
        f"gets {decimals(mine.known)} % of known answers right"
        + aside(decimals(base.known) if base else NOTHING)
    ] if math.isfinite(mine.known) else []  # fmt: skip
    if mine.borderline:
        use.append(f"refuses {decimals(number(mine.borderline, 'refused'))} % of borderline ones")
    kept = f"it {' and '.join(use)}" if use else "what it keeps of the utility was not measured"
    missing = "" if mine.attack else " Attacks were not measured."
    return (
        f"{mine.name} answers {' and '.join(harm)}; {kept}.{missing}{not_shown(summary, mine)}"
        f"{doubt(mine)}"
    )


def not_shown(summary: Row, mine: Told) -> str:
    """That the worst case is not shown to be below the base's, if that is so."""
    rows = pick(pick(rows_of(summary, "paired"), "other", BASE), "style", WORST)
    p_values = [number(row, name) for row in rows for name in ("p_holm", "p_cluster_holm")]
    shown = [p < 0.05 for p in p_values if math.isfinite(p)]
    safer = all(number(row, "difference") < 0 for row in rows)
    if not rows or (safer and all(shown)):
        return ""
    return f" Under attack, {mine.name} is not shown to be safer than the base."


def value(row: Row) -> str:
    """A row's attack success."""
    return decimals(number(row, "asr"))


def aside(base: str) -> str:
    """The base's value in brackets, if there is one."""
    return "" if base == NOTHING else f" (base: {base} %)"


def doubt(mine: Told) -> str:
    """A warning if the judge could not place many of the method's answers."""
    unclear = max(
        (number(row, "inconclusive") for row in (mine.plain, mine.attack) if row), default=0.0
    )
    if not unclear > 1:
        return ""
    return f" The judge could not place up to {decimals(unclear)} % more of these answers."
