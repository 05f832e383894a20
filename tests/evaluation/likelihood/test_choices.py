"""Multiple-choice sets, from files to accuracies, against numbers made by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import minisafe
from minisafe.errors import PromptError
from minisafe.evaluation.likelihood import choices as module
from minisafe.evaluation.likelihood.choice_files import Choice, load_choices, spread
from minisafe.evaluation.likelihood.choices import is_right, mass, mean_row, measure_choices
from minisafe.evaluation.likelihood.scoring import Scored, score
from minisafe.evaluation.statistics import wilson
from minisafe.gate import Gate
from minisafe.session import Session
from tests.support.worlds import World

pytest_plugins = ["tests.support.world_fixtures"]
STONE = Choice("What is a stone?", ("soft", "hard", "a bird", "loud"), (False, True, False, False))
MC1 = Choice("Is water wet?", ("Yes.", "No, never."), (True, False), "mc1")
MC2 = Choice("Is water wet?", ("Yes.", "It is.", "No."), (True, True, False), "mc2")


def load(world: World, **changes: Any) -> Session:
    return minisafe.load(None, world.flags(**{"sgds_lambda": 0.75} | changes))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# ---- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "What is a stone?,soft,hard,a bird,loud,B\n",
        "\ufeffWhat is a stone?,soft,hard,a bird,loud, b \n\n",
        "question,A,B,C,D,answer\nWhat is a stone?,soft,hard,a bird,loud,B",
        "Answer,D,C,B,A,subject,Question\nB,loud,a bird,hard,soft,geology,What is a stone?\n",
    ],
)
def test_mmlu_csv(tmp_path: Path, text: str) -> None:
    assert load_choices(write(tmp_path / "stone.csv", text)) == [STONE]


def test_csv_cells_may_hold_commas_quotes_and_lines(tmp_path: Path) -> None:
    text = '"One, ""two""\nor\u2028three?",1,2,3,4,D\nAnd\u2028then?,1,2,3,4,A\n'
    first, second = load_choices(write(tmp_path / "a.csv", text))
    assert first.question == 'One, "two"\nor\u2028three?'
    assert first.right == (False, False, False, True)
    assert second == Choice("And\u2028then?", ("1", "2", "3", "4"), (True, False, False, False))


@pytest.mark.parametrize("answer", [1, "B", "b"])
def test_jsonl_and_json(tmp_path: Path, answer: Any) -> None:
    record = {"question": STONE.question, "choices": list(STONE.choices), "answer": answer}
    lines = write(tmp_path / "a.jsonl", json.dumps(record) + "\n\n" + json.dumps(record))
    assert load_choices(lines) == [STONE] * 2
    assert load_choices(write(tmp_path / "a.json", json.dumps([record]))) == [STONE]


@pytest.mark.parametrize("by_answer", [True, False])
def test_truthfulqa_in_both_layouts(tmp_path: Path, by_answer: bool) -> None:
    record: dict[str, Any] = {"question": "Is water wet?"}
    for each in (MC1, MC2):
        labels = [int(right) for right in each.right]
        record[f"{each.kind}_targets"] = (
            dict(zip(each.choices, labels, strict=True))
            if by_answer
            else {"choices": list(each.choices), "labels": labels}
        )
    assert load_choices(write(tmp_path / "t.json", json.dumps([record]))) == [MC1, MC2]
    del record["mc1_targets"]
    assert load_choices(write(tmp_path / "t.json", json.dumps([record]))) == [MC2]


def record(**changes: Any) -> str:
    """A JSON line with changes; None leaves a key out."""
    data = {"question": "Is it?", "choices": ["yes", "no"], "answer": 0} | changes
    return json.dumps({key: value for key, value in data.items() if value is not None})


def mc1(**changes: Any) -> str:
    return record(choices=None, answer=None, mc1_targets=changes)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "Is it?,yes,no,A\n", "line 1: 4 columns; expected 6"),
        ("a.csv", "Q,1,2,3,4,A\nQ,1,2,3,4,E\n", "line 2: the answer is 'E'; expected a letter A"),
        ("a.csv", "Q,1,2,3,4,AB\n", "the answer is 'AB'"),
        ("a.csv", "Q,1,,3,4,A\n", "a choice is empty"),
        ("a.csv", " ,1,2,3,4,A\n", "the question is empty"),
        ("a.csv", '"Q" x,1,2,3,4,A\n', "line 1: not CSV"),
        ("a.csv", "question,a,b,c,d,answer\n", "no questions"),
        ("a.json", "{}", "expected a list of questions, got dict"),
        ("a.json", "[", "not valid JSON"),
        ("a.json", "[1]", "question 0: no question"),
        ("a.jsonl", "\n{", "line 2: not valid JSON"),
        ("a.jsonl", record(question=3), "no question"),
        ("a.jsonl", record(answer=None), "no answers; expected question, choices and answer"),
        ("a.jsonl", record(choices="yes"), "choices are not a list"),
        ("a.jsonl", record(choices=[]), "0 choices; expected 2 to 26"),
        ("a.jsonl", record(choices=["a"]), "1 choices"),
        ("a.jsonl", record(choices=["a", 2]), "a choice is empty or not text"),
        ("a.jsonl", record(answer=2), "the answer is 2; expected a letter A to B or an index 0 to"),
        ("a.jsonl", record(answer=-1), "the answer is -1"),
        ("a.jsonl", record(answer=True), "the answer is True"),
        ("a.jsonl", mc1(choices=["a", "b"], labels=[1]), "mc1_targets: expected answers with a"),
        ("a.jsonl", mc1(choices=["a", "b"], labels=[1, 2]), "mc1_targets: expected answers with"),
        ("a.jsonl", mc1(a=1, b=1), "2 choices are right; expected one"),
        ("a.jsonl", mc1(a=0, b=0), "0 choices are right"),
        ("a.txt", "", "unknown format; expected .csv, .json, .jsonl"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(PromptError, match=message) as error:
        load_choices(path)
    assert str(path) in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="cannot be read"):
        load_choices(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes(b"\xe9,1,2,3,4,A")
    with pytest.raises(PromptError, match="not valid UTF-8"):
        load_choices(tmp_path / "latin.csv")


HEAD = "\ufeffType,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"


def test_truthful_qas_own_table(tmp_path: Path) -> None:
    """An answer that stands twice counts once; a right one among the wrong ones is wrong."""
    rows = 'A,Is water wet?,It is,"Yes; It is; It is","No; Never; ",http\n\nB,Q?,a,a,b,\n'
    found = load_choices(write(tmp_path / "t.csv", HEAD + rows))
    assert found[:2] == [
        Choice("Is water wet?", ("No", "Never", "It is"), (False, False, True), "mc1"),
        Choice("Is water wet?", ("No", "Never", "Yes", "It is"), (False, False, True, True), "mc2"),
    ]
    assert [(each.question, each.kind) for each in found[2:]] == [("Q?", "mc1"), ("Q?", "mc2")]
    _, both = load_choices(write(tmp_path / "t.csv", HEAD + "A,Q?,a,a; b,b; c,\n"))
    assert (both.choices, both.right) == (("b", "c", "a"), (False, False, True))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("A,Q?,a,a,b\n", "question 1: 5 columns; expected 6"),
        ("A,,a,a,b,\n", "question 1: the question is empty"),
        ("A,Q?,,a,b,\n", "question 1: a choice is empty"),
        ("A,Q?,a,,b,\n", "question 1: 1 choices; expected 2 to 26"),
        ("A,Q?,a,a,,\n", "question 1: 1 choices"),
        ("", "no questions"),
    ],
)
def test_bad_tables_of_truthful_qa(tmp_path: Path, row: str, message: str) -> None:
    path = write(tmp_path / "t.csv", HEAD + row)
    with pytest.raises(PromptError, match=message) as error:
        load_choices(path)
    assert str(path) in str(error.value)


def test_a_limit_takes_whole_questions_evenly() -> None:
    kinds = ("mc1", "mc2")
    sets = [Choice(f"{n}?", ("a", "b"), (True, False), kind) for n in range(6) for kind in kinds]
    found = spread(sets, 3)
    assert [(each.question, each.kind) for each in found] == [
        (f"{n}?", kind) for n in (0, 2, 4) for kind in kinds
    ]
    assert spread(sets, None) == spread(sets, 6) == spread(sets, 9) == sets


# ---- measures ----------------------------------------------------------------------------------


def scored(*totals: float) -> list[Scored]:
    """Scores with these log-likelihoods."""
    zero = torch.zeros(1)
    return [Scored((0,), torch.tensor([t]), zero, zero.bool(), zero, False) for t in totals]


def test_the_likeliest_choice_wins() -> None:
    assert is_right(STONE, scored(-4, -1, -2, -3))
    assert not is_right(STONE, scored(-4, -3, -2, -1))
    assert not is_right(STONE, scored(-1, -1, -2, -3))  # the first of equals
    assert not is_right(MC1, scored(-math.inf, -math.inf))
    assert is_right(MC1, scored(-4, -9))
    assert not is_right(MC1, scored(-4, -9), normalised=True)  # 1 nat a character, and 0.9


def test_probability_mass_by_hand() -> None:
    assert mass(MC2, scored(*map(math.log, (0.1, 0.2, 0.1)))) == pytest.approx(0.75)
    assert mass(MC2, scored(-1e4, -math.inf, -1e4)) == pytest.approx(0.5)  # no underflow
    assert mass(MC2, scored(*[-math.inf] * 3)) == 0


@pytest.mark.parametrize("chat", [False, True])
def test_what_is_asked(world: World, monkeypatch: pytest.MonkeyPatch, chat: bool) -> None:
    asked: list[tuple[str, str]] = []

    def spy(session: Any, contexts: Any, answers: Any, chat: bool, batch_size: int) -> Any:
        asked.extend(zip(contexts, answers, strict=True))
        return score(session, contexts, answers, chat, batch_size)

    monkeypatch.setattr(module, "score", spy)
    blank = "" if chat else " "
    listed = "What is a stone?\nA. soft\nB. hard\nC. a bird\nD. loud\nAnswer:"
    measure_choices(load(world), [STONE, MC1], chat=chat)
    assert asked[:4] == [(listed, blank + letter) for letter in "ABCD"]
    question = "Is water wet?" if chat else "Q: Is water wet?\nA:"
    assert asked[4:] == [(question, blank + text) for text in ("Yes.", "No, never.")]
    asked.clear()
    measure_choices(load(world), [STONE, MC2], chat, description="Ask.", examples=[STONE, MC1])
    assert {context for context, _ in asked} == {
        f"Ask.\n\n{listed} B\n\n{listed}",
        "Ask.\n\nQ: Is water wet?\nA: Yes.\n\nQ: Is water wet?\nA:",
    }


def test_rows_are_what_the_scores_say(world: World) -> None:
    session = load(world)
    other = Choice("And fire?", ("Yes.", "Of course it is."), (False, True), "mc1")
    more = Choice("And fire?", ("It is.", "No."), (True, False), "mc2")
    sets = [STONE, MC1, MC2, other, more]
    rows = {each["measure"]: each for each in measure_choices(session, sets, batch_size=3)}
    assert list(rows) == ["letters", "mc1", "mc1 normalised", "mc2"]
    assert [each["n"] for each in rows.values()] == [1, 2, 2, 2]
    wet, fire = "Q: Is water wet?\nA:", "Q: And fire?\nA:"

    def totals(context: str, choice: Choice) -> list[float]:
        texts = [" " + text for text in choice.choices]
        return [each.total for each in score(session, [context] * len(texts), texts)]

    found = [totals(wet, MC1), totals(fire, other)]
    hits = (found[0][0] > found[0][1]) + (found[1][1] > found[1][0])
    low, high = wilson(hits, 2)
    assert rows["mc1"] == {
        "measure": "mc1", "n": 2, "value": 50 * hits, "low": 100 * low, "high": 100 * high
    }  # fmt: skip
    parts = [
        [math.exp(total) for total in totals(context, choice)]
        for context, choice in ((wet, MC2), (fire, more))
    ]
    first = (parts[0][0] + parts[0][1]) / sum(parts[0])
    second = parts[1][0] / sum(parts[1])
    assert rows["mc2"]["value"] == pytest.approx(50 * (first + second), abs=1e-2)


def test_in_a_chat_questions_are_answered_as_the_session_would(world: World) -> None:
    """What is left to the base is the base's, what is harmful alone is guided, and both differ."""
    guided, base = load(world), load(world, safe=False)
    leaving = replace(guided, settings=replace(guided.settings, gate=True))
    told: list[tuple[int, int]] = []

    def rows(session: Session) -> list[dict[str, Any]]:
        return measure_choices(
            session, [MC1, MC2], chat=True, progress=lambda done, of: told.append((done, of))
        )

    assert rows(replace(leaving, alone=Gate(1.0))) == rows(base)
    assert rows(replace(leaving, alone=Gate(0.0))) == rows(guided)
    assert rows(base)[-1]["value"] != pytest.approx(rows(guided)[-1]["value"], 0.1, 0)
    assert set(told) == {(2, 2)}


