"""What tests share of tiny models: those of `minisafe.testing`, and what only these tests need."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from minisafe.cache import KVCache
from minisafe.lora import AdaptedRows
from minisafe.model import Llama
from minisafe.testing.random_models import GRANITE as GRANITE
from minisafe.testing.random_models import TOLERANCE as TOLERANCE
from minisafe.testing.random_models import YARN as YARN
from minisafe.testing.random_models import chunkings as chunkings
from minisafe.testing.random_models import configs as configs
from minisafe.testing.random_models import models as models
from minisafe.testing.random_models import random_adapter as random_adapter
from minisafe.testing.random_models import random_ids as random_ids
from minisafe.testing.random_models import random_model as random_model
from minisafe.testing.random_models import tiny_config as tiny_config

EVERY_FEATURE = tiny_config(  # of a layer, so that a compiled step has to have them all
    hidden=64, intermediate=96, head_dim=16, qkv_bias=True, windows=(None, 4), qk_norm=True,
    max_positions=256, embedding_multiplier=3.0, residual_multiplier=0.6, attention_multiplier=0.3,
    logits_scaling=1.5, unrotated=(1,),
)  # fmt: skip


def tensors_of(model: Llama) -> dict[str, Tensor]:
    """Every tensor by its Hugging Face name."""
    return dict(model.tensors())


def cache_for(model: Llama, rows: int, capacity: int = 64) -> KVCache:
    return model.new_cache(rows, capacity)


def greedy(
    model: Llama, ids: Tensor, n: int, cached: bool = True, adapters: tuple[AdaptedRows, ...] = ()
) -> Tensor:
    """(B, n) greedy tokens after `ids` (B, T), with a cache or by reading all again each time."""
    cache = cache_for(model, len(ids), ids.shape[1]) if cached else None
    text, fed = ids, ids
    for _ in range(n):
        logits = model(fed if cached else text, cache, adapters=adapters, last_only=True)
        fed = logits.argmax(-1, keepdim=True)
        text = torch.cat((text, fed), dim=1)
    return text[:, ids.shape[1] :]


def load_bench(name: str) -> ModuleType:
    """A file of bench/ as its siblings import it, from its own directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
        return importlib.import_module(name)
