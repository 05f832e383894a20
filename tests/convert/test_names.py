"""Names and order of rows, against the writer's own."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minisafe.checkpoint.plan import tensor_shapes
from minisafe.convert.names import gguf_name, is_reordered, original_order
from tests.support.gguf_files import permuted, their_name
from tests.support.tiny import tiny_config


def test_every_name() -> None:
    config = tiny_config(qkv_bias=True, o_bias=True, mlp_bias=True, qk_norm=True)
    names = [name for name, _ in tensor_shapes(config)]
    found = [gguf_name(name) for name in names]
    assert found == [their_name(name) for name in names]
    assert len(set(found)) == len(names)


@given(st.integers(1, 5), st.sampled_from((2, 4, 12, 64)), st.integers(1, 3))
def test_order_is_undone(heads: int, head_dim: int, columns: int) -> None:
    rows = np.arange(heads * head_dim * columns, dtype=np.float32).reshape(-1, columns)
    moved = permuted(rows, heads)
    assert np.array_equal(moved[original_order(len(moved), head_dim)], rows)
    one = moved[-head_dim:]  # a head by itself
    assert np.array_equal(one[original_order(head_dim, head_dim)], rows[-head_dim:])


def test_the_first_rows_of_a_head() -> None:
    """llama.cpp keeps value 0 beside value head_dim / 2."""
    assert original_order(8, 8).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert original_order(8, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_only_q_and_k_of_llama() -> None:
    config = tiny_config(n_layers=1, qkv_bias=True, o_bias=True, qk_norm=True)
    names = [name for name, _ in tensor_shapes(config)]
    moved = [name for name in names if is_reordered(name, tiny_config())]
    prefix = "model.layers.0.self_attn."
    assert moved == [
        f"{prefix}{name}" for name in
        ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")
    ]  # fmt: skip
    for family in ("qwen2", "qwen3"):
        assert not any(is_reordered(name, tiny_config(family=family)) for name in names)
