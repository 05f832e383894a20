"""Several runs, such as training seeds, as one table: mean, range, and an interval over runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from minisafe.evaluation.report.rows import ALL, Row, number, object_of, rows_of, text_of
from minisafe.evaluation.report.ruled import percent
from minisafe.evaluation.report.sections.intervals import PARTS, content
from minisafe.evaluation.report.tables import Section, Table, decimals, ends, plain
from minisafe.evaluation.statistics import cluster_interval

Name = tuple[str, str, str]  # judge, method, share
NOTE = (
    "One value per run, then the mean over runs and its range, lowest to highest. The interval "
    "draws whole runs with replacement (cluster bootstrap): how far the mean would move with other "
    "runs like these. With few runs it is too narrow; then trust the range."
)


def combine(summaries: Mapping[str, Row]) -> dict[str, Any]:
    """Summaries by the name of their run, as one. A share that a run does not have is left out of
    its mean; `n_runs` tells how many have it."""
    found: dict[Name, dict[str, float]] = {}
    for run, summary in summaries.items():
        for name, value in shares(summary):
            found.setdefault(name, {})[run] = value
    runs = [{"run": run, **about_run(summary)} for run, summary in summaries.items()]
    return {"runs": runs, "over_runs": [row_of(name, each) for name, each in found.items()]}


def shares(summary: Row) -> Iterator[tuple[Name, float]]:
    """Every share over all categories, in per cent."""
    for part, field in PARTS.items():
        for row in rows_of(summary, part):
            if text_of(row, "category") in ("", ALL):
                name = text_of(row, "judge"), text_of(row, "method"), content(part, row)
                yield name, number(row, field)


def about_run(summary: Row) -> dict[str, Any]:
    """What tells one run from another."""
    about = object_of(summary, "about")
    return {name: about.get(name) for name in ("seed", "created", "prompts")}


def row_of(name: Name, values: Mapping[str, float]) -> dict[str, Any]:
    """One share over runs; the interval is None if it cannot be told."""
    judge, method, what = name
    low, high = cluster_interval(list(values.values()), list(values))
    return {
        "judge": judge, "method": method, "share": what, "n_runs": len(values),
        "mean": fmean(values.values()), "least": min(values.values()),
        "most": max(values.values()), "low": percent(low / 100), "high": percent(high / 100),
        "values": dict(values),
    }  # fmt: skip


def sections_of_runs(summary: Row) -> tuple[Section, ...]:
    """The combined report: one row per share, and what the runs were."""
    rows, runs = rows_of(summary, "over_runs"), rows_of(summary, "runs")
    head = ("judge", "method", "share", "runs", "mean %", "lowest to highest", "interval over runs")
    table = Table(head, tuple(map(line, rows)))
    listed = tuple(tuple(plain(run.get(name)) for name in OF_RUN) for run in runs)
    return (
        Section("Means over runs", (NOTE,), (), (table,)),
        Section("The runs", (), (), (Table(OF_RUN, listed),)),
    )


OF_RUN = ("run", "seed", "created", "prompts")


def line(row: Row) -> tuple[str, ...]:
    """A share over runs as text."""
    return (
        text_of(row, "judge"), text_of(row, "method"), text_of(row, "share"),
        plain(row.get("n_runs")), decimals(number(row, "mean")),
        ends(number(row, "least"), number(row, "most")),
        ends(number(row, "low"), number(row, "high")),
    )  # fmt: skip


def unnamed(paths: Sequence[str]) -> list[str]:
    """Short names for runs, numbered where two are the same."""
    return [
        name if paths.count(name) == 1 else f"{name} ({number})"
        for number, name in enumerate(paths, 1)
    ]
