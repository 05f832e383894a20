"""A tokenizer: `tokenizer.json`, with the special tokens and the chat template of its directory."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from tokenizers import AddedToken, Encoding
from tokenizers import Tokenizer as Backend

from minisafe.tokenizer.backend import asked
from minisafe.tokenizer.conversation import ChatIds, encode_conversation, find_answers
from minisafe.tokenizer.marks import Marks, unused
from minisafe.tokenizer.options import Scalar, check_options
from minisafe.tokenizer.stream import TextStream
from minisafe.tokenizer.templates import Message, Template

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")
BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# replaces a control token before text that is encoded alone; no text can predict it
AFTER_CONTROL = unused([]) + unused([])
BEFORE = ("a", ".", "\n", "0")  # tried before a text that should not merge


class Tokenizer:
    """A `tokenizer.json`, with the chat template and special tokens of its directory.

    template_options: names and values for the chat template, such as {"enable_thinking": False}.
    Raises `SettingError` for a reserved name.
    """

    def __init__(
        self,
        backend: Backend,
        settings: Mapping[str, Any],
        source: str,
        template_options: Mapping[str, Scalar] | None = None,
    ):
        self.backend, self.source = backend, source
        self.template_source = settings.get("chat_template")
        self.template_options = check_options(template_options or {})
        self.special = {
            name: text
            for name in SPECIAL_NAMES
            if (text := token_text(settings.get(name))) is not None
        }
        added = backend.get_added_tokens_decoder()
        self.control = {
            token.content: (id_, token) for id_, token in added.items() if token.special
        }
        self.control_ids = {id_ for id_, _ in self.control.values()}
        # whether the backend searches the normalized text for control tokens
        self._normalizes_control = any(token.normalized for _, token in self.control.values())
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.size = max([*vocabulary.values(), -1]) + 1
        self.byte_ids = {id_ for text, id_ in vocabulary.items() if BYTE_TOKEN.fullmatch(text)}

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of every token's string and id."""
        vocabulary = sorted(self.backend.get_vocab(with_added_tokens=True).items())
        return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]

    @cached_property
    def _as_text(self) -> Backend:
        """A copy of the backend that reads control tokens as plain text."""
        twin = asked(self.source, Backend.from_str, asked(self.source, self.backend.to_str))
        twin.encode_special_tokens = True
        return twin

    @cached_property
    def _after_control(self) -> Backend:
        """The same copy, with `AFTER_CONTROL` as a token that is not a control token."""
        twin = Backend.from_str(self._as_text.to_str())
        twin.encode_special_tokens = True
        twin.add_tokens(
            [AddedToken(AFTER_CONTROL, normalized=self._normalizes_control, special=False)]
        )
        return twin

    def id_of(self, text: str) -> int | None:
        """The id of a whole token, or None."""
        found: int | None = self.backend.token_to_id(text)
        return found

    def encode(self, text: str) -> list[int]:
        """Ids of a plain prompt. Control tokens are read as such. The tokenizer's post-processor
        adds its own tokens (such as BOS), but never a second BOS."""
        ids: list[int] = asked(self.source, self.backend.encode, text).ids
        bos = self.id_of(self.special["bos_token"]) if "bos_token" in self.special else None
        if bos is not None and ids[:2] == [bos, bos]:
            return ids[1:]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without control tokens: the joined output of a `TextStream`."""
        stream = TextStream(self)
        return "".join([*map(stream.push, ids), stream.finish()])

    def decode_all(self, ids: Sequence[int]) -> str:
        """Text of `ids`, including control tokens."""
        decode = partial(self.backend.decode, skip_special_tokens=False)
        return asked(self.source, decode, list(ids))

    # ---- chat ----------------------------------------------------------------------------------

    @cached_property
    def template(self) -> Template:
        """The chat template; raises `TokenizerError` if there is none."""
        return Template(self.template_source, self.special, self.template_options, self.source)

    def render(self, messages: Sequence[Message], generation_prompt: bool = True) -> str:
        """The template's text for the chat, up to the beginning of the answer."""
        text = self.template.write(messages, [(len(messages), {}, generation_prompt)])[0]
        assert text is not None
        return text

    def encode_chat(
        self,
        messages: Sequence[Message],
        answers: Mapping[int, Sequence[int]] | None = None,
        generation_prompt: bool = True,
    ) -> ChatIds:
        """Ids of a chat, up to the beginning of the next answer (or, without `generation_prompt`,
        to the end of the last message).

        The result equals transformers' `apply_chat_template`, with two exceptions. Control tokens
        in the messages stay text. Message i with ids in `answers` keeps these sampled ids, unless
        the template rewrites the message.
        """
        marks = Marks(messages)
        hidden = [
            {**message, "content": marks.hide(message["content"], self.control)}
            for message in messages
        ]
        if not answers:
            text = self.render(hidden, generation_prompt)
            return ChatIds(tuple(self.encode_marked(text, marks)))
        numbers = sorted(answers)
        text, shown = find_answers(self.template, hidden, numbers, marks, generation_prompt)
        return encode_conversation(self, text, shown, answers, marks)

    def encode_begun(self, text: str, before: Sequence[int]) -> list[int]:
        """Ids of an answer's beginning, after the ids of the chat that asks for it; control tokens
        in it stay text."""
        marks = Marks([{"content": text}])
        return self.encode_marked(marks.hide(text, self.control), marks, before) if text else []

    def without_repeated_end(self, answer: Sequence[int], piece: str) -> str:
        """The template's text after an answer, without an end token that the answer already has."""
        if answer:
            for text, (id_, _) in self.control.items():
                if id_ == answer[-1] and piece.lstrip().startswith(text):
                    return piece.lstrip().removeprefix(text)
        return piece

    def encode_marked(self, text: str, marks: Marks, after: Sequence[int] = ()) -> list[int]:
        """Ids of template text in which `marks` hide the user's control tokens.

        after: the ids before the text, if it does not start the chat.
        """
        if not marks.used(text):
            ids = self.encode_after(text, after)
            if ids is not None:
                return ids
        found: list[int] = []
        for place, piece in enumerate(self.split_control(text)):
            if piece in self.control:
                found.append(self.control[piece][0])
            elif piece:
                start = place == 0 and not after
                found += self.encode_as_text(marks.show(piece), start)
        return found

    def encode_after(self, text: str, before: Sequence[int]) -> list[int] | None:
        """Ids of text that follows the ids `before`, or that starts a chat: some tokenizers put a
        blank before the first word of a chat, or after a control token. None if the ids cannot be
        determined, or if a user's text would become a control token."""
        if not before:
            starts: Sequence[str] = ("",)
        else:
            ends = [token for token, (id_, _) in self.control.items() if id_ == before[-1]]
            starts = ends or BEFORE
        for start in starts:
            ids = list(self._read(self.backend, start).ids)
            read = self._read(self.backend, start + text)
            if list(read.ids[: len(ids)]) == ids:
                forged = self._normalizes_control and self.forged(start + text, read)
                return None if forged else list(read.ids[len(ids) :])
        return None

    def forged(self, text: str, read: Encoding) -> bool:
        """Whether normalizing turned a user's text (fullwidth or capital letters) into a control
        token."""
        words = {id_: token for token, (id_, _) in self.control.items()}
        return any(
            id_ in words and words[id_] not in text[start:stop]
            for id_, (start, stop) in zip(read.ids, read.offsets, strict=True)
        )

    def encode_as_text(self, text: str, start: bool) -> list[int]:
        """Ids of text in which control tokens are text. Unless the text starts the chat, it is
        encoded after a control token: a tokenizer may put a blank before a chat's first word."""
        if start:
            return list(self._read(self._as_text, text).ids)
        return list(self._read(self._after_control, AFTER_CONTROL + text).ids[1:])

    def _read(self, backend: Backend, text: str) -> Encoding:
        return asked(self.source, partial(backend.encode, add_special_tokens=False), text)

    def split_control(self, text: str) -> list[str]:
        """Text split at its control tokens, which strip blanks if their definition says so."""
        longest_first = sorted(filter(None, self.control), key=len, reverse=True)
        if not longest_first:
            return [text]
        pieces = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
        for place, piece in enumerate(pieces):
            if place % 2:
                token = self.control[piece][1]
                if token.lstrip:
                    pieces[place - 1] = pieces[place - 1].rstrip()
                if token.rstrip:
                    pieces[place + 1] = pieces[place + 1].lstrip()
        return pieces


def token_text(token: Any) -> str | None:
    """The text of a special token given as a string or as {"content": ...}; None otherwise."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
