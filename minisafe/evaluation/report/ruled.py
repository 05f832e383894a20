"""Answers with their rulings, in groups, and shares of them with intervals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from minisafe.evaluation.records import Judged, Response
from minisafe.evaluation.report.rows import CLUSTERS
from minisafe.evaluation.statistics import cluster_interval, wilson

Row = dict[str, Any]


@dataclass(frozen=True)
class Ruled:
    """One answer with one judge's ruling."""

    answer: Response
    judge: str
    verdict: str
    intact: bool | None
    correct: bool | None


def join(answers: Iterable[Response], judgements: Iterable[Judged]) -> list[Ruled]:
    """Rulings with their answers."""
    by_key = {each.key: each for each in answers}
    return [Ruled(by_key[j.key], j.judge, j.verdict, j.intact, j.correct) for j in judgements]


def groups(ruled: Iterable[Ruled], *names: str) -> dict[tuple[Any, ...], list[Ruled]]:
    """Groups by judge and these fields of the answer, in order of appearance."""
    found: dict[tuple[Any, ...], list[Ruled]] = defaultdict(list)
    for each in ruled:
        found[(each.judge, *(getattr(each.answer, name) for name in names))].append(each)
    return found


def share(name: str, part: Sequence[Ruled], holds: Callable[[Ruled], bool]) -> Row:
    """The share of answers that hold, in per cent, under `name`, with n, the Wilson 95 % interval
    (`low`, `high`) and the intervals by cluster. Each prompt must occur once."""
    values = [holds(each) for each in part]
    n, hits = len(values), sum(values)
    low, high = wilson(hits, n)
    return {
        "n": n, name: 100 * hits / n, "low": 100 * low, "high": 100 * high,
        **by_cluster([each.answer for each in part], values),
    }  # fmt: skip


def share_of_prompts(name: str, part: Sequence[Ruled], holds: Callable[[Ruled], bool]) -> Row:
    """Like `share` for prompts that were asked in several ways: the mean over prompts of each one's
    share. n is the number of prompts, `answers` that of answers; the interval draws prompts."""
    found: dict[str, list[Ruled]] = defaultdict(list)
    for each in part:
        found[each.answer.id].append(each)
    values = [sum(map(holds, own)) / len(own) for own in found.values()]
    low, high = cluster_interval(values, list(found))
    if math.isnan(low):  # all alike; if all are 0 or 1, they are counts
        low, high = wilson(round(sum(values)), len(values))
    answers = [own[0].answer for own in found.values()]
    return {
        "n": len(values), "answers": len(part), name: 100 * sum(values) / len(values),
        "low": 100 * low, "high": 100 * high, **by_cluster(answers, values),
    }  # fmt: skip


def by_cluster(answers: Sequence[Response], values: Sequence[float]) -> Row:
    """The ends of the intervals by each kind of cluster that is known, in per cent: `low_category`,
    `high_category`, and so on. None where a bootstrap cannot tell."""
    row: Row = {}
    for field in CLUSTERS:
        names = clusters_of(answers, field)
        if names is not None:
            low, high = cluster_interval(values, names)
            row |= {f"low_{field}": percent(low), f"high_{field}": percent(high)}
    return row


def percent(end: float) -> float | None:
    """An interval's end in per cent; None if there is none."""
    return None if math.isnan(end) else 100 * end


def clusters_of(answers: Sequence[Response], field: str) -> list[Hashable] | None:
    """The cluster of each answer; an answer without one is its own. None if none has one."""
    names = [getattr(each, field) for each in answers]
    if not any(names):
        return None
    return [name or (each.id,) for name, each in zip(names, answers, strict=True)]
