"""Model directories that cannot be loaded: each is refused by name, in one line."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from minisafe.checkpoint import EMBED, INDEX, SINGLE, load_model, save_model
from minisafe.errors import BadInput, CheckpointError, ConfigError
from tests.support.spoil import Bomb, raised, refuses, respell, restore
from tests.support.tiny import random_model, tiny_config

DOWN = "model.layers.1.mlp.down_proj.weight"


def test_no_directory_and_no_config(tmp_path: Path) -> None:
    refuses(ConfigError, lambda: load_model(tmp_path / "gone"), "gone", "no such directory")
    refuses(ConfigError, lambda: load_model(tmp_path), "config.json", "no such file")
    (tmp_path / "config.json").write_text("{'single': 'quotes'}")
    refuses(ConfigError, lambda: load_model(tmp_path), "config.json", "not valid JSON")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mixtral"}, ("mixtral", "llama, mistral, qwen2, qwen3")),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, ("dynamic",)),
        ({"hidden_act": "gelu_new"}, ("gelu_new", "silu")),
        ({"quantization_config": {"quant_method": "awq"}}, ("quantization_config", "awq")),
        ({"torch_dtype": "float8_e5m2"}, ("float8_e5m2", "bfloat16")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_unsupported_configs_are_refused_by_name(
    directory: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    respell(directory, **changes)
    refuses(ConfigError, lambda: load_model(directory), "config.json", *words)


def test_a_directory_without_weights(directory: Path) -> None:
    (directory / SINGLE).unlink()
    refuses(CheckpointError, lambda: load_model(directory), f"no {SINGLE} and no {INDEX}")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_never_read(directory: Path, tmp_path: Path, name: str) -> None:
    """The message gives the command that converts them."""
    (directory / SINGLE).unlink()
    mark = tmp_path / "it-ran"
    (directory / name).write_bytes(pickle.dumps(Bomb(mark)))
    words = (name, "pickle", "python -c", "AutoModelForCausalLM", str(directory))
    refuses(CheckpointError, lambda: load_model(directory), *words)
    (directory / name).rename(directory / SINGLE)  # nor under a false name
    refuses(
        CheckpointError, lambda: load_model(directory), SINGLE, "not a complete safetensors file"
    )
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        b"\0" * 64,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"<!DOCTYPE html>\n<title>Not found</title>",
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 4) + b"nope",
    ],
    ids=["empty", "short", "zeros", "git-lfs", "html", "huge-header", "no-json"],
)
def test_what_is_no_safetensors_file_is_named(directory: Path, content: bytes) -> None:
    (directory / SINGLE).write_bytes(content)
    refuses(CheckpointError, lambda: load_model(directory), SINGLE, "safetensors file")


@given(st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_named(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    directory = tmp_path_factory.mktemp("cut")
    save_model(random_model(tiny_config()), directory)
    whole = (directory / SINGLE).read_bytes()
    (directory / SINGLE).write_bytes(whole[: int(share * len(whole))])
    refuses(CheckpointError, lambda: load_model(directory), SINGLE)


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_header_gives_a_named_error_or_none(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any few bytes of the header changed: a BadInput or a model, never a traceback."""
    directory = tmp_path_factory.mktemp("header")
    save_model(random_model(tiny_config(n_layers=1)), directory)
    content = bytearray((directory / SINGLE).read_bytes())
    (size,) = struct.unpack("<Q", content[:8])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, size + 7))] = data.draw(st.integers(0, 255))
    (directory / SINGLE).write_bytes(content)
    refused = raised(lambda: load_model(directory))
    assert refused is None or (isinstance(refused, BadInput) and "\n" not in str(refused))


def test_a_directory_in_the_files_place(directory: Path) -> None:
    (directory / SINGLE).unlink()
    (directory / SINGLE).mkdir()
    refuses(CheckpointError, lambda: load_model(directory), SINGLE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({DOWN: torch.ones(32, 47)}, (SINGLE, DOWN, "(32, 47)", "(32, 48)")),
        ({DOWN: torch.ones(48, 32)}, (DOWN, "(48, 32)", "(32, 48)")),
        ({DOWN: torch.ones(32 * 48)}, (DOWN, "(1536,)")),
        ({EMBED: torch.ones(66, 32)}, (EMBED, "(66, 32)", "(67, 32)")),
        ({DOWN: None}, ("missing tensors", DOWN)),
        ({"model.norm.weight": None}, ("missing tensors", "model.norm.weight")),
        ({"model.layers.2.mlp.up_proj.weight": torch.ones(2)}, ("unexpected", "model.layers.2")),
        ({DOWN.replace("weight", "bias"): torch.ones(32)}, ("unexpected", "down_proj.bias")),
        ({DOWN.replace("weight", "qweight"): torch.ones(2)}, ("unexpected", "down_proj.qweight")),
        ({DOWN: torch.ones(32, 48, dtype=torch.int8)}, (DOWN, "int8", "float")),
        ({DOWN: torch.ones(32, 48, dtype=torch.int64)}, (DOWN, "int64", "float")),
        ({DOWN: torch.ones(32, 48).to(torch.float8_e4m3fn)}, (DOWN, "float8_e4m3fn")),
    ],
    ids=str,
)
def test_tensors_that_do_not_fit_are_named(
    directory: Path, changes: dict[str, Tensor | None], words: tuple[str, ...]
) -> None:
    restore(directory, changes)
    refuses(CheckpointError, lambda: load_model(directory), *words)


def test_many_missing_tensors_are_counted(directory: Path) -> None:
    respell(directory, num_hidden_layers=3)
    refuses(CheckpointError, lambda: load_model(directory), "missing", "layers.2", "and 5 more")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [DOWN, EMBED, "model.norm.weight"])
def test_weights_that_are_not_finite_are_named(directory: Path, name: str, value: float) -> None:
    tensor = load_file(directory / SINGLE)[name]
    tensor.view(-1)[-1] = value
    restore(directory, {name: tensor})
    refuses(CheckpointError, lambda: load_model(directory), SINGLE, name, "1 NaN or infinite")


def test_infinities_that_cancel_in_a_sum_are_found(directory: Path) -> None:
    tensor = load_file(directory / SINGLE)[DOWN]
    tensor[0, 0], tensor[0, 1] = float("inf"), float("-inf")
    restore(directory, {DOWN: tensor})
    refuses(CheckpointError, lambda: load_model(directory), DOWN, "2 NaN or infinite")


def test_large_weights_whose_sum_overflows_are_fine(directory: Path) -> None:
    respell(directory, torch_dtype="float16")
    restore(directory, {DOWN: torch.full((32, 48), 6e4).half()})
    assert load_model(directory).dtype == torch.float16


def test_a_value_beyond_the_asked_dtype_is_named(directory: Path) -> None:
    """Finite in the file, infinite as float16."""
    tensor = load_file(directory / SINGLE)[DOWN]
    tensor[0, 0] = 1e6
    restore(directory, {DOWN: tensor})
    load_model(directory, "bfloat16")
    refuses(CheckpointError, lambda: load_model(directory, "float16"), DOWN, "float16")
