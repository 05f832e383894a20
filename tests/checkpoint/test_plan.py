"""The plan: what a config asks for, held against the files before a model is built."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from safetensors.torch import load_file

from minisafe.checkpoint import SINGLE, load_model, plan, save_model
from minisafe.checkpoint.plan import tensor_shapes
from minisafe.config import LlamaConfig
from minisafe.errors import CheckpointError, OutOfMemory
from minisafe.model import Llama
from tests.support.spoil import refuses, respell, restore
from tests.support.tiny import configs, random_model, tensors_of, tiny_config

DOWN = "model.layers.1.mlp.down_proj.weight"


@given(configs())
def test_the_plan_is_what_the_model_has(config: LlamaConfig) -> None:
    with torch.device("meta"):
        tensors = tensors_of(Llama(config))
    shapes = dict(tensor_shapes(config))
    assert shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert config.n_parameters == sum(math.prod(shape) for shape in shapes.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 512},
        {"vocab_size": 2**22},
        {"hidden_size": 2**17},
        {"num_attention_heads": 2**12, "num_key_value_heads": 2**12, "head_dim": 2**12},
        {"num_hidden_layers": 512, "intermediate_size": 2**20, "hidden_size": 2**17},
    ],
    ids=str,
)
def test_a_config_that_is_larger_than_the_files_is_refused_at_once(
    directory: Path, changes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minisafe.checkpoint.Llama", None)  # nothing is built
    respell(directory, **changes)
    start = time.perf_counter()
    refuses(CheckpointError, lambda: load_model(directory))
    assert time.perf_counter() - start < 1


def test_a_config_of_another_model_is_told_in_parameters(directory: Path) -> None:
    respell(directory, hidden_size=4096, intermediate_size=11008)
    words = ("has shape", "the config needs", "parameters; the files hold")
    refuses(CheckpointError, lambda: load_model(directory), *words)


Q_NORM = "model.layers.1.self_attn.q_norm.weight"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({Q_NORM: None}, ("missing tensors", Q_NORM)),
        ({Q_NORM: torch.ones(32)}, (Q_NORM, "has shape (32,)", "the config needs (8,)")),
    ],
    ids=["missing", "of all heads together"],
)
def test_the_norms_of_heads_are_held_to_the_config(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], words: tuple[str, ...]
) -> None:
    save_model(random_model(tiny_config(family="qwen3", qk_norm=True)), tmp_path)
    load_model(tmp_path)
    restore(tmp_path, changes)
    refuses(CheckpointError, lambda: load_model(tmp_path), *words)


def test_norms_of_heads_that_the_config_does_not_know_are_refused(directory: Path) -> None:
    restore(directory, {Q_NORM: torch.ones(8)})
    refuses(CheckpointError, lambda: load_model(directory), "unexpected tensor", Q_NORM, "llama")


@pytest.mark.parametrize(
    ("changes", "program"),
    [
        ({DOWN: None, DOWN.replace("weight", "qweight"): torch.ones(2).int()}, "GPTQ or AWQ"),
        (
            {
                DOWN: torch.ones(32, 6, dtype=torch.uint32),
                DOWN.replace("weight", "scales"): torch.ones(32, 1),
                DOWN.replace("weight", "biases"): torch.ones(32, 1),
            },
            "MLX",
        ),
        ({DOWN + ".absmax": torch.ones(2)}, "bitsandbytes"),
    ],
    ids=["gptq", "mlx", "bitsandbytes"],
)
def test_quantised_tensors_are_told_by_their_program(
    directory: Path, changes: dict[str, torch.Tensor | None], program: str
) -> None:
    if program == "MLX":
        pytest.importorskip("safetensors", "0.5.0", "older ones do not write uint32")
    restore(directory, changes)
    words = (program, "the config does not say so", "unquantised checkpoint")
    refuses(CheckpointError, lambda: load_model(directory), *words)


def test_what_does_not_fit_in_memory_is_said_before(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = sum(tensor.numel() for tensor in load_file(directory / SINGLE).values())
    monkeypatch.setattr(plan, "memory", lambda: 2 * n - 1)
    load_model(directory)  # stays where it is mapped
    words = ("as bfloat16", "GiB", "keep the checkpoint's own dtype")
    refuses(OutOfMemory, lambda: load_model(directory, "bfloat16"), *words)
    monkeypatch.setattr(plan, "memory", lambda: 2 * n)
    load_model(directory, "bfloat16")


def test_the_machines_memory_is_known_or_not() -> None:
    assert plan.memory() is None or plan.memory() > 2**28
