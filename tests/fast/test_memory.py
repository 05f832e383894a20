"""Planned memory against the tensors that there are."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from minisafe.cache_dtype import CACHE_DTYPES
from minisafe.config import LlamaConfig
from minisafe.fast.int8 import PackedInt8
from minisafe.fast.joined import JoinedLinear
from minisafe.fast.memory import Memory, Reader, adapter_bytes, planned, weight_bytes
from minisafe.fast.packed import PackedLinear
from minisafe.fast.prepare import prepare
from minisafe.lockstep import Lockstep, Stream
from minisafe.model import Llama
from tests.support.tiny import random_adapter, random_model, tiny_config

TIED = [False, True]


def tensors_in(value: object) -> Iterator[Tensor]:
    """The tensors that a module holds outside its parameters."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, PackedInt8):
        yield from (value.weight, value.scales, value.zeros)
    elif isinstance(value, tuple):
        for each in value:
            yield from tensors_in(each)


def held_bytes(model: Llama) -> int:
    """Bytes of every tensor that the model's modules hold, each memory once."""
    found: dict[int, int] = {}
    for module in model.modules():
        parts = [*module.parameters(recurse=False), *tensors_in(tuple(vars(module).values()))]
        for each in parts:
            packed = each.is_mkldnn
            found[id(each) if packed else each.data_ptr()] = each.numel() * each.element_size()
    return sum(found.values())


def made(config: LlamaConfig, dtype: torch.dtype) -> Llama:
    return copy.deepcopy(random_model(config, 1)).to(dtype)


@pytest.mark.parametrize("tied", TIED, ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weights", ["plain", "packed", "int8"])
def test_weights_take_what_was_planned(weights: str, dtype: torch.dtype, tied: bool) -> None:
    config = tiny_config(tied=tied, vocab_size=256, hidden=64, intermediate=96)
    model = prepare(made(config, dtype), weights)
    wide = [m for m in model.modules() if isinstance(m, PackedLinear) and m.wide is None]
    plan = weight_bytes(config, dtype, weights)
    if weights == "packed" and dtype == torch.bfloat16:  # where the race ruled the copies out
        plan -= sum(4 * shape_of(each) for each in wide)
    assert held_bytes(model) == pytest.approx(plan, rel=0.04)  # norms in float32 are not planned


def shape_of(part: JoinedLinear) -> int:
    """How many weights a packed part has."""
    assert isinstance(part.weight, Tensor)
    return part.weight.numel()


@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)
def test_caches_take_what_was_planned(cache_dtype: str) -> None:
    config = tiny_config(max_positions=64)
    model = random_model(config, 1)
    streams = [Stream(model), Stream(model, random_adapter(model, 1))]
    lockstep = Lockstep(streams, 3, 40, cache_dtype=cache_dtype)
    plan = planned(config, torch.float32, "plain", [Reader("expert")], 40, 3, cache_dtype)
    assert sum(plan.caches.values()) == sum(group.cache.n_bytes for group in lockstep.groups)
    assert list(plan.caches) == ["base", "expert"]


def test_an_adapter_takes_what_was_planned() -> None:
    model = made(tiny_config(), torch.float32)
    adapter = random_adapter(model, 1)
    shapes = {}
    for name, delta in adapter.deltas.items():
        shapes[f"{name}.lora_A.weight"] = tuple(delta.a.shape)
        shapes[f"{name}.lora_B.weight"] = tuple(delta.b.shape)
    own = sum(delta.a.nbytes + delta.b.nbytes for delta in adapter.deltas.values())
    assert adapter_bytes(shapes, model.config, torch.float32, "plain") == own
    prepare(model, "packed")
    joined = 0
    for part in model.modules():
        if isinstance(part, JoinedLinear) and part.sizes.keys() != {"lm_head"}:
            deltas: Any = part.deltas_of(adapter)
            joined += 0 if deltas is None else deltas.a.nbytes + deltas.b.nbytes
    assert joined > 0
    assert adapter_bytes(shapes, model.config, torch.float32, "packed") == own + joined


def test_what_counts_at_the_peak() -> None:
    """A second model counts as the first; what only loading holds counts unless caches are more."""
    assert Memory(100, {"expert": 7}, {"base": 20, "expert": 20}, 5, 2, 30).total == 154
    assert Memory(100, {}, {"base": 1}, 5, 2, 30).total == 130
    config = tiny_config()
    alone = planned(config, torch.float32, "plain")
    other = planned(config, torch.float32, "plain", [Reader("expert", config)])
    assert other.others["expert"] == alone.weights
    assert other.caches == {"base": alone.caches["base"], "expert": alone.caches["base"]}
    longest = planned(config, torch.float32, "plain", context=10**9)
    assert longest.caches == planned(config, torch.float32, "plain",
                                     context=config.max_positions).caches  # fmt: skip
    short = [Reader("expert", replace(config, max_positions=16))]
    assert (
        planned(config, torch.float32, "plain", short).caches
        == planned(config, torch.float32, "plain", short, context=16).caches
    )
