"""What was given where a model, an adapter or a text was expected, and what to do about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from minisafe.checkpoint import SINGLE, load_model
from minisafe.checkpoint.config import load_config
from minisafe.errors import CheckpointError, ConfigError
from minisafe.files import read_json
from tests.support.spoil import refuses

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"


def refused(path: Path | str, *words: str) -> None:
    refuses(ConfigError, lambda: load_config(path), str(path), *words)


def test_a_file_as_a_model(tmp_path: Path) -> None:
    for name, word in (
        ("m.gguf", "GGUF, llama.cpp's format; convert it once with `minisafe convert"),
        ("m.safetensors", "its directory"),
        ("x", "a file;"),
    ):
        (tmp_path / name).write_bytes(b"GGUF")
        refused(tmp_path / name, word, "expected a Hugging Face model directory")


def test_a_name_on_the_hub(tmp_path: Path) -> None:
    refused("meta-llama/Llama-3.2-1B", "not download", "hf download meta-llama/Llama-3.2-1B")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "gone")
    assert "the Hugging Face hub" not in str(caught.value)


def test_a_directory_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "named" / "unsafe").mkdir(parents=True)
    (tmp_path / "named" / "unsafe" / "adapter_config.json").write_text("{}")
    refused(tmp_path / "named", "holds LoRA adapters", "one of them: unsafe")
    refused(tmp_path / "named" / "unsafe", "this is a LoRA adapter")
    (tmp_path / "many" / "one").mkdir(parents=True)
    (tmp_path / "many" / "one" / "config.json").write_text("{}")
    refused(tmp_path / "many", "holds models", "one of them: one")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "profile.json").write_text("{}")
    refused(tmp_path / "p", "--profile")
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "m.gguf").write_bytes(b"")
    refused(tmp_path / "g", "GGUF", f"`minisafe convert {tmp_path / 'g' / 'm.gguf'} --out m`")


def test_pointers_of_git_lfs(directory: Path) -> None:
    (directory / SINGLE).write_text(POINTER)
    refuses(CheckpointError, lambda: load_model(directory), SINGLE, "Git LFS pointer", "lfs pull")
    (directory / "config.json").write_text(POINTER)
    refused(directory, "config.json", "Git LFS pointer", "lfs pull")
    refuses(ConfigError, lambda: read_json(directory / "config.json", ""), "Git LFS pointer")
