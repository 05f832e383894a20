"""Demonstrations, and few-shot prompts made from them, safe or corrupted."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minisafe.errors import PromptError, SettingError
from minisafe.files import json_lines, parse_json, read_text
from minisafe.files.display import harmless
from minisafe.tokenizer import Message, Tokenizer


@dataclass(frozen=True)
class Demonstration:
    """A question, its answer, and its topic, if known."""

    input: str
    output: str
    topic: str = ""


@dataclass(frozen=True)
class Prompt:
    """Demonstrations and a query, as ids up to the beginning of the answer."""

    ids: tuple[int, ...]


def load_demonstrations(
    path: str | Path, input_column: str = "input", output_column: str = "output"
) -> list[Demonstration]:
    """Read demonstrations from a JSON list (the reference's format), JSONL or CSV, by columns.

    Raises `PromptError` if the file or a column is missing, or a row is malformed.
    """
    path = Path(path)
    if not path.is_file():
        raise PromptError(f"{path}: no such file; expected demonstrations (.json, .jsonl or .csv)")
    rows = read_rows(path)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise PromptError(f"{path}: expected a list of objects, at least one")
    columns = (input_column, output_column)
    return [demonstration(row, columns, f"{path}: row {n}") for n, row in enumerate(rows, 1)]


def demonstration(row: dict[str, Any], columns: tuple[str, str], where: str) -> Demonstration:
    """One row's demonstration, from the columns of question and answer; raises `PromptError`."""
    for column in columns:
        if not isinstance(row.get(column), str) or not row[column].strip():
            have = harmless(", ".join(row), 200)
            raise PromptError(f"{where} has no text in {column!r}; it has {have}")
    topic = row.get("category")
    if topic is not None and not isinstance(topic, (str, int)):
        raise PromptError(f"{where} has a category that is not text; expected text or a number")
    return Demonstration(row[columns[0]], row[columns[1]], "" if topic is None else str(topic))


def read_rows(path: Path) -> Any:
    """The content of a file, by its suffix; raises `PromptError` for a malformed file."""
    if path.suffix == ".jsonl":
        return [row for _, row in json_lines(path, PromptError)]
    text = read_text(path, error=PromptError)
    if path.suffix != ".csv":
        return parse_json(text, str(path), PromptError)
    return table_rows(text, path)


def table_rows(text: str, path: Path) -> list[dict[str, str]]:
    """The rows of a CSV text, by the names in its first line; raises `PromptError`."""
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        names = list(reader.fieldnames or ())
        rows = list(reader)
    except csv.Error as error:
        raise PromptError(f"{path}: malformed ({error})") from None
    if len(set(names)) < len(names):
        raise PromptError(f"{path}: two columns have the same name; expected each name once")
    for number, row in enumerate(rows, 1):
        if len(row) > len(names):
            raise PromptError(
                f"{path}: row {number} has more cells than the first line has names; put texts "
                "with commas in quotes"
            )
    return rows


# ---- prompts -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PromptMaker:
    """Writes demonstrations and a query with the model's chat template, or as plain Q and A."""

    tokenizer: Tokenizer
    style: str = "chat"
    system: str | None = None

    def __post_init__(self) -> None:
        if self.style not in ("chat", "qa"):
            raise SettingError(f"prompt style is {self.style!r}; expected chat or qa")

    def prompt(self, shots: Sequence[Demonstration], query: str) -> Prompt:
        """Ids up to the beginning of the answer to `query`."""
        if self.style == "qa":
            lines = [f"Q: {shot.input}\nA: {shot.output}\n\n" for shot in shots]
            return Prompt(tuple(self.tokenizer.encode("".join(lines) + f"Q: {query}\nA:")))
        return Prompt(self.tokenizer.encode_chat(self.messages(shots, query)).ids)

    def messages(self, shots: Sequence[Demonstration], query: str) -> list[Message]:
        """The chat of a few-shot prompt."""
        messages: list[Message] = []
        if self.system:
            messages.append({"role": "system", "content": self.system})
        for shot in shots:
            messages.append({"role": "user", "content": shot.input})
            messages.append({"role": "assistant", "content": shot.output})
        return [*messages, {"role": "user", "content": query}]

    def first_token(self, shot: Demonstration) -> int:
        """The first id of the answer, as the model would write it after the prompt."""
        if self.style == "qa":
            before = self.tokenizer.encode(f"Q: {shot.input}\nA:")
            after = self.tokenizer.encode(f"Q: {shot.input}\nA: {shot.output}")
        else:
            chat = self.messages((), shot.input)
            before = list(self.tokenizer.encode_chat(chat).ids)
            answered = [*chat, {"role": "assistant", "content": shot.output}]
            after = list(self.tokenizer.encode_chat(answered, None, generation_prompt=False).ids)
        pairs = zip(before, after, strict=False)
        place = next((n for n, (a, b) in enumerate(pairs) if a != b), len(before))
        if place >= len(after):
            raise PromptError(
                f"the answer {shot.output[:40]!r} adds no token to the prompt; expected text"
            )
        return after[place]


def few_shot(
    maker: PromptMaker, pool: Sequence[Demonstration], shots: int, n: int, seed: int
) -> list[tuple[list[Demonstration], Demonstration]]:
    """`n` draws of `shots` demonstrations and one query, all different within a draw."""
    if len(pool) < shots + 1:
        raise SettingError(
            f"got {len(pool)} demonstrations; expected {shots + 1} or more for {shots} shots and a "
            "query; give more, or lower --shots"
        )
    generator = np.random.default_rng(seed)
    draws = [generator.choice(len(pool), shots + 1, replace=False) for _ in range(n)]
    return [([pool[i] for i in draw[:-1]], pool[draw[-1]]) for draw in draws]


CORRUPTIONS = ("file", "expert", "topic", "none", "shuffle")


def corrupt(
    draw: tuple[list[Demonstration], Demonstration],
    how: str,
    other: Callable[[Demonstration], str],
    generator: np.random.Generator,
) -> list[Demonstration]:
    """The draw's demonstrations with unsafe answers.

    how: "file" and "expert": `other` gives the answer; "topic": as "file", but from another topic;
    "none": no demonstrations at all; "shuffle": the draw's answers in another order.
    """
    shots, _ = draw
    if how == "none":
        return []
    if how == "shuffle":
        order = generator.permutation(len(shots))
        return [replace(shot, output=shots[i].output) for shot, i in zip(shots, order, strict=True)]
    return [replace(shot, output=other(shot)) for shot in shots]


def answers_alike(demonstrations: Sequence[Demonstration]) -> bool:
    """Whether shuffling the answers would change little: more than half of them are the same."""
    outputs = [demonstration.output for demonstration in demonstrations]
    return max(map(outputs.count, set(outputs))) > len(outputs) / 2


def data_hash(demonstrations: Sequence[Demonstration]) -> str:
    """A short hash of the demonstrations."""
    pairs = [[shot.input, shot.output] for shot in demonstrations]
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16]
