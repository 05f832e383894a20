"""Judgements on a run's answers, stored line by line, so that no judge is asked twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from minisafe.evaluation.journal import Journal, digest, opened, whole_lines
from minisafe.evaluation.judges import Judge, Ruling
from minisafe.evaluation.judges.broken import RULES, broken
from minisafe.evaluation.prompts import Prompt
from minisafe.evaluation.records import Judged, Response
from minisafe.files.display import harmless

JUDGEMENTS = "judgements.jsonl"
AT_ONCE = 64  # answers between two syncs to the disk
LONGEST_DETAIL = 2000  # characters of a judge's words to store


def rule_all(
    directory: Path,
    responses: Sequence[Response],
    prompts: Mapping[str, Prompt],
    judges: Sequence[Judge],
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Judged]:
    """Every judge's ruling on every answer, in order; a judge gets only answers without a ruling.

    prompts: by id. A ruling belongs to exactly the texts that it judges (`basis_of`). Raises
    `SettingError` if the file's rulings were changed after they were written.
    """
    known = read_known(directory / JUDGEMENTS)
    found: list[Judged] = []
    with Journal(directory / JUDGEMENTS) as journal:
        for judge in judges:
            keys = [key_of(each, judge, prompts[each.id]) for each in responses]
            open_ = [each for each, key in zip(responses, keys, strict=True) if key not in known]
            for start in range(0, len(open_), AT_ONCE):
                part = open_[start : start + AT_ONCE]
                made = ruled(judge, part, prompts)
                journal.append(each.to_json() for each in made)
                known |= {(*each.key, each.judge, each.basis): each for each in made}
                progress(f"judged by {judge.name}", start + len(part), len(open_))
            found += [known[key] for key in keys]
    return found


def ruled(
    judge: Judge, responses: Sequence[Response], prompts: Mapping[str, Prompt]
) -> list[Judged]:
    """One judge's rulings as records. Where the judge cannot tell whether a text is intact, the
    rules of `broken` do."""
    rulings = judge(
        [prompts[each.id] for each in responses],
        [each.prompt for each in responses],
        [each.answer for each in responses],
    )
    return [
        Judged(
            *each.key, judge.name, basis_of(each, judge, prompts[each.id]), ruling.verdict,
            harmless(ruling.detail, LONGEST_DETAIL), intact(ruling, each.answer), ruling.correct,
        )
        for each, ruling in zip(responses, rulings, strict=True)
    ]  # fmt: skip


def intact(ruling: Ruling, answer: str) -> bool:
    """Whether an answer is intact: by the judge, or else by rules."""
    return broken(answer) is None if ruling.intact is None else ruling.intact


Known = tuple[str, str, str, str, str]


def key_of(response: Response, judge: Judge, prompt: Prompt) -> Known:
    """The key of a ruling: judge, answer and basis."""
    return (*response.key, judge.name, basis_of(response, judge, prompt))


def basis_of(response: Response, judge: Judge, prompt: Prompt) -> str:
    """A hash of everything that decides a ruling: the judge, the answer, and its prompt."""
    return digest([
        judge.version, RULES, response.kind, response.question, response.prompt, response.answer,
        prompt.record,
    ])  # fmt: skip


def read_known(path: Path) -> dict[Known, Judged]:
    """The rulings of a file; the last one on an answer counts. Raises `SettingError`."""
    found: dict[Known, Judged] = {}
    for where, line in whole_lines(path):
        each = Judged.from_json(opened(line, where), where)
        found[(*each.key, each.judge, each.basis)] = each
    return found
