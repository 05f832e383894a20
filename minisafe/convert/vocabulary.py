"""The vocabulary of a GGUF file: tokens, their types, merges or scores, special ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from minisafe.convert.container import Container
from minisafe.errors import TokenizerError
from minisafe.files.display import shown

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's token types
BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"  # the values of tokenizer.ggml.model that are read
GGML = "tokenizer.ggml."
ROLES = {  # names of special tokens, by key
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")  # each ends an answer
LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
# keys of tokenizer.ggml that are read, or that name tokens which stay in the vocabulary
READ = (
    "model", "pre", "tokens", "token_type", "merges", "scores", *ROLES.values(), *ENDS,
    "add_bos_token", "add_eos_token", "add_space_prefix", "token_type_count", "fim_pre_token_id",
    "fim_suf_token_id", "fim_mid_token_id", "fim_pad_token_id", "fim_rep_token_id",
    "fim_sep_token_id", "prefix_token_id", "suffix_token_id", "middle_token_id",
    "seperator_token_id", "mask_token_id",
)  # fmt: skip
OFF = {"remove_extra_whitespaces": False, "add_sep_token": False}  # the values that change nothing


@dataclass(frozen=True)
class Vocabulary:
    """What a file says about its tokens.

    model: `BYTE_LEVEL` or `SENTENCEPIECE`. pre: the pre-tokenizer's name. ids: by key, such as
    "eos_token_id". add_prefix: whether SentencePiece puts a blank before a text.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    ids: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    add_prefix: bool

    @cached_property
    def added(self) -> tuple[int, ...]:
        """Ids of the tokens that are found in a text before it is split."""
        kinds = (CONTROL, USER_DEFINED, UNKNOWN)
        return tuple(id_ for id_, kind in enumerate(self.types) if kind in kinds)

    @cached_property
    def size(self) -> int:
        """The number of ids without the padding that llama.cpp's converter puts at the end."""
        n = len(self.tokens)
        while n and self.types[n - 1] == UNUSED and self.tokens[n - 1] == f"[PAD{n - 1}]":
            n -= 1
        return n

    def roles(self) -> dict[str, str]:
        """The special tokens by name, such as {"eos_token": "</s>"}."""
        return {role: self.tokens[self.ids[key]] for role, key in ROLES.items() if key in self.ids}


def read_vocabulary(container: Container, rows: int) -> Vocabulary:
    """The vocabulary of a file whose embedding has `rows` rows; raises `TokenizerError`."""
    return _Reader(container, rows).vocabulary()


def unread_keys(container: Container) -> list[str]:
    """Keys about the tokenizer that have no place in a `tokenizer.json`."""
    stated = container.metadata.items()
    own = {key.removeprefix(GGML): value for key, value in stated if key.startswith(GGML)}
    return [
        GGML + name
        for name, value in own.items()
        if name not in READ and not (name in OFF and value == OFF[name])
    ]


class _Reader:
    """Checks the types and sizes of the metadata about tokens."""

    def __init__(self, container: Container, rows: int):
        self.container, self.rows = container, rows

    def fail(self, message: str) -> TokenizerError:
        return TokenizerError(f"{self.container.path}: {message}")

    def get(self, name: str, default: Any = None) -> Any:
        return self.container.metadata.get(GGML + name, default)

    def listed(self, name: str, of: type, default: list[Any] | None = None) -> tuple[Any, ...]:
        """A list of one type; `default` if there is none."""
        found = self.get(name, default)
        if not isinstance(found, list) or not all(type(each) is of for each in found):
            raise self.fail(f"no list {GGML}{name} of {of.__name__}; is this a whole model?")
        return tuple(found)

    def flag(self, name: str, default: bool) -> bool:
        found = self.get(name, default)
        if not isinstance(found, bool):
            raise self.fail(f"{GGML}{name} is {shown(found)}; expected true or false")
        return found

    def ids(self, n: int) -> dict[str, int]:
        """The special ids that are stated, by key."""
        found = {}
        for key in (*ROLES.values(), *ENDS):
            value = self.get(key)
            if value is None or value in (-1, 0xFFFFFFFF):  # none
                continue
            if type(value) is not int or not 0 <= value < n:
                raise self.fail(f"{GGML}{key} is {shown(value)}; expected an id, 0 to {n - 1}")
            found[key] = value
        return found

    def vocabulary(self) -> Vocabulary:
        model, pre = self.get("model"), self.get("pre", "default")
        if model not in (BYTE_LEVEL, SENTENCEPIECE):
            raise self.fail(
                f"{GGML}model is {shown(model)}; minisafe rebuilds tokenizers of the models "
                f"{BYTE_LEVEL} (byte-level) and {SENTENCEPIECE} (SentencePiece)"
            )
        tokens = self.listed("tokens", str)
        if not 1 <= len(tokens) <= self.rows:
            raise self.fail(f"{len(tokens):,} tokens; expected 1 to {self.rows:,}, the embedding's")
        check_distinct(tokens, self)
        byte_level = model == BYTE_LEVEL
        types = self.listed("token_type", int, [NORMAL] * len(tokens))
        scores = () if byte_level else self.listed("scores", float)
        if len(types) != len(tokens) or len(scores) not in (0, len(tokens)):
            raise self.fail(
                f"{len(types):,} types and {len(scores):,} scores of {len(tokens):,} tokens; "
                "expected one of each per token"
            )
        return Vocabulary(
            model, str(pre), tokens, types,
            self.listed("merges", str, None if byte_level else []), scores, self.ids(len(tokens)),
            self.flag("add_bos_token", not byte_level or pre in LLAMA3),
            self.flag("add_eos_token", False),
            self.flag("add_space_prefix", not byte_level),
        )  # fmt: skip


def check_distinct(tokens: tuple[str, ...], reader: _Reader) -> None:
    """Raise `TokenizerError` for a token that is listed twice."""
    first: dict[str, int] = {}
    for id_, token in enumerate(tokens):
        if first.setdefault(token, id_) != id_:
            raise reader.fail(
                f"the token {shown(token)} has the ids {first[token]} and {id_}; expected each "
                "token once"
            )
