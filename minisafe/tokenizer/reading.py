"""A tokenizer read from a model's directory, and checks of its files.

The library that runs `tokenizer.json` trusts it: it panics on some files and runs for minutes on
others. The checks here find the known causes before the library gets the text.
"""

from __future__ import annotations

import base64
import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from minisafe.errors import TokenizerError
from minisafe.files import parse_json, read_json, read_text
from minisafe.files.display import one_line
from minisafe.tokenizer.backend import asked
from minisafe.tokenizer.options import Scalar
from minisafe.tokenizer.templates import MOST_CHARACTERS
from minisafe.tokenizer.tokenizer import Tokenizer

MOST_IDS = 1 << 22  # the largest vocabularies have about 260,000
MOST_TOKEN_CHARACTERS = 4096


def load_tokenizer(
    directory: str | Path, template_options: Mapping[str, Scalar] | None = None
) -> Tokenizer:
    """Load `tokenizer.json` and the files that belong to it.

    template_options: values for the chat template besides the messages.

    Raises `TokenizerError`, and `SettingError` for a bad template option.
    """
    directory = Path(directory)
    backend = load_backend(directory / "tokenizer.json")
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (directory / name).is_file():
            settings |= read_json(directory / name, "settings of the tokenizer")
    template = directory / "chat_template.jinja"
    if template.is_file():
        # a character has at most 4 bytes; `Template` counts characters
        settings["chat_template"] = read_text(template, 4 * MOST_CHARACTERS, TokenizerError)
    return Tokenizer(backend, settings, str(directory), template_options)


def load_backend(path: Path) -> Backend:
    """The library's tokenizer for a file; raises `TokenizerError`."""
    if not path.is_file():
        raise TokenizerError(
            f"{path}: no such file; minisafe reads tokenizer.json (transformers writes one with "
            "save_pretrained)"
        )
    text = read_text(path, error=TokenizerError)
    with uncollected():
        check_file(parse_json(text, f"{path}: not a tokenizer", TokenizerError), str(path))
    backend: Backend = asked(str(path), Backend.from_str, text)
    backend.no_truncation()
    backend.no_padding()
    read = asked(str(path), backend.encode, "a b")  # panics now, not at the first prompt
    asked(str(path), backend.decode, read.ids)
    return backend


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection, which takes half of the time to make about 300,000 small lists."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


# ---- what the library does not check -----------------------------------------------------------


def check_file(data: Any, source: str) -> None:
    """Raise `TokenizerError` for a `tokenizer.json` that the library must not get."""
    try:
        check_tokens(data)
        check_merges(data["model"])
        for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
            for part in parts_of(data.get(name)):
                check = CHECKS.get((name, part.get("type")))
                if check is not None:
                    check(part)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        why = str(error) if isinstance(error, Malformed) else "its parts are not as expected"
        raise TokenizerError(f"{source}: not a tokenizer ({why})") from None


class Malformed(ValueError):
    """What is wrong with a `tokenizer.json`."""


def check_tokens(data: Mapping[str, Any]) -> None:
    """Raise `Malformed` for an id or a token beyond the limits."""
    for token, id_ in tokens_of(data):
        if not isinstance(id_, int) or isinstance(id_, bool) or not 0 <= id_ < MOST_IDS:
            name = one_line(repr(token), 80)
            raise Malformed(
                f"the id of {name} is {one_line(repr(id_), 40)}; expected 0 to {MOST_IDS - 1:,}"
            )
        if len(token) > MOST_TOKEN_CHARACTERS:
            raise Malformed(
                f"a token has {len(token):,} characters; expected at most {MOST_TOKEN_CHARACTERS:,}"
            )


