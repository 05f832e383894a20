"""Multiple choice by log-likelihood: MMLU- and TruthfulQA-style sets, and a method's scores.

Letters (MMLU; Hendrycks et al., ICLR 2021, arXiv 2009.03300): the prompt shows the question with
lettered choices, and the likeliest letter is the answer. Texts (TruthfulQA; Lin et al., ACL 2022,
arXiv 2109.07958): the prompt shows the question alone, and every answer is scored. mc1 is the
accuracy for the one true answer; mc2 is the share of probability on the true ones of all answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from minisafe.evaluation.likelihood.choice_files import LETTERS, Choice, some
from minisafe.evaluation.likelihood.scoring import Scored, check_pair, encode_pair, score
from minisafe.evaluation.statistics import Z95, wilson
from minisafe.session import Session

KINDS = ("letters", "mc1", "mc2")
AT_ONCE = 16  # questions between two reports of progress


def measure_choices(
    session: Session,
    choices: Sequence[Choice],
    chat: bool = False,
    batch_size: int = 8,
    description: str = "",
    examples: Sequence[Choice] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Accuracies of the session's method in per cent, with 95 % intervals.

    Args:
        choices: of any kinds; each kind gives its own measures.
        chat: use the chat template; the letter or text begins the answer, to the question as the
            session answers it: with the gate, and read alone where it would be.
        description: text before all others, such as the task's usual introduction.
        examples: solved questions before each question of their kind (few-shot).
        progress: called with how many questions are done, and of how many.

    Returns:
        Rows {"measure", "n", "value", "low", "high"}. "letters" and "mc1": share of questions whose
        right choice has the greatest log-likelihood; "mc1 normalised": the same with
        log-likelihoods divided by the answers' lengths in characters (as lm-evaluation-harness's
        acc_norm); these have Wilson intervals. "mc2": mean probability mass on right answers, with
        the normal interval of a mean.

    Raises `PromptError` if a question does not fit the context, or if there are none.
    """
    scored: list[list[Scored]] = []
    some(choices)
    for start in range(0, len(choices), AT_ONCE):
        part = choices[start : start + AT_ONCE]
        contexts, answers = texts_of(part, chat, description, examples)
        scores = iter(score(session, contexts, answers, chat, batch_size))
        scored += [[next(scores) for _ in each.choices] for each in part]
        progress(len(scored), len(choices))
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


def check_choices(session: Session, choices: Sequence[Choice], chat: bool = False) -> None:
    """Raise `PromptError` for a question that `measure_choices` could not ask."""
    contexts, answers = texts_of(choices, chat, "", ())
    for number, both in enumerate(zip(contexts, answers, strict=True)):
        check_pair(session, encode_pair(session, *both, chat), number)


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
