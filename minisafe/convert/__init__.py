"""A GGUF model becomes a Hugging Face directory.

`plan_conversion` reads all but the values and refuses what cannot be converted; `convert` writes
the directory, whole or not at all. The values pass by in blocks of rows, so memory does not depend
on the size of the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from minisafe import __version__
from minisafe.checkpoint import SINGLE, as_dtype, stated_tensors
from minisafe.checkpoint.config import config_json, load_config
from minisafe.checkpoint.plan import make_plan, tensor_shapes
from minisafe.config import LlamaConfig
from minisafe.convert.beside import generation_config, lost, tokenizer_config
from minisafe.convert.container import Container, read_container
from minisafe.convert.names import gguf_name, is_reordered, original_order
from minisafe.convert.shape import check_kind, read_shape
from minisafe.convert.tokenizer import tokenizer_json
from minisafe.convert.values import Floats, count_types, kind_of, library, plain_dtype, read_rows
from minisafe.convert.vocabulary import Vocabulary, read_vocabulary
from minisafe.convert.writer import Entry, Report, write_weights
from minisafe.errors import TokenizerError
from minisafe.files import whole_directory, write_text
from minisafe.files.display import shown
from minisafe.tokenizer import load_tokenizer

RECORD = "convert.json"


@dataclass(frozen=True)
class Conversion:
    """All that is known of a GGUF file before its values are read.

    lost: what has no place in the directory, one line each.
    """

    container: Container
    config: LlamaConfig
    vocabulary: Vocabulary
    tokenizer: Mapping[str, Any]
    lost: tuple[str, ...]

    @property
    def types(self) -> dict[str, int]:
        """How many tensors have each type, such as Q4_K, the most frequent first."""
        return count_types(self.container)

    @property
    def plain_dtype(self) -> str | None:
        """The dtype of the file's matrices; None if they are quantised or differ."""
        return plain_dtype(self.container)


def plan_conversion(path: Path) -> Conversion:
    """Read and check all but the values.

    Raises `CheckpointError`, `ConfigError` or `TokenizerError` for a file that is no whole model
    of a supported architecture, or has something that minisafe does not run.
    """
    container = read_container(path)
    check_kind(container)
    library()
    config = read_shape(container)
    vocabulary = read_vocabulary(container, config.vocab_size)
    made = tokenizer_json(vocabulary, str(path))
    return Conversion(container, config, vocabulary, made, lost(container, vocabulary))


def convert(plan: Conversion, out: Path, dtype: str, report: Report) -> dict[str, Any]:
    """Write the directory `out`, which must not exist; returns the content of its convert.json.

    dtype: float32, bfloat16 or float16. report: gets the values written so far and in all.

    Raises `CheckpointError` for values that are not finite or too large for the dtype,
    `TokenizerError` for a vocabulary that the tokenizers library does not take, `OutputError` if
    the directory cannot be written.
    """
    wanted, path = as_dtype(dtype), plan.container.path
    assert wanted is not None
    config = replace(plan.config, dtype=dtype)
    with whole_directory(out) as part:
        write_small_files(plan, config, part)
        with path.open("rb") as file:
            size = write_weights(part / SINGLE, entries(plan, file), wanted, str(path), report)
        # what was written is held against its own config, as whoever loads it will do
        make_plan(load_config(part), stated_tensors(part), part, None, "cpu")
        record = describe(plan, dtype, size)
        write_json(part / RECORD, record)
    return record


def write_small_files(plan: Conversion, config: LlamaConfig, directory: Path) -> None:
    """All files but the weights."""
    vocabulary, container = plan.vocabulary, plan.container
    sampling = generation_config(container, vocabulary)
    ids = {name: value for name, value in sampling.items() if name.endswith("_token_id")}
    write_json(directory / "config.json", config_json(config) | ids)
    write_json(directory / "generation_config.json", sampling)
    write_json(
        directory / "tokenizer_config.json",
        tokenizer_config(container, vocabulary, config.max_positions),
    )
    text = json.dumps(plan.tokenizer, ensure_ascii=False)
    write_text(directory / "tokenizer.json", text + "\n")
    check_tokenizer(plan, directory)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write indented JSON; raises `OutputError`."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def check_tokenizer(plan: Conversion, directory: Path) -> None:
    """Raise `TokenizerError` unless the library reads every token back with its id: it numbers
    added tokens itself."""
    vocabulary, source = plan.vocabulary, plan.container.path
    try:
        backend = load_tokenizer(directory).backend
    except TokenizerError as error:
        said = str(error).replace(str(directory / "tokenizer.json"), "the tokenizer made of it")
        raise TokenizerError(f"{source}: {said}") from None
    read = backend.get_vocab(with_added_tokens=True)
    stated = {token: id_ for id_, token in enumerate(vocabulary.tokens[: vocabulary.size])}
    if read != stated:
        both = read.keys() | stated.keys()
        differing = sorted(key for key in both if read.get(key) != stated.get(key))
        raise TokenizerError(
            f"{source}: the tokenizers library gives {len(differing)} tokens other ids, such as "
            f"{shown(differing[0])}; the vocabulary cannot be rebuilt"
        )


def entries(plan: Conversion, file: BinaryIO) -> list[Entry]:
    """The tensors to write, in the order of a model's own."""
    return [
        Entry(name, shape, partial(blocks, plan, name, file))
        for name, shape in tensor_shapes(plan.config)
    ]


def blocks(plan: Conversion, name: str, file: BinaryIO) -> Iterator[Floats]:
    """The values of one tensor in Hugging Face's order, some rows at a time."""
    tensor = plan.container.tensors[gguf_name(name)]
    kind, config = kind_of(tensor, plan.container), plan.config
    if not is_reordered(name, config):
        yield from read_rows(file, tensor, kind)
    elif len(tensor.shape) == 1:  # a bias
        for bias in read_rows(file, tensor, kind):
            yield bias[:, original_order(bias.shape[1], config.head_dim)]
    else:
        for rows in read_rows(file, tensor, kind, together=config.head_dim):
            yield rows[original_order(len(rows), config.head_dim)]


def describe(plan: Conversion, dtype: str, size: int) -> dict[str, Any]:
    """What was converted, with the general metadata of the file, such as its licence."""
    container, config = plan.container, plan.config
    general = {
        key.removeprefix("general."): value
        for key, value in container.metadata.items()
        if key.startswith("general.")
    }
    return {
        "minisafe_convert": 1, "version": __version__, "source": container.path.name,
        "source_bytes": container.size, "types": plan.types, "dtype": dtype,
        "weights_bytes": size, "parameters": config.n_parameters, "tokens": plan.vocabulary.size,
        "pre_tokenizer": plan.vocabulary.pre, "lost": list(plan.lost), "general": general,
    }  # fmt: skip
