"""The shape of a model from metadata and tensors, and what is refused or said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minisafe.convert import plan_conversion
from minisafe.convert.container import read_container
from minisafe.convert.shape import config_data, read_shape, shortest
from minisafe.errors import CheckpointError, ConfigError, MinisafeError
from minisafe.model import Llama
from tests.support.gguf_files import letters, write_model
from tests.support.spoil import refuses
from tests.support.tiny import random_model, tensors_of, tiny_config


def made(directory: Path, model: Llama | None = None, **how: Any) -> Path:
    model = random_model(tiny_config(n_layers=1)) if model is None else model
    words = letters(model.config.vocab_size)
    return write_model(directory / "m.gguf", model.config, tensors_of(model), words, **how)


def test_floats_are_the_shortest_that_are_the_same() -> None:
    assert shortest(float(np.float32(1e-5))) == 1e-5
    assert shortest(float(np.float32(500000.0))) == 500000.0
    assert shortest(0.1) == 0.1, "a double stays as it is"
    assert shortest(7) == 7
    assert shortest(float("inf")) == float("inf")


def test_what_may_be_left_out(tmp_path: Path) -> None:
    """As llama.cpp reads a file without them."""
    model = random_model(tiny_config(n_layers=1, n_kv_heads=4))
    left = {"llama__attention__head_count_kv": None, "llama__rope__freq_base": None,
            "llama__rope__dimension_count": None, "llama__vocab_size": None}  # fmt: skip
    found = read_shape(read_container(made(tmp_path, model, **left)))
    assert (found.n_kv_heads, found.rope_theta, found.head_dim) == (4, 10000.0, 8)


def test_a_head_size_that_is_not_stated_is_an_equal_share(tmp_path: Path) -> None:
    """As llama.cpp takes it. In a config, Qwen3's is then 128."""
    model = random_model(tiny_config(n_layers=1, family="qwen3", qk_norm=True))
    left = {"qwen3__attention__key_length": None, "qwen3__attention__value_length": None}
    assert read_shape(read_container(made(tmp_path, model, **left))).head_dim == 8


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"llama__block_count": None}, "no llama.block_count"),
        ({"llama__embedding_length": 0}, "hidden_size is 0; expected a whole number"),
        ({"llama__block_count": 2**31}, "num_hidden_layers is 2147483648; expected"),
        ({"llama__attention__head_count": "x"}, "num_attention_heads is 'x'"),
        ({"llama__attention__head_count": [4, 4]}, "num_attention_heads is [4, 4]"),
        ({"llama__attention__head_count_kv": 3}, "not a multiple of num_key_value_heads 3"),
        ({"llama__context_length": 2**31}, "max_position_embeddings is"),
        ({"llama__attention__layer_norm_rms_epsilon": 0.0}, "rms_norm_eps is 0.0"),
        ({"llama__rope__freq_base": 0.5}, "rope_theta is 0.5"),
        ({"llama__rope__dimension_count": 4}, "4 of 8 values of each head are rotated"),
        ({"llama__attention__key_length": 16}, "heads of one size"),
        ({"llama__expert_count": 8}, "llama.expert_count is 8, which minisafe does not run"),
        ({"llama__rope__scaling__type": "yarn"}, "llama.rope.scaling.type is 'yarn'"),
        ({"llama__rope__scale_linear": 4.0}, "llama.rope.scale_linear is 4.0"),
        ({"llama__logit_scale": 8.0}, "llama.logit_scale is 8.0"),
        ({"llama__attention__causal": False}, "llama.attention.causal is False"),
        ({"general__architecture": "gemma2"}, "the architecture is 'gemma2'; minisafe converts"),
        ({"general__architecture": "gemma3"}, "converts llama, qwen2, qwen3"),
    ],
)  # fmt: skip
def test_numbers_that_are_refused(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    path = made(tmp_path, **changes)
    refuses(ConfigError, lambda: plan_conversion(path), str(path), word)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"general__type": "adapter"}, "holds GGUF of the type 'adapter'; expected a model"),
        ({"general__architecture": "controlvector"}, "a control vector, not a model"),
        ({"split__count": 3}, "one of 3 parts; join them first"),
        ({"leave_out": ["token_embd.weight"]}, "no token_embd.weight"),
        ({"leave_out": ["blk.0.ffn_up.weight"]}, "missing tensors: blk.0.ffn_up.weight"),
        ({"llama__block_count": 3}, "missing tensors: blk.1.attn_norm.weight, blk.1.ffn_norm"),
        ({"llama__feed_forward_length": 47}, "blk.0.ffn_gate.weight has shape (48, 32); the"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    path = made(tmp_path, **changes)
    refuses(CheckpointError, lambda: plan_conversion(path), str(path), word)


def test_a_tensor_too_many(tmp_path: Path) -> None:
    model = random_model(tiny_config(n_layers=1))
    tensors = tensors_of(model) | {"model.layers.0.mlp.gate_exps.weight": torch.ones(2, 2)}
    write_model(tmp_path / "m.gguf", model.config, tensors, letters(67))
    call = lambda: plan_conversion(tmp_path / "m.gguf")  # noqa: E731
    refuses(CheckpointError, call, "unexpected tensor 'blk.0.mlp.gate_exps.weight'", "1 layers")


def test_a_scaling_that_is_not_llama_3s(tmp_path: Path) -> None:
    model = random_model(tiny_config(n_layers=1))
    tensors = tensors_of(model) | {"rope_freqs.weight": torch.tensor([9.0, 5.0, 2.0, 1.0])}
    write_model(tmp_path / "m.gguf", model.config, tensors, letters(67))
    refuses(ConfigError, lambda: plan_conversion(tmp_path / "m.gguf"), "rope_freqs.weight is not")


def test_heads_and_biases_follow_the_tensors(tmp_path: Path) -> None:
    model = random_model(tiny_config(qkv_bias=True, o_bias=True, tied=True, head_dim=12))
    data = config_data(read_container(made(tmp_path, model)))
    assert data["attention_bias"]
    assert not data["mlp_bias"]
    assert data["tie_word_embeddings"]
    assert data["head_dim"] == 12
    assert data["vocab_size"] == 67


def test_what_has_no_place_is_said(tmp_path: Path) -> None:
    path = made(
        tmp_path, llama__new_thing=1, tokenizer__ggml__precompiled_charsmap=[1, 2],
        general__sampling__mirostat=2, tokenizer__chat_template=None, quantize__imatrix__file="x",
        tokenizer__ggml__eos_token_id=None, tokenizer__ggml__remove_extra_whitespaces=False,
    )  # fmt: skip
    said = plan_conversion(path).lost
    assert [line.split(" ")[0] for line in said[:3]] == [
        "'llama.new_thing'", "'tokenizer.ggml.precompiled_charsmap'", "'general.sampling.mirostat'",
    ]  # fmt: skip
    assert "no chat template" in said[3]
    assert "no end token" in said[4]
    assert len(said) == 5


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"general__sampling__temp": -1.0}, "general.sampling.: temperature"),
        ({"general__sampling__top_p": "x"}, "general.sampling."),
        ({"tokenizer__chat_template": 5}, "the chat template 'default' is not a text"),
        ({"tokenizer__chat_template": "x" * (2**20 + 1)}, "at most 1,048,576 characters"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    from minisafe.convert import convert

    path = made(tmp_path, **changes)
    with pytest.raises(MinisafeError, match=word) as raised:
        convert(plan_conversion(path), tmp_path / "out", "float32", lambda done, total: None)
    assert raised.value.exit_code == 2
    assert not (tmp_path / "out").exists()