def tokens_of(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(token, id) of the vocabulary and of the added tokens."""
    vocab = data["model"].get("vocab") or {}
    if isinstance(vocab, dict):
        yield from vocab.items()
    else:  # a unigram model: [token, score], and the id is the index
        yield from ((each[0], number) for number, each in enumerate(vocab))
    for each in data.get("added_tokens") or []:
        yield each["content"], each["id"]


def check_merges(model: Mapping[str, Any]) -> None:
    """Raise `Malformed` if a merge's second part lacks the prefix that it must begin with."""
    prefix = model.get("continuing_subword_prefix")
    if not prefix:
        return
    for merge in model.get("merges") or []:
        second = merge.rpartition(" ")[2] if isinstance(merge, str) else merge[1]
        if not second.startswith(prefix):
            raise Malformed(
                f"the merge {one_line(repr(merge), 80)} has no part that begins with "
                f"continuing_subword_prefix {one_line(repr(prefix), 40)}"
            )


def parts_of(part: Any) -> Iterator[Mapping[str, Any]]:
    """A normalizer, pre-tokenizer, post-processor or decoder, and its parts."""
    if isinstance(part, dict):
        yield part
        for name in ("normalizers", "pretokenizers", "processors", "decoders"):
            for inner in part.get(name) or []:
                yield from parts_of(inner)


def check_special_tokens(processor: Mapping[str, Any]) -> None:
    """Raise `Malformed` for a template of special tokens that uses an undefined one."""
    known = processor.get("special_tokens") or {}
    for name, token in known.items():
        if len(token["ids"]) != len(token["tokens"]):
            raise Malformed(f"its post_processor gives {one_line(repr(name), 80)} too few tokens")
    for piece in [*(processor.get("single") or []), *(processor.get("pair") or [])]:
        name = piece["SpecialToken"]["id"] if "SpecialToken" in piece else None
        if name is not None and name not in known:
            raise Malformed(
                f"its post_processor names {one_line(repr(name), 80)} but does not define it"
            )


def check_strip(decoder: Mapping[str, Any]) -> None:
    """Raise `Malformed` for a decoder that strips the end of tokens: it fails on short tokens."""
    if decoder["stop"] > 0:
        raise Malformed(f"its decoder strips {decoder['stop']} from a token's end; expected 0")


def check_charsmap(normalizer: Mapping[str, Any]) -> None:
    """Raise `Malformed` unless SentencePiece's character map is complete: the size of a table, the
    table, and text."""
    data = base64.b64decode(normalizer["precompiled_charsmap"])
    size = int.from_bytes(data[:4], "little")
    try:
        data[4 + size :].decode()
    except UnicodeDecodeError:
        size = len(data)
    if len(data) < 4 + size:
        raise Malformed("its normalizer's precompiled_charsmap is damaged")


def check_replaced(normalizer: Mapping[str, Any]) -> None:
    """Raise `Malformed` for a normalizer that replaces the empty string."""
    if normalizer["pattern"].get("String") == "":
        raise Malformed("its normalizer replaces an empty text")


def check_prepended(normalizer: Mapping[str, Any]) -> None:
    """Raise `Malformed` for a normalizer that prepends the empty string."""
    if not normalizer["prepend"]:
        raise Malformed("its normalizer prepends an empty text")


def check_length(pre_tokenizer: Mapping[str, Any]) -> None:
    """Raise `Malformed` for pieces without length."""
    if pre_tokenizer["length"] < 1:
        raise Malformed(f"its pieces have the length {pre_tokenizer['length']}; expected 1 or more")


CHECKS: dict[tuple[str, Any], Callable[[Mapping[str, Any]], None]] = {
    ("post_processor", "TemplateProcessing"): check_special_tokens,
    ("decoder", "Strip"): check_strip,
    ("normalizer", "Precompiled"): check_charsmap,
    ("normalizer", "Replace"): check_replaced,
    ("normalizer", "Prepend"): check_prepended,
    ("pre_tokenizer", "FixedLength"): check_length,
}


# ---- whether it fits the model -----------------------------------------------------------------


def check_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raise `TokenizerError` if a token's id has no row in the embedding."""
    if tokenizer.size > vocab_size:
        raise TokenizerError(
            f"{tokenizer.source}: the tokenizer has {tokenizer.size} ids, the model embeds "
            f"{vocab_size}; is this the model's own tokenizer?"
        )


def check_same_vocabulary(base: Tokenizer, expert: Tokenizer) -> None:
    """Raise `TokenizerError` unless both tokenizers map every id to the same token string."""
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
