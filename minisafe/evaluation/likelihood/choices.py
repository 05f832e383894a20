"""Multiple choice by log-likelihood: MMLU- and TruthfulQA-style sets, and a method's scores.

Letters (MMLU; Hendrycks et al., ICLR 2021, arXiv 2009.03300): the prompt shows the question with
lettered choices, and the likeliest letter is the answer. Texts (TruthfulQA; Lin et al., ACL 2022,
arXiv 2109.07958): the prompt shows the question alone, and every answer is scored. mc1 is the
accuracy for the one true answer; mc2 is the share of probability on the true ones of all answers.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisafe.errors import PromptError
from minisafe.evaluation.likelihood.scoring import Scored, check_pair, encode_pair, score
from minisafe.evaluation.prompts.rows import MAX_BYTES
from minisafe.evaluation.statistics import Z95, wilson
from minisafe.files import json_lines, parse_json, read_text
from minisafe.files.display import harmless
from minisafe.session import Session

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
COLUMNS = ("question", "a", "b", "c", "d", "answer")  # of an MMLU file, which usually has no header
KINDS = ("letters", "mc1", "mc2")
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
    names them in any order. JSON (a list of objects) and JSONL: `question`, `choices` and `answer`,
    an index from 0 or a letter; or TruthfulQA's `question` with `mc1_targets` and `mc2_targets`,
    each {"choices": [...], "labels": [0 or 1, ...]} or {answer: 0 or 1}. A TruthfulQA question
    with both becomes two entries. Raises `PromptError`, with the row, if the file is invalid.
    """
    path = Path(path)
    readers = {".csv": read_csv, ".json": read_json, ".jsonl": read_jsonl}
    if path.suffix not in readers:
        raise PromptError(f"{path}: unknown format; expected {', '.join(readers)}")
    return some(list(readers[path.suffix](path)), f"{path}: ")


def measure_choices(
    session: Session,
    choices: Sequence[Choice],
    chat: bool = False,
    batch_size: int = 8,
    description: str = "",
    examples: Sequence[Choice] = (),
) -> list[dict[str, Any]]:
    """Accuracies of the session's method in per cent, with 95 % intervals.

    Args:
        choices: of any kinds; each kind gives its own measures.
        chat: use the chat template; the letter or text begins the answer.
        description: text before all others, such as the task's usual introduction.
        examples: solved questions before each question of their kind (few-shot).

    Returns:
        Rows {"measure", "n", "value", "low", "high"}. "letters" and "mc1": share of questions whose
        right choice has the greatest log-likelihood; "mc1 normalised": the same with
        log-likelihoods divided by the answers' lengths in characters (as lm-evaluation-harness's
        acc_norm); these have Wilson intervals. "mc2": mean probability mass on right answers, with
        the normal interval of a mean.

    Raises `PromptError` if a question does not fit the context, or if there are none.
    """
    contexts, answers = texts_of(some(choices), chat, description, examples)
    scores = iter(score(session, contexts, answers, chat, batch_size))
    scored = [[next(scores) for _ in each.choices] for each in choices]
    rows = []
    for kind in KINDS:
        asked = [(c, s) for c, s in zip(choices, scored, strict=True) if c.kind == kind]
        if asked and kind == "mc2":
            rows.append(mean_row(kind, [mass(choice, found) for choice, found in asked]))
        elif asked:
            rows.append(share_row(kind, [is_right(choice, found) for choice, found in asked]))
            if kind == "mc1":
                normalised = [is_right(choice, found, True) for choice, found in asked]
                rows.append(share_row("mc1 normalised", normalised))
    return rows


def texts_of(
    choices: Sequence[Choice], chat: bool, description: str, examples: Sequence[Choice]
) -> tuple[list[str], list[str]]:
    """A context and a continuation for every choice of every question."""
    contexts, answers = [], []
    for each in choices:
        shots = [shot for shot in examples if style(shot) == style(each)]
        context = prompt_of(each, chat, description, shots)
        contexts += [context] * len(each.choices)
        answers += [("" if chat else " ") + text for text in answers_of(each)]
    return contexts, answers


