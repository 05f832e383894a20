"""Tokenizers rebuilt from a vocabulary: the original's ids for every text, or a refusal."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend

from minisafe.convert.container import Container
from minisafe.convert.pieces import find_merges
from minisafe.convert.tokenizer import tokenizer_json
from minisafe.convert.vocabulary import Vocabulary, read_vocabulary
from minisafe.errors import TokenizerError
from tests.support.gguf_files import (
    GOLDENS,
    Words,
    byte_level,
    original_split,
    sentencepiece,
    vocabulary,
)
from tests.support.spoil import refuses
from tests.support.texts import texts


def read(words: Words, rows: int | None = None, **changes: Any) -> Vocabulary:
    """A vocabulary as it is read from a file; `changes` replace its keys, None removes one."""
    metadata = vocabulary(words) | {f"tokenizer.ggml.{key}": each for key, each in changes.items()}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    container = Container(Path("m.gguf"), 0, metadata, {})
    return read_vocabulary(container, len(words.tokens) if rows is None else rows)


def rebuilt(found: Vocabulary) -> Backend:
    return Backend.from_str(json.dumps(tokenizer_json(found, "m.gguf")))


PRES = ("smollm", "qwen2", "llama-bpe", "gpt-2")


@pytest.mark.parametrize("pre", PRES)
def test_texts_are_split_as_the_original_splits_them(pre: str) -> None:
    """The same vocabulary and merges under the split of the original's own file."""
    words = byte_level(pre, padding=3)
    found = rebuilt(read(words))
    original = rebuilt(read(words))
    original.pre_tokenizer = original_split(pre)
    normal = [unicodedata.normalize("NFC", text) if pre == "qwen2" else text for text in texts()]
    ours = [found.encode(text).ids for text in normal]
    assert ours == [original.encode(text).ids for text in normal]
    assert [found.decode(ids) for ids in ours] == normal


def pieces(pre: str, text: str) -> list[str]:
    splitter = rebuilt(read(byte_level(pre))).pre_tokenizer
    return [piece.replace("Ġ", " ") for piece, _ in splitter.pre_tokenize_str(text)]


def test_digits() -> None:
    """What tells the four apart: one by one, by threes, or a number at a time."""
    text = "in 12345 ways"
    assert pieces("smollm", text) == ["in", " ", "1", "2", "3", "4", "5", " ways"]
    assert pieces("qwen2", text) == ["in", " ", "1", "2", "3", "4", "5", " ways"]
    assert pieces("llama-bpe", text) == ["in", " ", "123", "45", " ways"]
    assert pieces("gpt-2", text) == ["in", " 12345", " ways"]
    assert pieces("smollm", "DON'T") == ["DON", "'", "T"]
    assert pieces("llama-bpe", "DON'T") == ["DON", "'T"]


def test_qwen2_composes_letters() -> None:
    """NFC, as its own file says."""
    found = rebuilt(read(byte_level("qwen2")))
    assert found.encode("e\u0301").ids == found.encode("\u00e9").ids
    other = rebuilt(read(byte_level("llama-bpe")))
    assert other.encode("e\u0301").ids != other.encode("\u00e9").ids


def test_llama_3_finds_whole_tokens_without_merges() -> None:
    words = byte_level("llama-bpe")
    place = words.tokens.index("<|endoftext|>")
    tokens = [*words.tokens[:place], "Ġzyzzyva", *words.tokens[place:]]
    types = [*words.types[:place], 1, *words.types[place:]]
    longer = replace(words, tokens=tokens, types=types)
    assert rebuilt(read(longer)).encode(" zyzzyva").ids == [place]
    assert len(rebuilt(read(replace(longer, pre="qwen2"))).encode(" zyzzyva").ids) > 1


@pytest.mark.parametrize("pre", PRES)
def test_ids_and_added_tokens(pre: str) -> None:
    """Every token keeps its id; padding at the end is left out, as the original does not have it;
    control tokens are special, a user's are not."""
    words = byte_level(pre, padding=3)
    found = read(words)
    backend = rebuilt(found)
    assert found.size == len(words.tokens) - 3
    expected = {token: id_ for id_, token in enumerate(words.tokens[:-3])}
    assert backend.get_vocab(with_added_tokens=True) == expected
    special = {each.content: each.special for each in backend.get_added_tokens_decoder().values()}
    control = dict.fromkeys(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), True)
    assert special == control | ({} if pre == "smollm" else {"<note>": False})
    ids = backend.encode("a<|im_end|>").ids
    assert ids[-1] == expected["<|im_end|>"]
    backend.encode_special_tokens = True
    assert expected["<|im_end|>"] not in backend.encode("a<|im_end|>").ids


def test_beginning_and_end() -> None:
    words = byte_level("llama-bpe")
    bos, eos = words.ids["bos"], words.ids["eos"]

    def ends(**changes: Any) -> tuple[bool, bool]:
        ids = rebuilt(read(words, **changes)).encode("Hello").ids
        return ids[0] == bos, ids[-1] == eos

    assert ends() == (False, False)
    assert ends(add_bos_token=True) == (True, False)
    assert ends(add_bos_token=True, add_eos_token=True) == (True, True)
    assert ends(add_bos_token=None) == (True, False), "llama.cpp's default for this pre-tokenizer"
    assert ends(add_bos_token=True, bos_token_id=None) == (False, False)
    pair = rebuilt(read(words, add_bos_token=True)).encode("a", "b").ids
    assert pair.count(bos) == 2
    smollm = byte_level("smollm")
    assert rebuilt(read(smollm, add_bos_token=None)).encode("a").ids[0] != smollm.ids["bos"]


