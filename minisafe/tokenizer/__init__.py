"""Text to ids and back: `tokenizer.json`, the chat template, and decoding that streams.

Control tokens that a user writes stay text: in a chat only the template's own become control ids.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from minisafe.errors import TokenizerError
from minisafe.files import read_json
from minisafe.tokenizer.templates import Marks, Message, template_environment

__all__ = [
    "ChatIds",
    "Message",
    "TextStream",
    "Tokenizer",
    "check_same_vocabulary",
    "check_tokenizer",
    "load_tokenizer",
]

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")
BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
AFTER_CONTROL = "\uf8ff"  # stands for a control token before text that is encoded by itself


@dataclass(frozen=True)
class ChatIds:
    """A rendered chat's ids, and where in them the answers stand that kept their ids."""

    ids: tuple[int, ...]
    answers: tuple[tuple[int, int], ...] = ()


class Tokenizer:
    """A `tokenizer.json` with the chat template and special tokens that stand beside it."""

    def __init__(self, backend: Backend, settings: Mapping[str, Any], source: str):
        self.backend, self.source = backend, source
        self.template_source = settings.get("chat_template")
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
        self.size = max([*backend.get_vocab(with_added_tokens=True).values(), -1]) + 1
        self.byte_ids = {
            id_ for text, id_ in backend.get_vocab().items() if BYTE_TOKEN.fullmatch(text)
        }

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of every token's string and id."""
        vocabulary = sorted(self.backend.get_vocab(with_added_tokens=True).items())
        return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]

    @cached_property
    def _as_text(self) -> Backend:
        """A twin that reads control tokens as plain text."""
        twin = Backend.from_str(self.backend.to_str())
        twin.encode_special_tokens = True
        return twin

    @cached_property
    def _after_control(self) -> Backend:
        """Such a twin, in which `AFTER_CONTROL` is a token, though no control token."""
        twin = Backend.from_str(self._as_text.to_str())
        twin.encode_special_tokens = True
        normalized = any(token.normalized for _, token in self.control.values())
        twin.add_tokens([AddedToken(AFTER_CONTROL, normalized=normalized, special=False)])
        return twin

    def id_of(self, text: str) -> int | None:
        """The id of a whole token, or None."""
        found: int | None = self.backend.token_to_id(text)
        return found

    def encode(self, text: str) -> list[int]:
        """Ids of a plain prompt: control tokens are read as such, the tokenizer's post-processor
        adds its own (such as BOS), but never a BOS before one that is already there."""
        ids: list[int] = self.backend.encode(text).ids
        bos = self.id_of(self.special["bos_token"]) if "bos_token" in self.special else None
        if bos is not None and ids[:2] == [bos, bos]:
            return ids[1:]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, control tokens left out: what a `TextStream` of them emits, joined."""
        stream = TextStream(self)
        return "".join([*map(stream.push, ids), stream.finish()])

    # ---- chat ----------------------------------------------------------------------------------

    @cached_property
    def template(self) -> Any:
        """The compiled chat template; raises `TokenizerError` where there is none."""
        source = self.template_source
        if isinstance(source, list):  # named templates, as [{"name": ..., "template": ...}]
            named = {each.get("name"): each.get("template") for each in source}
            source = named.get("default")
            if source is None:
                names = ", ".join(map(str, named))
                raise TokenizerError(f"{self.source}: no chat template named default, only {names}")
        if not isinstance(source, str):
            raise TokenizerError(
                f"{self.source}: this model has no chat template; use a plain prompt (generate)"
            )
        from jinja2 import TemplateError

        try:
            return template_environment().from_string(source)
        except TemplateError as error:
            raise TokenizerError(
                f"{self.source}: the chat template is malformed ({error})"
            ) from None

    def render(self, messages: Sequence[Message], generation_prompt: bool = True) -> str:
        """The chat as the template writes it, up to where the answer begins."""
        template = self.template
        try:
            text: str = template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=generation_prompt,
                **self.special,
            )
        except Exception as error:  # a template is code, and can fail in any way
            raise TokenizerError(f"{self.source}: the chat template refuses: {error}") from None
        return text

    def encode_chat(
        self,
        messages: Sequence[Message],
        answers: Mapping[int, Sequence[int]] | None = None,
        generation_prompt: bool = True,
    ) -> ChatIds:
        """Ids of a chat that ends where the next answer begins (or, without `generation_prompt`,
        with its last message).

        Equal to transformers' `apply_chat_template`, but that control tokens in the messages stay
        text, and that message number i with ids in `answers` keeps those ids, as they were sampled,
        instead of being encoded anew.
        """
        marks = Marks(messages)
        kept = dict(answers or {})
        hidden = [
            {**message, "content": marks.hide(message["content"], self.control)}
            if number not in kept
            else {**message, "content": marks.stand_for(number)}
            for number, message in enumerate(messages)
        ]
        pieces = marks.split_answers(self.render(hidden, generation_prompt))
        if [number for number, _ in pieces[1:]] != sorted(kept):  # the template rewrote an answer
            return self.encode_chat(messages, None, generation_prompt)
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for place, (number, piece) in enumerate(pieces):
            if place + 1 < len(pieces):
                piece = self.as_asked(hidden[: pieces[place + 1][0]], piece, marks)
            if number is not None:
                answer = list(kept[number])
                piece = self.without_repeated_end(answer, piece)
                spans.append((len(ids), len(ids) + len(answer)))
                ids += answer
            ids += self.encode_marked(piece, marks)
        return ChatIds(tuple(ids), tuple(spans))

    def as_asked(self, messages: Sequence[Message], piece: str, marks: Marks) -> str:
        """The template's text before an answer, with the blanks that it ended in when the answer
        was sampled: some templates write one more once they know it (Llama 2)."""
        try:
            _, asked = marks.split_answers(self.render(messages))[-1]
        except TokenizerError:
            return piece
        return asked if asked.rstrip() == piece.rstrip() else piece

    def without_repeated_end(self, answer: Sequence[int], piece: str) -> str:
        """The template's text after an answer, less the end token that the answer already has."""
        if answer:
            for text, (id_, _) in self.control.items():
                if id_ == answer[-1] and piece.lstrip().startswith(text):
                    return piece.lstrip().removeprefix(text)
        return piece

    def encode_marked(self, text: str, marks: Marks) -> list[int]:
        """Ids of template text in which `marks` hide the user's control tokens."""
        if not marks.used(text):
            ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
            return ids
        found: list[int] = []
        for place, piece in enumerate(self.split_control(text)):
            if piece in self.control:
                found.append(self.control[piece][0])
            elif piece:
                found += self.encode_as_text(marks.show(piece), start=place == 0)
        return found

    def encode_as_text(self, text: str, start: bool) -> list[int]:
        """Ids of text in which control tokens are text. Unless it starts the chat, it is read as
        what follows a control token: a tokenizer may put a blank before a chat's first word."""
        if start or AFTER_CONTROL in text:
            ids: list[int] = self._as_text.encode(text, add_special_tokens=False).ids
            return ids
        text = AFTER_CONTROL + text
        return list(self._after_control.encode(text, add_special_tokens=False).ids[1:])

    def split_control(self, text: str) -> list[str]:
        """Text cut at its control tokens, which swallow blanks where their definition says so."""
        longest_first = sorted(self.control, key=len, reverse=True)
        pieces = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
        for place, piece in enumerate(pieces):
            if place % 2:
                token = self.control[piece][1]
                if token.lstrip:
                    pieces[place - 1] = pieces[place - 1].rstrip()
                if token.rstrip:
                    pieces[place + 1] = pieces[place + 1].lstrip()
        return pieces


