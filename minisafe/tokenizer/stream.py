"""Ids to text, as soon as later ids cannot change it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Decoder(Protocol):
    """What a `TextStream` needs from a tokenizer."""

    control_ids: set[int]
    byte_ids: set[int]

    def decode_all(self, ids: Sequence[int]) -> str: ...


class TextStream:
    """Takes ids and returns text as soon as later ids cannot change it: whole characters, with all
    blanks.

    `context` holds the ids before the text (a prompt). The text begins after them, and keeps the
    blank that a SentencePiece-style tokenizer would drop at the start of a text.
    """

    def __init__(self, tokenizer: Decoder, context: Sequence[int] = ()):
        self.tokenizer = tokenizer
        # a few ids are decoded again each time, because a piece may depend on the ids before it
        ids = [id_ for id_ in context if id_ not in tokenizer.control_ids]
        start = max(0, len(ids) - 8)
        while start and ids[start - 1] in tokenizer.byte_ids:  # do not split a run of bytes
            start -= 1
        self.ids = ids[start:]
        self.shown = tokenizer.decode_all(self.ids)

    def push(self, id_: int) -> str:
        """The text that this id completes; empty while a character is incomplete."""
        if id_ in self.tokenizer.control_ids:  # not every decoder skips them
            return ""
        self.ids.append(id_)
        if id_ in self.tokenizer.byte_ids:  # a run of bytes is valid or invalid only as a whole
            return ""
        text = self.tokenizer.decode_all(self.ids)
        if text.endswith("\ufffd"):
            return ""
        return self._emit(text)

    def finish(self) -> str:
        """The text that was held back, even if incomplete."""
        return self._emit(self.tokenizer.decode_all(self.ids))

    def _emit(self, text: str) -> str:
        piece = text[len(self.shown) :]
        if len(self.ids) > 16 and piece:
            self.ids = self.ids[-8:]
            text = self.tokenizer.decode_all(self.ids)
        self.shown = text
        return piece
