"""Multiple-choice sets: a question with its choices, and the files that hold them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisafe.errors import PromptError
from minisafe.evaluation.prompts.rows import MAX_BYTES
from minisafe.files import json_lines, parse_json, read_text
from minisafe.files.display import harmless

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
COLUMNS = ("question", "a", "b", "c", "d", "answer")  # of an MMLU file, which usually has no header
TRUTHFUL = ("question", "best answer", "correct answers", "incorrect answers")  # of TruthfulQA's
FORMATS = "expected question, choices and answer, or question and mc1_targets or mc2_targets"


@dataclass(frozen=True)
class Choice:
    """A question, its choices, and the right ones: one, or with "mc2" one or more."""

    question: str
    choices: tuple[str, ...]
    right: tuple[bool, ...]
    kind: str = "letters"


def load_choices(path: str | Path) -> list[Choice]:
    """Read a multiple-choice set, by the file's suffix.

    CSV: MMLU's six columns (question, A, B, C, D, answer letter), without a header or with one that
    names them in any order; or TruthfulQA's own columns (question, best answer, correct answers,
    incorrect answers, with semicolons between answers). JSON (a list of objects) and JSONL:
    `question`, `choices` and `answer`, an index from 0 or a letter; or TruthfulQA's `question` with
    `mc1_targets` and `mc2_targets`, each {"choices": [...], "labels": [0 or 1, ...]} or
    {answer: 0 or 1}. A TruthfulQA question becomes two entries: mc1, the best answer among the
    incorrect ones, and mc2, all correct ones among the same.

    Raises `PromptError`, with the row, if the file is invalid.
    """
    path = Path(path)
    readers = {".csv": read_csv, ".json": read_json, ".jsonl": read_jsonl}
    if path.suffix not in readers:
        raise PromptError(f"{path}: unknown format; expected {', '.join(readers)}")
    return some(list(readers[path.suffix](path)), f"{path}: ")


def some(choices: Sequence[Choice], source: str = "") -> list[Choice]:
    """The choices; raises `PromptError` if there are none."""
    if not choices:
        raise PromptError(f"{source}no questions; expected at least one")
    return list(choices)


def spread(choices: Sequence[Choice], limit: int | None) -> list[Choice]:
    """At most `limit` questions, evenly spread, each with all its entries; all without a limit."""
    asked = list(dict.fromkeys(each.question for each in choices))
    if limit is None or len(asked) <= limit:
        return list(choices)
    kept = {asked[place * len(asked) // limit] for place in range(limit)}
    return [each for each in choices if each.question in kept]


def read_csv(path: Path) -> Iterator[Choice]:
    """The choices of an MMLU-style CSV file, or of TruthfulQA's."""
    text, source = read_text(path, MAX_BYTES, PromptError), str(path)
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    order: list[int] | None = None
    try:
        for cells in lines:
            where = f"{source}, line {lines.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            names = [cell.strip().lower() for cell in cells]
            if order is None and set(TRUTHFUL) <= set(names):
                yield from read_truthful(lines, names, source)
                return
            if order is None:
                is_header = set(COLUMNS) <= set(names)
                order = [names.index(name) if is_header else n for n, name in enumerate(COLUMNS)]
                width = len(cells) if is_header else len(COLUMNS)
                if is_header:
                    continue
            if len(cells) != width:
                raise PromptError(
                    f"{where}: {len(cells)} columns; expected {width}, such as {COLUMNS}"
                )
            question, *choices, answer = (cells[place] for place in order)
            yield one_right(question, choices, answer.strip(), where)
    except csv.Error as error:
        raise PromptError(f"{source}, line {lines.line_num}: not CSV ({error})") from None


def read_truthful(
    lines: Iterable[Sequence[str]], names: Sequence[str], source: str
) -> Iterator[Choice]:
    """The choices of TruthfulQA's CSV file, whose head is `names`: for each row mc1 and mc2."""
    places = [names.index(name) for name in TRUTHFUL]
    for number, cells in enumerate(lines, 1):
        where = f"{source}, question {number}"
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(names):
            raise PromptError(f"{where}: {len(cells)} columns; expected {len(names)}")
        question, best, correct, incorrect = (cells[place].strip() for place in places)
        wrong = parts(incorrect)
        right = [each for each in parts(correct) if each not in wrong]
        yield with_right(question, [best], [each for each in wrong if each != best], "mc1", where)
        yield with_right(question, right, wrong, "mc2", where)


