"""The forms of training conversations, and their reader.

A file holds one form. Any other key of a row would be lost, so it is an error that names the key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisafe.errors import PromptError
from minisafe.files import json_lines, parse_json, read_text
from minisafe.files.display import harmless
from minisafe.tokenizer import Message

Row = dict[str, Any]
BYTES = 1 << 30  # the largest file of conversations
UNREAD = ("id", "category", "source")  # keys without training content
# keys of a row and of its last message: how the answer begins, which is not learned; and whether it
# breaks off, so that its end is not learned
BEGUN, CUT = "prefill", "cut"
SHAREGPT = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant",
    "assistant": "assistant", "system": "system",
}  # fmt: skip
ROLES = {role: role for role in ("system", "user", "assistant")}


@dataclass(frozen=True)
class Form:
    """A form of rows. A row with one of the keys in `signs` has this form; `shape` describes it."""

    name: str
    shape: str
    signs: tuple[str, ...]
    needs: tuple[str, ...]
    may: tuple[str, ...]
    messages: Callable[[Row, str], list[Message]]


def load_conversations(path: str | Path) -> list[list[Message]]:
    """Conversations from a JSON list or JSONL of rows in one of `FORMS`.

    Raises `PromptError`, with the row's number, for anything else: unknown keys, empty turns, a
    conversation that does not end in an answer, or a row in another form than the first.
    """
    path = Path(path)
    if not path.is_file():
        raise PromptError(f"{path}: no such file; expected conversations (.json or .jsonl)")
    if path.suffix == ".jsonl":
        rows: Any = [row for _, row in json_lines(path, PromptError, BYTES)]
    else:
        rows = parse_json(read_text(path, BYTES, PromptError), str(path), PromptError)
    if not isinstance(rows, list) or not rows:
        raise PromptError(f"{path}: expected a list of conversations, at least one")
    first = form_of(rows[0], f"{path}: row 1")
    found = []
    for number, row in enumerate(rows, 1):
        where = f"{path}: row {number}"
        form = form_of(row, where)
        if form is not first:
            raise PromptError(
                f"{where}: has the form {form.name}, the rows before it have the form "
                f"{first.name}; expected one form per file"
            )
        found.append(conversation(row, form, where))
    return found


def form_of(row: Any, where: str) -> Form:
    """The form of a row; raises `PromptError`."""
    if isinstance(row, dict):
        for form in FORMS:
            if any(sign in row for sign in form.signs):
                return form
    shapes = "; ".join(form.shape for form in FORMS)
    raise PromptError(f"{where}: has {keys_of(row)}; expected one of: {shapes}")


def conversation(row: Row, form: Form, where: str) -> list[Message]:
    """One row's messages; raises `PromptError`."""
    for key in form.needs:
        if key not in row:
            raise PromptError(f"{where}: no {key!r}; the form {form.name} is {form.shape}")
    check_keys(row, (*form.needs, *form.may, BEGUN, CUT, *UNREAD), where, form.shape)
    messages = form.messages(row, where)
    check_turns(messages, where)
    if BEGUN in row:
        messages[-1] = {**messages[-1], BEGUN: text_of(row, BEGUN, where, optional=True)}
    if row.get(CUT):
        if row[CUT] is not True:
            raise PromptError(f"{where}: {CUT!r} is {short(row[CUT])}; expected true or false")
        messages[-1] = {**messages[-1], CUT: "true"}
    return messages


def check_keys(row: Row, known: Sequence[str], where: str, shape: str) -> None:
    """Raise `PromptError` for an unknown key, unless its value is empty."""
    for key, value in row.items():
        if key not in known and value not in (None, "", [], {}):
            raise PromptError(
                f"{where}: the key {short(key)} is unknown and would be lost; expected {shape}"
            )


def check_turns(messages: Sequence[Message], where: str) -> None:
    """Raise `PromptError` unless every answer follows a question and an answer comes last."""
    before = "nothing"
    for number, message in enumerate(messages, 1):
        role = message["role"]
        if role == "assistant" and before != "user":
            raise PromptError(
                f"{where}: turn {number} is an answer after {before}; expected a user's turn first"
            )
        if role == "system" and number > 1:
            raise PromptError(f"{where}: turn {number} is a system prompt; expected it first")
        before = role
    if before != "assistant":
        raise PromptError(f"{where}: ends with {before}; expected it to end with an answer")


