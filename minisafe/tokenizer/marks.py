"""Marks that replace text while a chat template runs: control tokens that a user wrote, answers.

A mark is a few private-use characters, drawn at random for each chat, so no text can contain it,
predict it or exhaust all marks.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

FIRST, DIGITS = 0xE000, 6400  # the private-use characters of the basic plane


class Marks:
    """Marks for one chat, and the texts that they replace."""

    def __init__(self, messages: Sequence[Mapping[str, str]]):
        self.contents = [message["content"] for message in messages]
        self.texts: dict[str, str] = {}
        self.marks: dict[str, str] = {}  # by the text that they replace
        self.answers: dict[str, int] = {}

    @cached_property
    def prefix(self) -> str:
        """The common prefix of all marks; drawn on first use."""
        return unused(self.contents)

    def new(self) -> str:
        """An unused mark; all marks have the same length."""
        number = len(self.texts) + len(self.answers)
        return self.prefix + chr(FIRST + number // DIGITS) + chr(FIRST + number % DIGITS)

    def hide(self, text: str, control: Mapping[str, Any]) -> str:
        """The text with marks in place of control tokens."""
        for token in sorted(control, key=len, reverse=True):
            if token and token in text:
                mark = self.marks.get(token) or self.new()
                self.texts[mark], self.marks[token] = token, mark
                text = text.replace(token, mark)
        return text

    def stand_for(self, number: int) -> str:
        """A mark for the answer with this message number."""
        mark = self.new()
        self.answers[mark] = number
        return mark

    def used(self, text: str) -> bool:
        """Whether marks hide control tokens in the text, plain or with JSON escapes."""
        return bool(self.texts) and (self.prefix in text or escaped(self.prefix) in text)

    def show(self, text: str) -> str:
        """The text with the control tokens in place of their marks."""
        if not self.used(text):
            return text
        for mark, token in self.texts.items():
            text = text.replace(mark, token).replace(escaped(mark), escaped(token))
        return text

    def split_answers(self, text: str) -> list[tuple[int | None, str]]:
        """(message number or None, text after that answer), in order."""
        if not self.answers:
            return [(None, text)]
        pieces = re.split(f"({re.escape(self.prefix)}..)", text, flags=re.DOTALL)
        found: list[tuple[int | None, str]] = [(None, pieces[0])]
        for mark, piece in zip(pieces[1::2], pieces[2::2], strict=True):
            if mark in self.answers:
                found.append((self.answers[mark], piece))
            else:  # the mark of a control token
                number, before = found[-1]
                found[-1] = number, before + mark + piece
        return found


def unused(texts: Sequence[str]) -> str:
    """Four private-use characters that no text contains in this order."""
    while True:
        digits = secrets.SystemRandom().sample(range(DIGITS), 4)  # distinct digits
        found = "".join(chr(FIRST + digit) for digit in digits)
        if not any(found in text for text in texts):
            return found


def escaped(text: str) -> str:
    """The text with the escapes of a JSON string."""
    return json.dumps(text)[1:-1]
