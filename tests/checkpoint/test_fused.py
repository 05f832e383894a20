"""Fused projections: split when they are read, joined when they are written, refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minisafe.checkpoint import SINGLE, load_adapter, load_model, save_adapter, save_model
from minisafe.checkpoint.fused import split_deltas
from minisafe.errors import AdapterError, CheckpointError
from minisafe.lora import AdaptedRows, LoraDelta
from tests.support.tiny import random_adapter, random_ids, random_model, tensors_of, tiny_config

MODEL = random_model(tiny_config(family="phi3", n_heads=4, n_kv_heads=2), 3)
ATTN, MLP = "model.layers.1.self_attn", "model.layers.1.mlp"
QKV, GATE_UP = f"{ATTN}.qkv_proj.weight", f"{MLP}.gate_up_proj.weight"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_model(MODEL, tmp_path)
    return tmp_path


def test_what_is_written_is_fused_and_reads_back(directory: Path) -> None:
    ours, stored = tensors_of(MODEL), load_file(directory / SINGLE)
    parts = [ours[f"{ATTN}.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(stored[QKV], torch.cat(parts))
    assert stored[GATE_UP].shape == (96, 32)
    assert not any("q_proj" in name or "up_proj" in name.split("gate_")[0] for name in stored)
    loaded = load_model(directory)
    assert all(torch.equal(tensor, ours[name]) for name, tensor in tensors_of(loaded).items())
    assert loaded.config == MODEL.config
    ids = random_ids(MODEL, 2, 9)
    assert torch.equal(loaded(ids), MODEL(ids))
    llama = random_model(replace(MODEL.config, family="llama"), 3)
    assert torch.equal(llama(ids), MODEL(ids)), "apart from its files, it is a Llama"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({QKV: None}, ("missing tensors", QKV)),
        ({QKV: torch.ones(65, 32)}, (QKV, "shape (65, 32)", "the config needs (64, 32)")),
        ({GATE_UP: torch.ones(96)}, (GATE_UP, "shape (96,)", "needs (96, 32)")),
        ({GATE_UP: torch.ones(96, 31)}, ("shape (48, 31)", "the config needs (48, 32)")),
        ({f"{ATTN}.q_norm.weight": torch.ones(8)}, ("unexpected tensor", "q_norm", "phi3")),
        ({QKV: None, f"{ATTN}.qkv_proj.qweight": torch.ones(2).int()}, ("GPTQ or AWQ",)),
    ],
)
def test_other_shapes_are_refused(
    directory: Path, changes: dict[str, Tensor | None], words: tuple[str, ...]
) -> None:
    tensors = load_file(directory / SINGLE) | changes
    save_file(
        {name: each for name, each in tensors.items() if each is not None}, directory / SINGLE
    )
    with pytest.raises(CheckpointError) as raised:
        load_model(directory)
    assert all(word in str(raised.value) for word in words)
    assert str(directory) in str(raised.value)


def test_an_adapter_of_the_parts_reads_back(tmp_path: Path) -> None:
    """What minisafe trains: peft does not know these modules of a Phi-3."""
    adapter = random_adapter(MODEL, rank=4, endings=("q_proj", "up_proj"))
    save_adapter(adapter, tmp_path, rank=4, alpha=2.0)
    loaded, ids = load_adapter(tmp_path, MODEL), random_ids(MODEL, 1, 9)
    ours, theirs = (
        MODEL(ids, adapters=(AdaptedRows(each, slice(0, 1)),)) for each in (adapter, loaded)
    )
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, MODEL(ids))


def test_a_delta_of_a_fused_module_is_one_of_each_part() -> None:
    a, b = torch.randn(3, 32), torch.randn(64, 3)
    found = split_deltas({f"{ATTN}.qkv_proj": LoraDelta(a, b, 0.5)}, MODEL.config)
    assert list(found) == [f"{ATTN}.{part}_proj" for part in "qkv"]
    whole = torch.cat([delta.weight() for delta in found.values()])
    torch.testing.assert_close(whole, LoraDelta(a, b, 0.5).weight())
    with pytest.raises(AdapterError, match="both"):
        split_deltas(found | {f"{ATTN}.qkv_proj": LoraDelta(a, b, 0.5)}, MODEL.config)
