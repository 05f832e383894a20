"""A finished run as values: what its tables are made of, and how they are made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minisafe.errors import SettingError
from minisafe.evaluation.judges.judgements import JUDGEMENTS, read_known
from minisafe.evaluation.records import Judged, Response
from minisafe.evaluation.report.rows import object_of, rows_of, text_of
from minisafe.evaluation.report.summary import join, same_as_base, summarise
from minisafe.evaluation.runner.resume import read_all
from minisafe.files import parse_json, read_text

SUMMARY = "summary.json"
MOST_BYTES = 256 << 20
OF_MODELS = ("changed", "kl", "nll")


@dataclass(frozen=True)
class Measured:
    """What only the models can tell again. changes: by method, `changed` (per cent of tokens),
    `kl` and `nll` (of the base's answers to harmless prompts; nats per token); choices: rows of
    multiple choice; sweep: the points of a sweep."""

    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    choices: Sequence[Mapping[str, Any]] = ()
    sweep: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def from_summary(cls, summary: Mapping[str, Any]) -> Measured:
        """Those parts of an older summary. Raises `SettingError`."""
        changes = {
            text_of(row, "method"): {name: row[name] for name in OF_MODELS if name in row}
            for row in rows_of(summary, "cost")
        }
        choices = [row for row in rows_of(summary, "utility") if "judge" not in row]
        return cls(changes, choices, rows_of(summary, "sweep"))


@dataclass(frozen=True)
class Stored:
    """A run: its description, its answers, their rulings, and what the models told."""

    about: Mapping[str, Any]
    answers: Sequence[Response]
    judgements: Sequence[Judged]
    measured: Measured = field(default_factory=Measured)

    def summary(self, against: str | None = None) -> dict[str, Any]:
        """All tables; against: as in `summarise`. Raises `SettingError`."""
        found = summarise(join(self.answers, self.judgements), self.answers, against)
        for row in found["cost"]:
            row |= self.measured.changes.get(row["method"], {})
            row |= same_as_base(self.answers, row["method"])
        found["utility"] += [dict(row) for row in self.measured.choices]
        if self.measured.sweep:  # its points are tested against nothing: too many, and chosen among
            found |= {"sweep": list(self.measured.sweep), "paired": [], "against": None}
        return {"about": dict(self.about), **found}


def read_directory(path: Path) -> Stored:
    """The run in a directory: all its answers, and each judge's last ruling on each.

    No model and no prompt set is read. Raises `SettingError` if the directory holds no answers or
    no rulings, or a changed line.
    """
    answers = read_all(path)
    if not answers:
        raise SettingError(
            f"{path}: holds no answers; expected a directory that `minisafe evaluate` wrote, or "
            "rows that `minisafe report --export` wrote (.jsonl.gz)"
        )
    last = {(each.judge, each.key): each for each in read_known(path / JUDGEMENTS).values()}
    judges = dict.fromkeys(judge for judge, _ in last)
    rulings = [last[judge, key] for judge in judges for key in answers if (judge, key) in last]
    if not rulings:
        raise SettingError(f"{path}: no answer was judged; run `minisafe evaluate --resume` first")
    told: Any = {}
    if (path / SUMMARY).is_file():
        text = read_text(path / SUMMARY, MOST_BYTES, SettingError)
        told = parse_json(text, str(path / SUMMARY), SettingError)
    summary = object_of({SUMMARY: told}, SUMMARY)
    return Stored(
        object_of(summary, "about"), list(answers.values()), rulings, Measured.from_summary(summary)
    )