class TextStream:
    """Ids in, text out as soon as it is certain: never half a character, no blank lost.

    `context` are ids that came before (a prompt); text begins after them, with the blank that a
    SentencePiece-style tokenizer would drop at the start of a text.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()):
        self.tokenizer = tokenizer
        # a few ids are decoded again each time, so that a piece knows what precedes it
        ids = [id_ for id_ in context if id_ not in tokenizer.control_ids]
        start = max(0, len(ids) - 8)
        while start and ids[start - 1] in tokenizer.byte_ids:  # a run of bytes is read as one
            start -= 1
        self.ids = ids[start:]
        self.shown = self._decode()

    def _decode(self) -> str:
        text: str = self.tokenizer.backend.decode(self.ids, skip_special_tokens=False)
        return text

    def push(self, id_: int) -> str:
        """The text that became certain with this id; empty while a character is incomplete."""
        if id_ in self.tokenizer.control_ids:  # decoders do not all know them as such
            return ""
        self.ids.append(id_)
        if id_ in self.tokenizer.byte_ids:  # a run of bytes is only valid or invalid as a whole
            return ""
        text = self._decode()
        if text.endswith("\ufffd"):
            return ""
        return self._emit(text)

    def finish(self) -> str:
        """What was held back, as it stands."""
        return self._emit(self._decode())

    def _emit(self, text: str) -> str:
        piece = text[len(self.shown) :]
        if len(self.ids) > 16 and piece:
            self.ids = self.ids[-8:]
            text = self._decode()
        self.shown = text
        return piece


def token_text(token: Any) -> str | None:
    """A special token given as a string, as {"content": ...}, or not at all."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Load `tokenizer.json` and what stands beside it; raises `TokenizerError`."""
    directory = Path(directory)
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(
            f"{path}: no such file; minisafe reads tokenizer.json (transformers writes one with "
            "save_pretrained)"
        )
    try:
        backend = Backend.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the backend raises bare Exceptions
        raise TokenizerError(f"{path}: not a tokenizer ({str(error).splitlines()[0]})") from None
    backend.no_truncation()
    backend.no_padding()
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (directory / name).is_file():
            settings |= read_json(directory / name, "settings of the tokenizer")
    template = directory / "chat_template.jinja"
    if template.is_file():
        try:
            settings["chat_template"] = template.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise TokenizerError(f"{template}: not valid UTF-8") from None
    return Tokenizer(backend, settings, str(directory))


def check_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raise `TokenizerError` where a token's id has no row in the embedding."""
    if tokenizer.size > vocab_size:
        raise TokenizerError(
            f"{tokenizer.source}: the tokenizer has {tokenizer.size} ids, the model embeds "
            f"{vocab_size}; is this the model's own tokenizer?"
        )


def check_same_vocabulary(base: Tokenizer, expert: Tokenizer) -> None:
    """Raise `TokenizerError` unless both give every id the same token string."""
    ours = base.backend.get_vocab(with_added_tokens=True)
    theirs = expert.backend.get_vocab(with_added_tokens=True)
    if ours == theirs:
        return
    differing = sorted(
        token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)
    )
    raise TokenizerError(
        f"the vocabularies of {base.source} and {expert.source} differ in {len(differing)} tokens, "
        f"such as {differing[0]!r}; guidance compares tokens by id, so they must be the same"
    )
