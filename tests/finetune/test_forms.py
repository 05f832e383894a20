"""The forms in which conversations come: each is read whole, or refused by row and name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minisafe.errors import PromptError
from minisafe.finetune import FORMS, load_conversations

PAIR = {"input": "Hi?", "output": "Yo."}
ALPACA = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
COMPLETION = {"prompt": "Hi?", "completion": "Yo."}
SHAREGPT = {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yo."}]}
MESSAGES = {
    "messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yo."}]
}
ROWS = {"pair": PAIR, "Alpaca": ALPACA, "completion": COMPLETION, "ShareGPT": SHAREGPT,
        "messages": MESSAGES}  # fmt: skip


def read(tmp_path: Path, *rows: Any, ending: str = "json") -> list[list[tuple[str, str]]]:
    """What a file of these rows says: (role, content) of every turn."""
    path = tmp_path / f"rows.{ending}"
    path.write_text(json.dumps(rows) if ending == "json" else "\n".join(map(json.dumps, rows)))
    return [[(m["role"], m["content"]) for m in each] for each in load_conversations(path)]


def said(question: str, answer: str, *system: str) -> list[tuple[str, str]]:
    return [*(("system", text) for text in system), ("user", question), ("assistant", answer)]


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (PAIR, said("Hi?", "Yo.")),
        (PAIR | {"category": "greeting", "id": 3, "notes": None}, said("Hi?", "Yo.")),
        (ALPACA, said("Add.\n\n1 and 2", "3")),
        (ALPACA | {"input": ""}, said("Add.", "3")),
        (ALPACA | {"input": " \n"}, said("Add.", "3")),
        (ALPACA | {"input": None, "text": "Below is ..."}, said("Add.", "3")),
        ({"instruction": "Add.", "output": "3", "system": "Short."}, said("Add.", "3", "Short.")),
        (COMPLETION, said("Hi?", "Yo.")),
        (SHAREGPT, said("Hi?", "Yo.")),
        (SHAREGPT | {"id": "a1", "system": "Short."}, said("Hi?", "Yo.", "Short.")),
        (
            {"conversations": [{"from": "system", "value": "Short."}, *SHAREGPT["conversations"],
                               *SHAREGPT["conversations"]]},
            said("Hi?", "Yo.", "Short.") + said("Hi?", "Yo."),
        ),
        (MESSAGES, said("Hi?", "Yo.")),
        (
            {"messages": [{"role": "system", "content": "Short."}, *MESSAGES["messages"]]},
            said("Hi?", "Yo.", "Short."),
        ),
    ],
)  # fmt: skip
def test_each_form_is_read_whole(
    tmp_path: Path, row: Any, expected: list[tuple[str, str]], ending: str
) -> None:
    assert read(tmp_path, row, row, ending=ending) == [expected, expected]


@pytest.mark.parametrize("name", ROWS)
def test_any_form_may_say_how_the_answer_begins(tmp_path: Path, name: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([ROWS[name] | {"prefill": begun} for begun in ("Sure, ", "")]))
    assert [each[-1]["prefill"] for each in load_conversations(path)] == ["Sure, ", ""]


def test_any_form_may_say_that_the_answer_breaks_off(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([PAIR | {"cut": True}, PAIR | {"cut": False}, PAIR]))
    assert ["cut" in each[-1] for each in load_conversations(path)] == [True, False, False]


def test_every_form_is_tried_and_documented() -> None:
    assert {form.name for form in FORMS} == set(ROWS)
    page = (Path(__file__).parents[2] / "docs" / "finetuning.md").read_text()
    for form in FORMS:
        assert f"`{form.shape}`" in page


@pytest.mark.parametrize("first", ROWS)
@pytest.mark.parametrize("second", ROWS)
def test_a_file_that_mixes_forms_is_refused_by_row(tmp_path: Path, first: str, second: str) -> None:
    rows = (ROWS[first], ROWS[first], ROWS[second])
    if first == second:
        assert len(read(tmp_path, *rows)) == 3
        return
    with pytest.raises(PromptError, match=f"row 3: has the form {second}, .* form {first}"):
        read(tmp_path, *rows)


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ALPACA | {"history": [["a", "b"]]}, "row 2: the key 'history' is unknown"),
        (PAIR | {"system_prompt": "x"}, "row 2: the key 'system_prompt' is unknown"),
        (MESSAGES | {"tools": [{"name": "x"}]}, "row 2: the key 'tools' is unknown"),
        (SHAREGPT | {"prompt": "x"}, "row 2: the key 'prompt' is unknown"),
        (PAIR | {"output": " "}, "row 2: 'output' is empty"),
        (PAIR | {"input": ""}, "row 2: 'input' is empty"),
        (PAIR | {"output": None}, "row 2: 'output' is nothing; expected text"),
        (PAIR | {"output": 3}, "row 2: 'output' is a number"),
        (PAIR | {"prefill": 3}, "row 2: 'prefill' is a number"),
        (PAIR | {"cut": "yes"}, "row 2: 'cut' is 'yes'; expected true or false"),
        (ALPACA | {"instruction": "\n"}, "row 2: 'instruction' is empty"),
        (ALPACA | {"input": ["a"]}, "row 2: 'input' is a list"),
        ({"instruction": "a", "input": "b"}, "row 2: no 'output'; the form Alpaca is"),
        ({"prompt": "a", "output": "b"}, "row 2: no 'completion'"),
        ({"output": "b"}, "row 2: no 'input'"),
        ({"question": "a", "answer": "b"}, "row 2: has the keys question, answer; expected one of"),
        ({}, "row 2: has an object"),
        (["a", "b"], "row 2: has a list; expected one of"),
        ({"messages": "hi"}, "row 2: the turns are text; expected a list"),
        ({"messages": []}, "row 2: ends with nothing"),
        ({"messages": ["hi"]}, "row 2, turn 1: is text"),
        ({"messages": [turn("tool", "x")]}, "row 2, turn 1: 'role' is 'tool'; expected one of"),
        ({"messages": [turn("user", "")]}, "row 2, turn 1: 'content' is empty"),
        ({"messages": [turn("user", [{"type": "text"}])]}, "turn 1: 'content' is a list"),
        ({"messages": [turn("user", "a", name="Bo")]}, "row 2, turn 1: the key 'name'"),
        ({"messages": [turn("user", "a")]}, "row 2: ends with user"),
        ({"messages": [turn("assistant", "a")]}, "row 2: turn 1 is an answer after nothing"),
        (
            {"messages": [turn("user", "a"), turn("assistant", "b"), turn("assistant", "c")]},
            "row 2: turn 3 is an answer after assistant",
        ),
        (
            {"messages": [turn("user", "a"), turn("system", "b"), turn("assistant", "c")]},
            "row 2: turn 2 is a system prompt",
        ),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "'from' is 'bot'; expected one of"),
        ({"conversations": [{"role": "user", "content": "x"}]}, "'from' is None"),
    ],
)
def test_what_would_be_lost_or_empty_is_refused_by_row_and_name(
    tmp_path: Path, row: Any, message: str
) -> None:
    kind = next((form.name for form in FORMS if set(form.signs) & set(row)), "pair")
    with pytest.raises(PromptError) as raised:
        read(tmp_path, ROWS[kind], row)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not valid JSON"),
        ("[]", "at least one"),
        ("{}", "expected a list"),
        ("[" * 5000, "nested too deep"),
        ('[{"input": "a", "input": "b", "output": "c"}]', "given twice"),
        ('[{"input": "\\ud800", "output": "c"}]', "surrogate"),
        ('[{"input": "a", "output": NaN}]', "NaN"),
    ],
)
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_malformed_files_are_refused(tmp_path: Path, text: str, message: str, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    path.write_text("" if (text, ending) == ("[]", "jsonl") else text)
    if (text, ending) == ("{}", "jsonl"):
        message = "has an object"
    with pytest.raises(PromptError) as raised:
        load_conversations(path)
    assert message in str(raised.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="no such file"):
        load_conversations(tmp_path / "gone.json")
    with pytest.raises(PromptError, match="no such file"):
        load_conversations(tmp_path)