def text_of(row: Row, key: str, where: str, optional: bool = False) -> str:
    """A text of a row, or "" if it is optional and missing; raises `PromptError`."""
    value = row.get(key)
    if optional and value is None:
        return ""
    if not isinstance(value, str):
        raise PromptError(f"{where}: {key!r} is {kind(value)}; expected text")
    if not optional and not value.strip():
        raise PromptError(f"{where}: {key!r} is empty; expected text")
    return value if value.strip() else ""


def turn_of(turn: Any, keys: tuple[str, str], roles: dict[str, str], where: str) -> Message:
    """One turn; `keys` name its role and its text. Raises `PromptError`."""
    shape = f'{{"{keys[0]}", "{keys[1]}"}}'
    if not isinstance(turn, dict):
        raise PromptError(f"{where}: is {kind(turn)}; expected {shape}")
    role = turn.get(keys[0])
    if not isinstance(role, str) or role not in roles:
        raise PromptError(
            f"{where}: {keys[0]!r} is {short(role)}; expected one of {', '.join(roles)}"
        )
    check_keys(turn, keys, where, shape)
    return {"role": roles[role], "content": text_of(turn, keys[1], where)}


def turns_of(given: Any, keys: tuple[str, str], roles: dict[str, str], where: str) -> list[Message]:
    """The messages of a list of turns; raises `PromptError`."""
    if not isinstance(given, list):
        raise PromptError(f"{where}: the turns are {kind(given)}; expected a list")
    return [turn_of(each, keys, roles, f"{where}, turn {n}") for n, each in enumerate(given, 1)]


def asked(row: Row, where: str, question: str, answer: str) -> list[Message]:
    """A question and its answer, after the row's system prompt if it has one."""
    system = text_of(row, "system", where, optional=True)
    found: list[Message] = [{"role": "system", "content": system}] if system else []
    found.append({"role": "user", "content": question})
    return [*found, {"role": "assistant", "content": answer}]


def of_pair(row: Row, where: str) -> list[Message]:
    """A question and its answer; raises `PromptError`, as the other readers of rows do."""
    return asked(row, where, text_of(row, "input", where), text_of(row, "output", where))


def of_alpaca(row: Row, where: str) -> list[Message]:
    """The instruction, then a blank line and the input if there is one, and the output."""
    question = text_of(row, "instruction", where)
    more = text_of(row, "input", where, optional=True)
    question = f"{question}\n\n{more}" if more else question
    return asked(row, where, question, text_of(row, "output", where))


def of_completion(row: Row, where: str) -> list[Message]:
    """A prompt and its completion."""
    return asked(row, where, text_of(row, "prompt", where), text_of(row, "completion", where))


def of_sharegpt(row: Row, where: str) -> list[Message]:
    """ShareGPT's turns, after the row's system prompt if it has one."""
    found = turns_of(row["conversations"], ("from", "value"), SHAREGPT, where)
    system = text_of(row, "system", where, optional=True)
    return [{"role": "system", "content": system}, *found] if system else found


def of_messages(row: Row, where: str) -> list[Message]:
    """Turns with the names of OpenAI's API."""
    return turns_of(row["messages"], ("role", "content"), ROLES, where)


FORMS = (
    Form("messages", '{"messages": [{"role", "content"}, ...]}', ("messages",), ("messages",), (),
         of_messages),
    Form("ShareGPT", '{"conversations": [{"from", "value"}, ...]}', ("conversations",),
         ("conversations",), ("system",), of_sharegpt),
    Form("Alpaca", '{"instruction", "input", "output"}', ("instruction",),
         ("instruction", "output"), ("input", "system", "text"), of_alpaca),
    Form("completion", '{"prompt", "completion"}', ("prompt", "completion"),
         ("prompt", "completion"), ("system",), of_completion),
    Form("pair", '{"input", "output"}', ("input", "output"), ("input", "output"), ("system",),
         of_pair),
)  # fmt: skip


def keys_of(row: Any) -> str:
    """A description of a row's keys, for a message."""
    if isinstance(row, dict) and row:
        return f"the keys {harmless(', '.join(row), 200)}"
    return kind(row)


def kind(value: Any) -> str:
    """A description of a JSON value's type, for a message."""
    if value is None or value == "":
        return "nothing"
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value"}
    return names.get(type(value), "a number")


def short(value: Any) -> str:
    """A value for a message."""
    return harmless(repr(value), 80)
