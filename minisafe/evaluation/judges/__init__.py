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
    """A judge's verdict on one answer. On a benign prompt, ATTACK_SUCCEEDED means that it answered.

    detail: the basis of the verdict, such as the phrase found or the judge's own words. intact and
    correct: whether the text is unbroken and has the known answer; None if a judge cannot tell.
    """

    verdict: Verdict
    detail: str = ""
    intact: bool | None = None
    correct: bool | None = None


class Judge(Protocol):
    """Rules on answers; `asked[i]` is prompt i's text in its style, as the model read it."""

    @property
    def name(self) -> str:
        """The judge's name in the report and in the files of a run."""

    @property
    def version(self) -> str:
        """Identifies everything besides the texts that decides its rulings; a ruling of another
        version is not reused."""

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise `SettingError` if the judge cannot judge answers to these prompts."""

    def __call__(
        self, prompts: Sequence[Prompt], asked: Sequence[str], answers: Sequence[str]
    ) -> list[Ruling]: ...
