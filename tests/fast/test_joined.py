"""Projections of one input as one product: what they give apart, and taken from the model."""

from __future__ import annotations

import copy

import pytest
import torch

from minisafe.fast.joined import JoinedAttention, JoinedMLP
from minisafe.fast.packed import PackedLinear
from minisafe.lora import AdaptedRows
from minisafe.model import MLP, Attention, Llama
from tests.support.tiny import random_adapter, random_model, tiny_config

CONFIG = tiny_config(qkv_bias=True, mlp_bias=True, qk_norm=True, attention_multiplier=0.2)


@torch.inference_mode()
@pytest.mark.parametrize("adapted", [False, True])
def test_joined_parts_are_what_the_parts_give(adapted: bool) -> None:
    plain = random_model(CONFIG)
    joined = copy.deepcopy(plain)
    layer, taken = plain.layers[1], joined.layers[1]
    attn = JoinedAttention(taken.self_attn, PackedLinear)  # type: ignore[arg-type, union-attr]
    mlp = JoinedMLP(taken.mlp, PackedLinear)  # type: ignore[arg-type, union-attr]
    adapter = random_adapter(plain, endings=("q_proj", "v_proj", "up_proj"))
    adapters = (AdaptedRows(adapter, slice(1, 2)),) if adapted else ()
    step = plain.make_step((3, 3), 3, adapters=adapters)
    x = torch.randn(2, 3, CONFIG.hidden, generator=torch.Generator().manual_seed(0))
    for found, part in ((attn(x, step), layer.self_attn), (mlp(x, step), layer.mlp)):  # type: ignore[union-attr]
        torch.testing.assert_close(found, part(x, step), atol=1e-5, rtol=1e-5)  # type: ignore[operator]


def test_the_parts_are_let_go() -> None:
    joined = copy.deepcopy(random_model(CONFIG))
    assert isinstance(joined, Llama)
    attn, mlp = joined.layers[0].self_attn, joined.layers[0].mlp  # type: ignore[union-attr]
    assert isinstance(attn, Attention)
    assert isinstance(mlp, MLP)
    JoinedAttention(attn, PackedLinear)
    JoinedMLP(mlp, PackedLinear)
    assert [name for name, _ in attn.named_children()] == ["o_proj", "q_norm", "k_norm"]
    assert [name for name, _ in mlp.named_children()] == ["down_proj"]