def parts(cell: str) -> list[str]:
    """The different answers between a cell's semicolons."""
    return list(dict.fromkeys(each.strip() for each in cell.split(";") if each.strip()))


def with_right(
    question: str, right: Sequence[str], wrong: Sequence[str], kind: str, where: str
) -> Choice:
    """A question whose right choices come last: of equally likely ones, the first counts."""
    marks = (*[False] * len(wrong), *[True] * len(right))
    return checked(Choice(question, (*wrong, *right), marks, kind), where)


def read_json(path: Path) -> Iterator[Choice]:
    """The choices of a JSON list."""
    data = parse_json(read_text(path, MAX_BYTES, PromptError), str(path), PromptError)
    if not isinstance(data, list):
        raise PromptError(f"{path}: expected a list of questions, got {type(data).__name__}")
    for number, record in enumerate(data):
        yield from from_record(record, f"{path}, question {number}")


def read_jsonl(path: Path) -> Iterator[Choice]:
    """The choices of a file with one JSON object per line."""
    for number, record in json_lines(path, PromptError, MAX_BYTES):
        yield from from_record(record, f"{path}, line {number}")


def from_record(record: Any, where: str) -> Iterator[Choice]:
    """The choices that a JSON object describes: one, or TruthfulQA's two."""
    if not isinstance(record, Mapping) or not isinstance(record.get("question"), str):
        raise PromptError(f"{where}: no question; {FORMATS}")
    question = record["question"]
    kinds = [kind for kind in ("mc1", "mc2") if f"{kind}_targets" in record]
    if not kinds and not {"choices", "answer"} <= set(record):
        raise PromptError(f"{where}: no answers; {FORMATS}")
    for kind in kinds:
        texts, labels = targets(record[f"{kind}_targets"], f"{where}, {kind}_targets")
        yield checked(Choice(question, texts, labels, kind), where)
    if not kinds:
        if not isinstance(record["choices"], list):
            raise PromptError(f"{where}: choices are not a list; {FORMATS}")
        yield one_right(question, record["choices"], record["answer"], where)


def targets(data: Any, where: str) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    """TruthfulQA's answers and whether each is true, from either of the two layouts."""
    if isinstance(data, Mapping) and isinstance(data.get("choices"), list):
        texts, labels = data["choices"], data.get("labels")
    elif isinstance(data, Mapping):
        texts, labels = list(data), list(data.values())
    else:
        texts, labels = [], None
    is_list = isinstance(labels, list) and len(labels) == len(texts)
    if not is_list or any(label not in (0, 1) for label in labels or ()):
        raise PromptError(
            f"{where}: expected answers with a label 0 or 1 each, as choices and labels of one "
            "length or as answer: label"
        )
    return tuple(texts), tuple(bool(label) for label in labels or ())


def one_right(question: str, choices: Sequence[Any], answer: Any, where: str) -> Choice:
    """A question whose right choice is given by letter or by index from 0."""
    known = LETTERS[: len(choices)]
    if isinstance(answer, str) and len(answer) == 1 and answer.upper() in known:
        answer = known.index(answer.upper())
    is_index = isinstance(answer, int) and not isinstance(answer, bool)
    if len(choices) > 1 and not (is_index and 0 <= answer < len(choices)):
        raise PromptError(
            f"{where}: the answer is {harmless(repr(answer), 60)}; expected a letter A to "
            f"{known[-1:]} or an index 0 to {len(choices) - 1}"
        )
    right = tuple(place == answer for place in range(len(choices)))
    return checked(Choice(question.strip(), tuple(choices), right), where)


def checked(choice: Choice, where: str) -> Choice:
    """The choice; raises `PromptError` if it is invalid."""
    if not choice.question.strip():
        raise PromptError(f"{where}: the question is empty")
    if not 2 <= len(choice.choices) <= len(LETTERS):
        raise PromptError(f"{where}: {len(choice.choices)} choices; expected 2 to {len(LETTERS)}")
    if not all(isinstance(text, str) and text.strip() for text in choice.choices):
        raise PromptError(f"{where}: a choice is empty or not text; expected text")
    n_right = sum(choice.right)
    if n_right < 1 or (choice.kind != "mc2" and n_right > 1):
        wanted = "one or more" if choice.kind == "mc2" else "one"
        raise PromptError(f"{where}: {n_right} choices are right; expected {wanted}")
    return choice
