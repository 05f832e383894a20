"""A vocabulary to a `tokenizer.json`, as the original model's own file has it.

A GGUF file names the pre-tokenizer, and llama.cpp has a rule of its own for each name. The rules
here are those of the original `tokenizer.json` files, in the terms of the tokenizers library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from minisafe.convert.pieces import find_merges
from minisafe.convert.vocabulary import BYTE_LEVEL, LLAMA3, USER_DEFINED, Vocabulary
from minisafe.errors import TokenizerError
from minisafe.files.display import shown

Part = dict[str, Any]
BLANK = "▁"  # SentencePiece's

# ---- byte-level: how a text is split before merges, by the name of the pre-tokenizer ------------


def byte_level(use_regex: bool) -> Part:
    """Bytes as letters; with `use_regex` a text is first split as GPT-2 does it."""
    return {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
        "use_regex": use_regex,
    }  # fmt: skip


def split_by(regex: str) -> Part:
    """Split by a regular expression, then bytes as letters."""
    parts = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
        byte_level(use_regex=False),
    ]
    return {"type": "Sequence", "pretokenizers": parts}


def by_words(digits: str) -> str:
    """The expression of Llama 3 and Qwen2, which differ in how many digits stay together."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


SMOLLM = {
    "type": "Sequence",
    "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level(use_regex=True)],
}
SPLITS: dict[str, Part] = {
    "default": byte_level(use_regex=True),
    "gpt-2": byte_level(use_regex=True),
    "gpt2": byte_level(use_regex=True),
    "smollm": SMOLLM,
    "qwen2": split_by(by_words(r"\p{N}")),
} | dict.fromkeys(LLAMA3, split_by(by_words(r"\p{N}{1,3}")))
NORMALIZERS: dict[str, Part] = {"qwen2": {"type": "NFC"}}

# ---- the file ----------------------------------------------------------------------------------


def tokenizer_json(vocabulary: Vocabulary, source: str) -> dict[str, Any]:
    """The content of `tokenizer.json`; raises `TokenizerError`, with `source` as the name."""
    make: Callable[[Vocabulary, str], Part] = sentencepiece
    if vocabulary.model == BYTE_LEVEL:
        make = byte_level_parts
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(vocabulary, id_) for id_ in vocabulary.added],
    } | make(vocabulary, source)


def byte_level_parts(vocabulary: Vocabulary, source: str) -> Part:
    """The parts of a byte-level tokenizer."""
    if vocabulary.pre not in SPLITS:
        raise TokenizerError(
            f"{source}: the pre-tokenizer is {shown(vocabulary.pre)}; minisafe knows "
            f"{', '.join(SPLITS)}"
        )
    vocab = in_model(vocabulary)
    merges = [split_merge(merge, vocab, source) for merge in vocabulary.merges]
    return {
        "normalizer": NORMALIZERS.get(vocabulary.pre),
        "pre_tokenizer": SPLITS[vocabulary.pre],
        "post_processor": around(vocabulary, byte_level(use_regex=True)),
        "decoder": byte_level(use_regex=True),
        # Llama 3's merges do not lead to all of its tokens; those are found whole
        "model": bpe(vocab, merges, ignore_merges=vocabulary.pre in LLAMA3),
    }


def sentencepiece(vocabulary: Vocabulary, source: str) -> Part:
    """The parts of a SentencePiece tokenizer, as Hugging Face writes them for Llama 2."""
    prefix = vocabulary.add_prefix
    put_first = [{"type": "Prepend", "prepend": BLANK}] if prefix else []
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    decoders: list[Part] = [
        {"type": "Replace", "pattern": {"String": BLANK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    vocab = in_model(vocabulary)
    unknown = vocabulary.roles().get("unk_token")
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*put_first, replaced]},
        "pre_tokenizer": None,
        "post_processor": around(vocabulary, None),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": bpe(vocab, find_merges(vocabulary, source))
        | {"unk_token": unknown if unknown in vocab else None, "fuse_unk": True,
           "byte_fallback": True},
    }  # fmt: skip


def bpe(vocab: Mapping[str, int], merges: list[list[str]], ignore_merges: bool = False) -> Part:
    """A model of merges."""
    return {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": ignore_merges, "vocab": dict(vocab), "merges": merges,
    }  # fmt: skip


def in_model(vocabulary: Vocabulary) -> dict[str, int]:
    """The tokens of the model by their id: all but the added tokens at the end, which the library
    numbers on from there. No rule of the model can then make one of those out of a text."""
    added, n = set(vocabulary.added), vocabulary.size
    while n and n - 1 in added:
        n -= 1
    return {token: id_ for id_, token in enumerate(vocabulary.tokens[:n])}


def split_merge(merge: str, vocab: Mapping[str, int], source: str) -> list[str]:
    """The two parts of a merge; raises `TokenizerError` if one or their join is no token."""
    left, _, right = merge.partition(" ")
    if left not in vocab or right not in vocab or left + right not in vocab:
        raise TokenizerError(
            f"{source}: the merge {shown(merge)} is not of two tokens that make a third"
        )
    return [left, right]


def added_token(vocabulary: Vocabulary, id_: int) -> Part:
    """An entry of `added_tokens`; what is special is a control token to minisafe."""
    return {
        "id": id_, "content": vocabulary.tokens[id_], "single_word": False, "lstrip": False,
        "rstrip": False, "normalized": False, "special": vocabulary.types[id_] != USER_DEFINED,
    }  # fmt: skip


def around(vocabulary: Vocabulary, otherwise: Part | None) -> Part | None:
    """The post-processor that puts the beginning and the end around a plain text."""
    first = vocabulary.ids.get("bos_token_id") if vocabulary.add_bos else None
    last = vocabulary.ids.get("eos_token_id") if vocabulary.add_eos else None
    if first is None and last is None:
        return otherwise

    def piece(id_: int | None, type_id: int) -> list[Part]:
        if id_ is None:
            return []
        return [{"SpecialToken": {"id": vocabulary.tokens[id_], "type_id": type_id}}]

    def text(name: str, type_id: int) -> list[Part]:
        middle = [{"Sequence": {"id": name, "type_id": type_id}}]
        return [*piece(first, type_id), *middle, *piece(last, type_id)]

    used = {vocabulary.tokens[id_]: id_ for id_ in (first, last) if id_ is not None}
    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": text("A", 0) + text("B", 1),
        "special_tokens": {
            token: {"id": token, "ids": [id_], "tokens": [token]} for token, id_ in used.items()
        },
    }
