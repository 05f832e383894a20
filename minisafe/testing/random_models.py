"""Tiny random models, adapters and texts, and what hypothesis draws them from.

The models have every family and feature, so that what holds for them rarely fails for a real one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from functools import lru_cache
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from minisafe.checkpoint import linear_modules
from minisafe.checkpoint.config import FAMILIES
from minisafe.config import LlamaConfig, RopeScaling, Yarn
from minisafe.lora import LoraAdapter, LoraDelta
from minisafe.model import Llama

# What two orders of the same float32 sums may differ by, at logits of up to about 10: ten times
# what is seen, and a thousandth of what one wrong column in a mask does.
TOLERANCE = 1e-4


YARN = Yarn(4.0, 16, 1.1, beta_fast=2.0, beta_slow=0.05, truncate=False)  # a blend of pairs


def tiny_config(**overrides: Any) -> LlamaConfig:
    """A Llama of 2 layers x 32 dims over 67 ids, with grouped queries, but for `overrides`."""
    values: dict[str, Any] = {
        "family": "llama",
        "vocab_size": 67,
        "hidden": 32,
        "intermediate": 48,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 8,
        "norm_eps": 1e-5,
        "max_positions": 64,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tied": False,
        "qkv_bias": False,
        "o_bias": False,
        "mlp_bias": False,
        "dtype": "float32",
    }
    unknown = set(overrides) - {field.name for field in fields(LlamaConfig)}
    if unknown:
        raise TypeError(f"LlamaConfig has no {', '.join(sorted(unknown))}")
    values |= overrides
    values.setdefault("windows", (None,) * values["n_layers"])
    return LlamaConfig(**values)


@lru_cache(maxsize=64)
def random_model(config: LlamaConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> Llama:
    """A model with lively logits: the residual stream grows, and norms and biases are not trivial.

    The same arguments give the same object, so do not change what it holds.
    """
    generator = torch.Generator().manual_seed(seed)
    model = Llama(config)
    for name, parameter in model.tensors().items():
        tensor = parameter.data
        noise = torch.randn(tensor.shape, generator=generator)
        if "norm" in name:
            noise = 1 + 0.3 * noise
        elif name.endswith("bias"):
            noise = 0.3 * noise
        elif "embed" not in name:
            noise = noise * 1.5 / math.sqrt(tensor.shape[-1])
        elif config.tied:
            noise = 0.4 * noise  # as a head it would otherwise mostly repeat the last token
        tensor.copy_(noise)
    return model.to(dtype).requires_grad_(False).eval()


def random_adapter(
    model: Llama,
    seed: int = 0,
    rank: int = 3,
    endings: Sequence[str] = ("q_proj", "v_proj", "o_proj", "down_proj"),
) -> LoraAdapter:
    """An adapter on the modules with these endings that changes the logits visibly."""
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for name, (out_features, in_features) in linear_modules(model).items():
        if name.split(".")[-1] in endings:
            a = torch.randn(rank, in_features, generator=generator) / math.sqrt(in_features)
            b = torch.randn(out_features, rank, generator=generator) / math.sqrt(rank)
            deltas[name] = LoraDelta(a.to(model.dtype), b.to(model.dtype), 0.5)
    return LoraAdapter(deltas)


def random_ids(model: Llama, rows: int, width: int, seed: int = 0) -> Tensor:
    """(rows, width) token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (rows, width), generator=generator)


# ---- what hypothesis draws ---------------------------------------------------------------------

GRANITE: tuple[dict[str, Any], ...] = (
    {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2,
     "logits_scaling": 1.5},
    # a sharp softmax; with 1.0, and heads of 8 values, float32 is up to 2e-4 from float64
    {"attention_multiplier": 0.5},
)  # fmt: skip


@st.composite
def configs(draw: st.DrawFn) -> LlamaConfig:
    """Tiny configs of every family and feature."""
    family = draw(st.sampled_from(tuple(FAMILIES)))
    n_layers = draw(st.integers(1, 3))
    n_kv_heads, group = draw(st.sampled_from(((1, 4), (2, 2), (4, 1), (2, 1))))
    window = st.one_of(st.none(), st.integers(1, 9))
    if family in ("mistral", "phi3"):
        windows = (draw(window),) * n_layers
    elif family in ("qwen2", "qwen3", "smollm3"):
        size = draw(st.integers(1, 9))
        kinds = draw(st.lists(st.booleans(), min_size=n_layers, max_size=n_layers))
        windows = tuple(size if windowed else None for windowed in kinds)
    else:
        windows = (None,) * n_layers
    bias = family in ("llama", "qwen3", "granite", "smollm3") and draw(st.booleans())
    scaling = draw(st.sampled_from((None, None, RopeScaling(4.0, 1.0, 4.0, 16), YARN)))
    scaling = None if family == "phi3" else scaling
    silent = draw(st.sampled_from(((), (0,), (1, 2), (0, 1, 2)))) if family == "smollm3" else ()
    return tiny_config(
        family=family,
        n_layers=n_layers,
        n_heads=n_kv_heads * group,
        n_kv_heads=n_kv_heads,
        head_dim=draw(st.sampled_from((4, 8, 12))),
        rope_theta=draw(st.sampled_from((100.0, 10000.0))),
        rope_scaling=scaling,
        tied=draw(st.booleans()),
        qkv_bias=bias or family == "qwen2",
        o_bias=bias,
        mlp_bias=family in ("llama", "granite", "smollm3") and draw(st.booleans()),
        windows=windows,
        qk_norm=family == "qwen3",
        unrotated=tuple(layer for layer in range(n_layers) if layer in silent),
        **draw(st.sampled_from(GRANITE)) if family == "granite" else {},
    )


models = st.builds(random_model, configs(), st.integers(0, 3))


@st.composite
def chunkings(draw: st.DrawFn, width: int) -> list[int]:
    """Sizes of consecutive chunks that make up `width` tokens."""
    sizes: list[int] = []
    while sum(sizes) < width:
        sizes.append(draw(st.integers(1, width - sum(sizes))))
    return sizes
