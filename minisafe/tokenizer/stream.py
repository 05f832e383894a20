"""Ids to text, as soon as it is certain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Decoder(Protocol):
    """What a `TextStream` needs of a tokenizer."""

    control_ids: set[int]
    byte_ids: set[int]

    def decode_all(self, ids: Sequence[int]) -> str: ...


class TextStream:
    """Ids in, text out as soon as it is certain: never half a character, no blank lost.

    `context` are ids that came before (a prompt); text begins after them, with the blank that a
    SentencePiece-style tokenizer would drop at the start of a text.
    """

    def __init__(self, tokenizer: Decoder, context: Sequence[int] = ()):
        self.tokenizer = tokenizer
        # a few ids are decoded again each time, so that a piece knows what precedes it
        ids = [id_ for id_ in context if id_ not in tokenizer.control_ids]
        start = max(0, len(ids) - 8)
        while start and ids[start - 1] in tokenizer.byte_ids:  # a run of bytes is read as one
            start -= 1
        self.ids = ids[start:]
        self.shown = tokenizer.decode_all(self.ids)

    def push(self, id_: int) -> str:
        """The text that became certain with this id; empty while a character is incomplete."""
        if id_ in self.tokenizer.control_ids:  # decoders do not all know them as such
            return ""
        self.ids.append(id_)
        if id_ in self.tokenizer.byte_ids:  # a run of bytes is only valid or invalid as a whole
            return ""
        text = self.tokenizer.decode_all(self.ids)
        if text.endswith("\ufffd"):
            return ""
        return self._emit(text)

    def finish(self) -> str:
        """What was held back, as it stands."""
        return self._emit(self.tokenizer.decode_all(self.ids))

    def _emit(self, text: str) -> str:
        piece = text[len(self.shown) :]
        if len(self.ids) > 16 and piece:
            self.ids = self.ids[-8:]
            text = self.tokenizer.decode_all(self.ids)
        self.shown = text
        return piece
