"""A directory's files: found, joined from shards, written whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from minisafe.checkpoint import EMBED, INDEX, SINGLE, load_model, save_model
from minisafe.errors import CheckpointError, ConfigError, OutputError
from minisafe.model import Llama
from tests.support.spoil import refuses, shard, write_index
from tests.support.tiny import tensors_of


def test_one_file_of_any_name_will_do(directory: Path) -> None:
    (directory / SINGLE).rename(directory / "weights.safetensors")
    load_model(directory)


def test_a_file_may_be_a_link(directory: Path, tmp_path: Path) -> None:
    """As in Hugging Face's cache, where every file is one."""
    (directory / SINGLE).rename(tmp_path / "blob")
    (directory / SINGLE).symlink_to(tmp_path / "blob")
    load_model(directory)


def test_a_file_is_written_whole_or_not_at_all(
    directory: Path, base: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the disk is full halfway: what stood there still stands."""

    def half(*args: Any, **kwargs: Any) -> None:
        path = next(arg for arg in args if isinstance(arg, Path))
        path.open("wb").write(b"half")
        raise OSError("no space left on device")

    def content() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in directory.iterdir()}

    before = content()
    for where, name in (
        ("minisafe.checkpoint.files", "save_file"),
        ("pathlib.Path", "write_bytes"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"{where}.{name}", half)
            with pytest.raises(OutputError, match="the disk is full"):
                save_model(base, directory)
        assert content() == before


# ---- shards ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5])
def test_shards_join(directory: Path, n: int) -> None:
    whole = load_model(directory, "float32")
    kept = {name: tensor.clone() for name, tensor in tensors_of(whole).items()}
    shard(directory, n)
    assert all(torch.equal(t, kept[k]) for k, t in tensors_of(load_model(directory)).items())


def test_a_missing_shard_is_named(directory: Path) -> None:
    shard(directory, 3)
    (directory / "model-00002-of-00003.safetensors").unlink()
    refuses(CheckpointError, lambda: load_model(directory), "model-00002-of-00003", "no such file")


@pytest.mark.parametrize(
    "path",
    ["../outside.safetensors", "/{0}/outside.safetensors", "sub/x.safetensors", "..", "x.bin", 5],
)
def test_a_shard_stays_in_its_directory(directory: Path, tmp_path: Path, path: str | int) -> None:
    """The file that the index points at exists, and would complete the model."""
    weight_map: dict[str, Any] = shard(directory, 2)
    (directory / "sub").mkdir()
    file = weight_map[EMBED]
    for other in (tmp_path, directory / "sub"):
        shutil.copy(directory / file, other / "outside.safetensors")
        shutil.copy(directory / file, other / "x.safetensors")
    path = path.format(tmp_path) if isinstance(path, str) else path
    write_index(directory, {k: path if v == file else v for k, v in weight_map.items()})
    refuses(CheckpointError, lambda: load_model(directory), str(path), "of this directory")


def test_an_index_that_lies_is_found_out(directory: Path) -> None:
    weight_map = shard(directory, 2)
    first, second = sorted(set(weight_map.values()))
    moved = next(name for name, file in weight_map.items() if file == second)
    write_index(directory, weight_map | {moved: first})  # says another shard
    refuses(CheckpointError, lambda: load_model(directory), moved)
    write_index(directory, {k: v for k, v in weight_map.items() if k != moved})  # conceals one
    refuses(CheckpointError, lambda: load_model(directory), second, moved, "does not assign")
    write_index(directory, weight_map | {"model.layers.9.extra": first})  # makes one up
    refuses(CheckpointError, lambda: load_model(directory), first, "model.layers.9.extra", "lacks")


@pytest.mark.parametrize("weight_map", [None, {}, [], "model.safetensors"])
def test_an_index_needs_a_weight_map(directory: Path, weight_map: object) -> None:
    shard(directory, 2)
    write_index(directory, weight_map)
    refuses(CheckpointError, lambda: load_model(directory), INDEX, "weight_map")


def test_an_index_that_is_no_json(directory: Path) -> None:
    shard(directory, 2)
    (directory / INDEX).write_text("{")
    refuses(ConfigError, lambda: load_model(directory), INDEX, "not valid JSON")


def test_two_files_need_an_index(directory: Path) -> None:
    shard(directory, 2)
    (directory / INDEX).unlink()
    refuses(CheckpointError, lambda: load_model(directory), "2 safetensors files", INDEX)