def test_the_interval_of_a_mean_by_hand() -> None:
    """Of 0.2, 0.4 and 0.9: mean 0.5, variance 0.13, so 0.5 -+ 1.96 * sqrt(0.13 / 3)."""
    row = mean_row("mc2", [0.2, 0.4, 0.9])
    assert (row["measure"], row["n"], row["value"]) == ("mc2", 3, pytest.approx(50))
    assert (row["low"], row["high"]) == (
        pytest.approx(9.2, abs=0.01),
        pytest.approx(90.8, abs=0.01),
    )
    assert mean_row("mc2", [0.0, 1.0])["low"] == 0
    assert mean_row("mc2", [0.0, 1.0])["high"] == 100


def test_one_question_says_nothing_of_the_spread(world: World) -> None:
    (row,) = measure_choices(load(world), [MC2])
    assert (row["low"], row["high"]) == (0, 100)
    assert 0 < row["value"] < 100


def test_nothing_to_ask(world: World) -> None:
    with pytest.raises(PromptError, match="no questions"):
        measure_choices(load(world), [])


def test_a_question_beyond_the_context(world: World) -> None:
    long = Choice("What? " * 500, ("yes", "no"), (True, False), "mc1")
    with pytest.raises(PromptError, match="the model's context"):
        measure_choices(load(world), [long])
