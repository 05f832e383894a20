"""Directories to values and back: what is stored is what is loaded."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import configs, random_ids, random_model, tensors_of
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from spoil import refuses, respell, restore, shard, write_index

from minisafe.checkpoint import EMBED, HEAD, INDEX, SINGLE, fingerprint, load_model, save_model
from minisafe.config import LlamaConfig
from minisafe.errors import CheckpointError, ConfigError, SettingError
from minisafe.model import Llama


def same(model: Llama, other: Llama) -> bool:
    ours, theirs = tensors_of(model), tensors_of(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# ---- models that load --------------------------------------------------------------------------


@given(configs(), st.integers(0, 3), st.sampled_from((torch.float32, torch.bfloat16)))
def test_what_is_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, config: LlamaConfig, seed: int, dtype: torch.dtype
) -> None:
    directory = tmp_path_factory.mktemp("model")
    model = random_model(config, seed, dtype)
    save_model(model, directory, extra={"eos_token_id": [1, 2]})
    loaded = load_model(directory)
    assert same(loaded, model)
    assert loaded.dtype == dtype
    assert loaded.config == replace(config, dtype=str(dtype).removeprefix("torch."))
    assert json.loads((directory / "config.json").read_text())["eos_token_id"] == [1, 2]
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", SINGLE]
    ids = random_ids(model, 2, 6)
    assert torch.equal(loaded(ids), model(ids))


def test_a_loaded_model_is_ready_for_inference(directory: Path) -> None:
    model = load_model(str(directory))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_dtype_can_be_asked_for(directory: Path, name: str) -> None:
    dtype = getattr(torch, name)
    original = tensors_of(load_model(directory))
    for asked in (name, dtype):
        model = load_model(directory, asked)
        assert model.dtype == dtype
        for key, tensor in tensors_of(model).items():
            assert torch.equal(tensor, original[key].to(dtype))


def test_unknown_dtypes_are_refused(directory: Path) -> None:
    for dtype in ("int8", "float64", torch.float64, torch.int8):
        refuses(SettingError, lambda dtype=dtype: load_model(directory, dtype), "bfloat16")


def test_without_a_dtype_in_the_config_the_files_is_kept(directory: Path) -> None:
    respell(directory, torch_dtype=None)
    assert load_model(directory).dtype == torch.float32
    restore(directory, {k: v.bfloat16() for k, v in load_file(directory / SINGLE).items()})
    assert load_model(directory).dtype == torch.bfloat16


def test_tensors_of_several_dtypes_become_the_configs(directory: Path) -> None:
    norm = "model.norm.weight"
    restore(directory, {norm: load_file(directory / SINGLE)[norm].half()})
    assert {tensor.dtype for tensor in tensors_of(load_model(directory)).values()} == {
        torch.float32
    }


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("sharded", [False, True])
def test_weights_stay_where_the_file_is_mapped(directory: Path, sharded: bool) -> None:
    if sharded:
        shard(directory, 3)
    model = load_model(directory)
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if str(directory) in line:
            mapped.append([int(end, 16) for end in line.split()[0].split("-")])
    for name, tensor in tensors_of(model).items():
        assert any(start <= tensor.data_ptr() < stop for start, stop in mapped), name


def test_a_model_can_be_saved_over_the_files_it_is_mapped_from(directory: Path) -> None:
    model = load_model(directory)
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    save_model(model, directory)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(model).items())
    assert same(load_model(directory), model)


def test_a_file_is_written_whole_or_not_at_all(
    directory: Path, base: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the disk is full halfway: what stood there still stands."""

    def half(*args: Any, **kwargs: Any) -> None:
        path = next(arg for arg in args if isinstance(arg, Path))
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    def content() -> dict[str, bytes]:
        files = [path for path in directory.iterdir() if path.suffix != ".tmp"]
        return {path.name: path.read_bytes() for path in files}

    before = content()
    for where, name in (("minisafe.checkpoint", "save_file"), ("pathlib.Path", "write_text")):
        with monkeypatch.context() as patch:
            patch.setattr(f"{where}.{name}", half)
            with pytest.raises(OSError, match="no space"):
                save_model(base, directory)
        assert content() == before


def test_old_rotary_buffers_are_passed_over(directory: Path) -> None:
    restore(directory, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    load_model(directory)


def test_one_file_of_any_name_will_do(directory: Path) -> None:
    (directory / SINGLE).rename(directory / "weights.safetensors")
    load_model(directory)


def test_a_file_may_be_a_link(directory: Path, tmp_path: Path) -> None:
    """As in Hugging Face's cache, where every file is one."""
    (directory / SINGLE).rename(tmp_path / "blob")
    (directory / SINGLE).symlink_to(tmp_path / "blob")
    load_model(directory)


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
    refuses(CheckpointError, lambda: load_model(directory), second, moved, "does not place here")
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


# ---- tied heads --------------------------------------------------------------------------------


@pytest.fixture
def tied(tiny_model, model_directory) -> Path:
    """A model with tied heads, stored under the embedding's name."""
    return model_directory(tiny_model(tied=True), "tied")


@pytest.mark.parametrize("where", [(EMBED,), (HEAD,), (EMBED, HEAD)], ids="+".join)
def test_tied_heads_under_either_name_or_both(tied: Path, where: tuple[str, ...]) -> None:
    expected = load_model(tied)(torch.arange(6)[None])
    table = load_file(tied / SINGLE)[EMBED]
    restore(tied, {EMBED: None} | {name: table.clone() for name in where})
    model = load_model(tied)
    assert model.lm_head is None
    assert torch.equal(model(torch.arange(6)[None]), expected)


def test_tied_heads_in_two_shards(tied: Path) -> None:
    table = load_file(tied / SINGLE)[EMBED]
    restore(tied, {HEAD: table.clone()})
    shard(tied, 2)
    load_model(tied)


def test_tied_heads_that_differ_are_refused(tied: Path) -> None:
    table = load_file(tied / SINGLE)[EMBED]
    other = table.clone()
    other[3, 3] += 1
    for head in (other, torch.ones(67, 31), torch.full_like(table, float("nan"))):
        restore(tied, {HEAD: head})
        refuses(CheckpointError, lambda: load_model(tied), HEAD, EMBED, "differ")
    restore(tied, {EMBED: None, HEAD: torch.ones(67, 31)})
    refuses(CheckpointError, lambda: load_model(tied), HEAD, "(67, 31)", "(67, 32)")
    restore(tied, {EMBED: None, HEAD: None})
    refuses(CheckpointError, lambda: load_model(tied), "missing tensors", EMBED)


def test_untied_heads_are_both_needed(directory: Path) -> None:
    for name in (EMBED, HEAD):
        kept = load_file(directory / SINGLE)[name]
        restore(directory, {name: None})
        refuses(CheckpointError, lambda: load_model(directory), "missing tensors", name)
        restore(directory, {name: kept})


# ---- fingerprints ------------------------------------------------------------------------------


def test_a_fingerprint_tells_weights_apart(directory: Path, tiny_model) -> None:
    model = load_model(directory)
    assert fingerprint(model) == fingerprint(load_model(directory)) == fingerprint(tiny_model())
    assert fingerprint(model) != fingerprint(tiny_model(seed=1))
    assert fingerprint(model) != fingerprint(tiny_model(tied=True))
    half = load_model(directory, "bfloat16")
    save_model(half, directory)
    assert fingerprint(half) == fingerprint(load_model(directory, "float32")) != fingerprint(model)
