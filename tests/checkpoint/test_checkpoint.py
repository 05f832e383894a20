"""Directories to values and back: what is stored is what is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from minisafe.checkpoint import EMBED, HEAD, SINGLE, fingerprint, load_model, save_model
from minisafe.config import LlamaConfig
from minisafe.errors import CheckpointError, SettingError
from minisafe.model import Llama
from tests.support.spoil import refuses, respell, restore, shard
from tests.support.tiny import configs, random_ids, random_model, tensors_of


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


def test_old_rotary_buffers_are_passed_over(directory: Path) -> None:
    restore(directory, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    load_model(directory)


# ---- tied heads --------------------------------------------------------------------------------


@pytest.fixture
def tied(tiny_model, model_directory) -> Path:
    """A model with tied heads, stored under the embedding's name."""
    return model_directory(tiny_model(tied=True), "tied")


@pytest.mark.parametrize("where", [(EMBED,), (HEAD,), (EMBED, HEAD)], ids="+".join)
def test_tied_heads_under_either_name_or_both(tied: Path, where: tuple[str, ...]) -> None:
    expected = load_model(tied)(torch.arange(6)[None])
    table = load_file(tied / SINGLE)[EMBED].clone()  # older safetensors map the file
    restore(tied, {EMBED: None} | {name: table.clone() for name in where})
    model = load_model(tied)
    assert model.lm_head is None
    assert torch.equal(model(torch.arange(6)[None]), expected)


def test_tied_heads_in_two_shards(tied: Path) -> None:
    table = load_file(tied / SINGLE)[EMBED].clone()  # older safetensors map the file
    restore(tied, {HEAD: table.clone()})
    shard(tied, 2)
    load_model(tied)


def test_tied_heads_that_differ_are_refused(tied: Path) -> None:
    table = load_file(tied / SINGLE)[EMBED].clone()  # older safetensors map the file
    other = table.clone()
    other[3, 3] += 1
    for head in (other, torch.ones(67, 31), torch.full_like(table, float("nan"))):
        restore(tied, {HEAD: head})
        refuses(CheckpointError, lambda: load_model(tied), HEAD, EMBED, "differ")
    restore(tied, {EMBED: None, HEAD: torch.ones(67, 31)})
    refuses(CheckpointError, lambda: load_model(tied), HEAD, "(67, 31)", "(67, 32)")
    restore(tied, {EMBED: None, HEAD: None})
    refuses(CheckpointError, lambda: load_model(tied), "missing tensors", EMBED)


@pytest.mark.parametrize("where", [(EMBED,), (HEAD,), (EMBED, HEAD)], ids="+".join)
def test_a_tied_head_is_checked_under_either_name(tied: Path, where: tuple[str, ...]) -> None:
    table = load_file(tied / SINGLE)[EMBED].clone()  # older safetensors map the file
    for value, dtype, words in (
        (float("nan"), None, "1 NaN or infinite"),
        (1e6, "float16", "beyond the range of float16"),
    ):
        spoilt = table.clone()
        spoilt[3, 3] = value
        restore(tied, {EMBED: None} | {name: spoilt.clone() for name in where})
        refuses(CheckpointError, lambda dtype=dtype: load_model(tied, dtype), where[0], words)


def test_tied_heads_are_compared_in_the_dtype_that_is_run(tied: Path) -> None:
    table = load_file(tied / SINGLE)[EMBED].clone()  # older safetensors map the file
    rounded = table.bfloat16().float()
    restore(tied, {HEAD: rounded})
    refuses(CheckpointError, lambda: load_model(tied), HEAD, EMBED, "differ")
    model = load_model(tied, "bfloat16")
    assert torch.equal(model.embed_tokens.weight, table.bfloat16())


def test_a_tied_head_under_the_other_name_does_not_decide_the_dtype(tied: Path) -> None:
    """As an export might leave it: one tensor rounded, and no dtype in the config."""
    respell(tied, torch_dtype=None)
    restore(tied, {EMBED: None, HEAD: load_file(tied / SINGLE)[EMBED].bfloat16()})
    assert {each.dtype for each in tensors_of(load_model(tied)).values()} == {torch.float32}


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
