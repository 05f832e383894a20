"""The settings beside the weights: tokenizer and sampling, and what has no place in either."""

from __future__ import annotations

from typing import Any

from minisafe.convert.container import Container
from minisafe.convert.shape import shortest
from minisafe.convert.shape import unread_keys as unread_shape
from minisafe.convert.vocabulary import BYTE_LEVEL, ENDS, Vocabulary
from minisafe.convert.vocabulary import unread_keys as unread_tokens
from minisafe.errors import ConfigError, SettingError, TokenizerError
from minisafe.files.display import shown
from minisafe.sampling import Sampling
from minisafe.tokenizer.templates import MOST_CHARACTERS

TEMPLATE = "tokenizer.chat_template"
SAMPLING = "general.sampling."
# settings of generation_config.json, by key
SAMPLED = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}


def tokenizer_config(
    container: Container, vocabulary: Vocabulary, max_positions: int
) -> dict[str, Any]:
    """The content of `tokenizer_config.json`; raises `TokenizerError` for a bad chat template."""
    data: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_positions,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": vocabulary.add_bos,
        "add_eos_token": vocabulary.add_eos,
        **vocabulary.roles(),
    }
    template = chat_template(container)
    return data if template is None else data | {"chat_template": template}


def chat_template(container: Container) -> str | list[dict[str, str]] | None:
    """The chat template, or a list of named ones; None if the file has none."""
    found = {
        key.removeprefix(TEMPLATE).removeprefix(".") or "default": value
        for key, value in container.metadata.items()
        if key == TEMPLATE or key.startswith(TEMPLATE + ".")
    }
    for name, text in found.items():
        if not isinstance(text, str) or len(text) > MOST_CHARACTERS:
            raise TokenizerError(
                f"{container.path}: the chat template {shown(name)} is not a text of at most "
                f"{MOST_CHARACTERS:,} characters"
            )
    if set(found) <= {"default"}:
        return found.get("default")
    return [{"name": name, "template": text} for name, text in found.items()]


def generation_config(container: Container, vocabulary: Vocabulary) -> dict[str, Any]:
    """The content of `generation_config.json`: what ends an answer, and how to sample if the file
    says so. Raises `ConfigError` for a setting out of range."""
    ids = vocabulary.ids
    ends = list(dict.fromkeys(ids[key] for key in ENDS if key in ids))
    data: dict[str, Any] = {}
    for name, key in (("bos_token_id", "bos_token_id"), ("pad_token_id", "padding_token_id")):
        if key in ids:
            data[name] = ids[key]
    if ends:
        data["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    stated = {
        ours: shortest(container.metadata[SAMPLING + theirs])
        for theirs, ours in SAMPLED.items()
        if SAMPLING + theirs in container.metadata
    }
    if stated:
        try:
            sampling = Sampling(**stated)
        except (SettingError, TypeError) as error:
            raise ConfigError(f"{container.path}: {SAMPLING}: {error}") from None
        data |= {"do_sample": sampling.temperature > 0, **stated}
    return data


def lost(container: Container, vocabulary: Vocabulary) -> tuple[str, ...]:
    """What has no place in the directory, or had to be guessed: one line each."""
    keys = unread_shape(container) + unread_tokens(container)
    sampling = {SAMPLING + name for name in SAMPLED}
    keys += [key for key in container.metadata if key.startswith(SAMPLING) and key not in sampling]
    found = [f"{shown(key)} has no place in a Hugging Face directory" for key in keys]
    if vocabulary.model == BYTE_LEVEL and vocabulary.pre == "default":
        found.append(
            "the file names no pre-tokenizer, so texts are split as GPT-2 splits them; the "
            "original may split numbers otherwise"
        )
    if chat_template(container) is None:
        found.append("the file has no chat template; the model answers plain prompts only")
    if not any(key in vocabulary.ids for key in ENDS):
        found.append("the file names no end token; answers end at their limit")
    return tuple(found)
