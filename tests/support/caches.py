"""What the tests of caches share: the kinds, a config, and blocks to write."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minisafe.cache import KVCache
from minisafe.fast.cache import FastCache
from tests.support.tiny import tiny_config

CONFIG = tiny_config(n_layers=2, n_kv_heads=2, head_dim=4, max_positions=40)
both_kinds = pytest.mark.parametrize("kind", [KVCache, FastCache])


def block(rows: int, width: int, first: float) -> tuple[Tensor, Tensor]:
    """Keys and values (rows, n_kv_heads, width, head_dim), every element told apart."""
    k = first + torch.arange(rows * 2 * width * 4).float().view(rows, 2, width, 4)
    return k, -k
