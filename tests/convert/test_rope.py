"""RoPE scaling from the divisors of a file: found where it is Llama 3's, else refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minisafe.config import LlamaConfig, RopeScaling
from minisafe.convert.rope import find_scaling
from minisafe.rotary import inverse_frequencies
from tests.support.gguf_files import divisors
from tests.support.tiny import tiny_config

LLAMA_3_1 = tiny_config(
    head_dim=128, rope_theta=500000.0, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192)
)
LLAMA_3_2 = replace(LLAMA_3_1, head_dim=64, rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192))


def stored(config: LlamaConfig) -> np.ndarray:
    found = divisors(config)
    assert found is not None
    return found


@pytest.mark.parametrize("config", [LLAMA_3_1, LLAMA_3_2])
def test_published_scalings(config: LlamaConfig) -> None:
    assert find_scaling(stored(config), config) == config.rope_scaling


@given(
    st.sampled_from((4, 8, 32, 64, 128)), st.sampled_from((1e4, 5e5)), st.sampled_from((2.0, 8.0)),
    st.sampled_from((16, 2048, 8192)), st.sampled_from((1.0, 2.0)), st.sampled_from((4.0, 8.0)),
)  # fmt: skip
def test_what_is_found_rotates_alike(
    head_dim: int, theta: float, factor: float, context: int, low: float, high: float
) -> None:
    """Other factors with the same ratios may come out; no other rotation may."""
    config = tiny_config(
        head_dim=head_dim, rope_theta=theta, rope_scaling=RopeScaling(factor, low, high, context)
    )
    try:
        found = find_scaling(stored(config), config)
    except ValueError:
        # one frequency between fast and slow does not tell two unusual numbers
        assert (low, high) != (1.0, 4.0)
        return
    again = replace(config, rope_scaling=found)
    torch.testing.assert_close(
        inverse_frequencies(again), inverse_frequencies(config), rtol=2e-4, atol=0
    )


def test_all_ones_are_no_scaling() -> None:
    assert find_scaling(np.ones(64, np.float32), LLAMA_3_1) is None


@pytest.mark.parametrize(
    "wrong",
    [
        np.full(64, 4.0, np.float32)[:32],  # of a smaller head
        np.linspace(1, 8, 64, dtype=np.float32)[::-1].copy(),  # slows the fast ones
        np.full(64, 0.5, np.float32),
        np.full(64, np.nan, np.float32),
        np.zeros(64, np.float32),
        np.linspace(1, 40, 64, dtype=np.float32) ** 2,
    ],
)
def test_other_scalings_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError):
        find_scaling(wrong, LLAMA_3_1)