# ---- SentencePiece -----------------------------------------------------------------------------


def test_scores_give_the_merges() -> None:
    """The golden tokenizer's own ids for every text, from pieces and scores alone."""
    found = read(sentencepiece())
    golden = Backend.from_file(str(GOLDENS / "chat" / "tokenizers" / "sentencepiece.json"))
    ours = rebuilt(found)
    for text in ["Hello fox", " the  river", "", "日本語 🙂", "a<s>b</s> c", *texts()]:
        assert ours.encode(text).ids == golden.encode(text).ids, text
        assert ours.decode(golden.encode(text).ids) == golden.decode(golden.encode(text).ids)
    assert ours.get_vocab(with_added_tokens=True) == golden.get_vocab(with_added_tokens=True)


def test_without_a_blank_before_the_text() -> None:
    words = sentencepiece()
    ours = rebuilt(read(words, add_space_prefix=False))
    first = ours.encode("the fox").ids[1]
    assert not words.tokens[first].startswith("▁")
    assert ours.decode(ours.encode(" the fox").ids) == " the fox"


def test_no_text_becomes_a_control_token() -> None:
    """SentencePiece never makes one of ordinary letters, whatever the scores say."""
    words = sentencepiece()
    tokens = [*words.tokens, "<", "s", ">", "s>", "<0", "x41>"]
    tokens = list(dict.fromkeys(tokens))
    more = len(tokens) - len(words.tokens)
    longer = replace(
        words, tokens=tokens, types=[*words.types, *[1] * more],
        scores=[*words.scores, *[5.0] * more],
    )  # fmt: skip
    found = read(longer)
    joined = {left + right for left, right in find_merges(found, "m.gguf")}
    assert "s>" in joined
    assert not joined & {"<s>", "<0x41>"}
    backend = rebuilt(found)
    backend.encode_special_tokens = True
    assert 1 not in backend.encode("a <s> b", add_special_tokens=False).ids


def test_the_best_piece_is_made_first() -> None:
    words = replace(
        sentencepiece(), tokens=["<unk>", "a", "b", "c", "ab", "bc", "abc"], types=[2, *[1] * 6],
        scores=[0.0, -1.0, -2.0, -3.0, -5.0, -4.0, -6.0], ids={"unk": 0},
    )  # fmt: skip
    found = read(words)
    assert find_merges(found, "")[:2] == [["b", "c"], ["a", "b"]]
    assert rebuilt(found).encode("abca").tokens == ["<unk>", "abc", "a"]


def test_stated_merges_are_taken() -> None:
    words = replace(sentencepiece(), merges=["f o", "fo x", "< s>", "nothing here"])
    assert find_merges(read(words), "") == [["f", "o"]]


def test_pieces_that_are_too_long() -> None:
    tokens = ["<unk>", *(f"{n:05}" + "x" * 4000 for n in range(20))]
    words = replace(sentencepiece(), tokens=tokens, types=[2, *[1] * 20], scores=[0.0] * 21, ids={})
    refuses(TokenizerError, lambda: find_merges(read(words), "m.gguf"), "tokens are too long")


# ---- refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model": "bert"}, "tokenizer.ggml.model is 'bert'; minisafe rebuilds"),
        ({"model": None}, "tokenizer.ggml.model is None"),
        ({"tokens": None}, "no list tokenizer.ggml.tokens of str"),
        ({"tokens": []}, "0 tokens; expected 1 to"),
        ({"tokens": ["a", "b", "a"]}, "the token 'a' has the ids 0 and 2"),
        ({"tokens": [1, 2]}, "no list tokenizer.ggml.tokens of str"),
        ({"token_type": [1]}, "1 types and 0 scores of"),
        ({"token_type": ["1"]}, "no list tokenizer.ggml.token_type of int"),
        ({"merges": None}, "no list tokenizer.ggml.merges"),
        ({"eos_token_id": 10**6}, "tokenizer.ggml.eos_token_id is 1000000; expected an id"),
        ({"eos_token_id": "x"}, "tokenizer.ggml.eos_token_id is 'x'"),
        ({"add_bos_token": 1}, "tokenizer.ggml.add_bos_token is 1; expected true or false"),
        ({"model": "llama"}, "no list tokenizer.ggml.scores of float"),
    ],
)  # fmt: skip
def test_vocabularies_that_are_refused(changes: dict[str, Any], word: str) -> None:
    refuses(TokenizerError, lambda: read(byte_level("qwen2"), **changes), "m.gguf", word)


def test_more_tokens_than_the_model_embeds() -> None:
    words = byte_level("qwen2")
    refuses(TokenizerError, lambda: read(words, rows=9), f"{len(words.tokens)} tokens", "1 to 9")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"pre": "gigachat"}, "the pre-tokenizer is 'gigachat'; minisafe knows default, gpt-2"),
        ({"merges": ["nothing here"]}, "the merge 'nothing here' is not of two tokens"),
        ({"merges": ["a"]}, "the merge 'a' is not of two tokens"),
    ],
)
def test_splits_and_merges_that_are_refused(changes: dict[str, Any], word: str) -> None:
    found = read(byte_level("qwen2"), **changes)
    refuses(TokenizerError, lambda: tokenizer_json(found, "m.gguf"), "m.gguf", word)


def test_ids_that_mean_none() -> None:
    assert "eos_token_id" not in read(byte_level("qwen2"), eos_token_id=0xFFFFFFFF).ids