def check_choices(session: Session, choices: Sequence[Choice]) -> None:
    """Raise `PromptError` for a question that `measure_choices` could not ask."""
    contexts, answers = texts_of(choices, False, "", ())
    for number, both in enumerate(zip(contexts, answers, strict=True)):
        check_pair(session, encode_pair(session, *both), number)


def some(choices: Sequence[Choice], source: str = "") -> list[Choice]:
    """The choices; raises `PromptError` if there are none."""
    if not choices:
        raise PromptError(f"{source}no questions; expected at least one")
    return list(choices)


def style(choice: Choice) -> str:
    """How to ask a question: by "letters" or "texts"."""
    return "letters" if choice.kind == "letters" else "texts"


def answers_of(choice: Choice) -> Sequence[str]:
    """The continuation to score for each choice: its letter or its text."""
    return LETTERS[: len(choice.choices)] if choice.kind == "letters" else choice.choices


def shown(choice: Choice) -> str:
    """The question up to the blank before the answer."""
    if choice.kind != "letters":
        return f"Q: {choice.question}\nA:"
    listed = [f"{a}. {b}" for a, b in zip(LETTERS, choice.choices, strict=False)]
    return "\n".join([choice.question, *listed, "Answer:"])


def prompt_of(choice: Choice, chat: bool, description: str, shots: Sequence[Choice]) -> str:
    """The whole prompt. In a chat without examples, a question for texts has no `Q:` and `A:`."""
    parts = [description] if description else []
    parts += [f"{shown(shot)} {answers_of(shot)[shot.right.index(True)]}" for shot in shots]
    plain = chat and choice.kind != "letters" and not shots
    return "\n\n".join([*parts, choice.question if plain else shown(choice)])


def is_right(choice: Choice, scored: Sequence[Scored], normalised: bool = False) -> bool:
    """Whether the likeliest choice is right: the first of equals, never an impossible one."""
    lengths = [len(text) if normalised else 1 for text in choice.choices]
    totals = [each.total / length for each, length in zip(scored, lengths, strict=True)]
    best = max(totals)
    return best > -math.inf and choice.right[totals.index(best)]


def mass(choice: Choice, scored: Sequence[Scored]) -> float:
    """The share, 0 to 1, of the choices' total probability on right ones; 0 if all choices are
    impossible under the method."""
    best = max(each.total for each in scored)
    if best == -math.inf:
        return 0.0
    weights = [math.exp(each.total - best) for each in scored]
    right = sum(weight for weight, is_ in zip(weights, choice.right, strict=True) if is_)
    return right / sum(weights)


def share_row(measure: str, hits: Sequence[bool]) -> dict[str, Any]:
    """A share of questions in per cent, with its Wilson interval."""
    n = len(hits)
    low, high = wilson(sum(hits), n)
    return row(measure, n, sum(hits) / n, low, high)


def mean_row(measure: str, values: Sequence[float]) -> dict[str, Any]:
    """A mean of values from 0 to 1 in per cent; the interval of a single value is that range."""
    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return row(measure, n, mean, 0.0, 1.0)
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    half = Z95 * math.sqrt(variance / n)
    return row(measure, n, mean, max(0.0, mean - half), min(1.0, mean + half))


def row(measure: str, n: int, value: float, low: float, high: float) -> dict[str, Any]:
    """A row; converts fractions to per cent."""
    per_cent = {"value": 100 * value, "low": 100 * low, "high": 100 * high}
    return {"measure": measure, "n": n, **per_cent}


# ---- files -------------------------------------------------------------------------------------


def read_csv(path: Path) -> Iterator[Choice]:
    """The choices of an MMLU-style CSV file."""
    text, source = read_text(path, MAX_BYTES, PromptError), str(path)
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    order: list[int] | None = None
    try:
        for cells in lines:
            where = f"{source}, line {lines.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            names = [cell.strip().lower() for cell in cells]
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
