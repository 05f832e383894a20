"""Judges: whether an answer complied with a prompt or refused it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from minisafe.evaluation.prompts import Prompt
from minisafe.evaluation.records import Verdict

__all__ = ["Judge", "Ruling", "Verdict"]


@dataclass(frozen=True)
class Ruling:
    """A judge's verdict on one answer. ATTACK_SUCCEEDED on a benign prompt means: it was answered.

    detail: what the verdict rests on, such as the phrase found or the judge's own words. intact and
    correct: whether the text is whole and the known answer was given, None where a judge cannot
    tell.
    """

    verdict: Verdict
    detail: str = ""
    intact: bool | None = None
    correct: bool | None = None


class Judge(Protocol):
    """Rules on answers; `asked[i]` is prompt i's text in its style, as the model saw it."""

    @property
    def name(self) -> str:
        """Its name in the report and in the files of a run."""

    @property
    def version(self) -> str:
        """What decides its rulings beside the texts; a ruling of another version is not kept."""

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise `SettingError` where answers to such prompts cannot be judged."""

    def __call__(
        self, prompts: Sequence[Prompt], asked: Sequence[str], answers: Sequence[str]
    ) -> list[Ruling]: ...
