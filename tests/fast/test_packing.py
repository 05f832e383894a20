"""Packing: a ragged block's tokens as rows of their own, and back; the model through it."""

from __future__ import annotations

import copy

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from minisafe.fast.packing import PackedStep
from minisafe.fast.prepare import prepare
from minisafe.lora import AdaptedRows, LoraAdapter, LoraDelta
from minisafe.model import Llama
from minisafe.slots import Add, Record
from tests.support.tiny import random_model, tiny_config

COUNTS = st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any)
PLAIN = random_model(tiny_config(), seed=1)
MODEL = prepare(copy.deepcopy(PLAIN), "auto")


def packed_step(
    counts: list[int], width: int, adapters: tuple[AdaptedRows, ...] = ()
) -> PackedStep:
    cache = PLAIN.new_cache(len(counts), 16)
    return PackedStep.of(PLAIN.make_step(tuple(counts), width, cache, adapters=adapters))


@given(COUNTS, st.integers(0, 2))
def test_spread_undoes_pack_and_leaves_padding_zero(counts: list[int], extra: int) -> None:
    width = max(counts) + extra
    assume(min(counts) < width)  # a block without padding is not packed
    x = torch.arange(1.0, 1 + len(counts) * width * 2).view(len(counts), width, 2)
    step = packed_step(counts, width)
    packed = step.pack(x)
    rows = [x[row, column] for row, count in enumerate(counts) for column in range(count)]
    assert torch.equal(packed, torch.stack(rows).unsqueeze(1))
    real = (torch.arange(width) < torch.tensor(counts)[:, None])[..., None]
    assert torch.equal(step.spread(packed), x * real)
    last = step.last(packed)
    for row, count in enumerate(counts):
        if count:
            assert torch.equal(last[row, 0], x[row, count - 1])


def test_adapters_act_on_their_rows_tokens() -> None:
    adapter = LoraAdapter({})
    rows = (slice(0, 2), slice(2, 4), slice(1, 2), slice(None))
    step = packed_step([2, 0, 3, 1], 3, tuple(AdaptedRows(adapter, each) for each in rows))
    assert [each.rows for each in step.adapters] == [
        slice(0, 2),
        slice(2, 6),
        slice(2, 2),
        slice(0, 6),
    ]


def outputs(model: Llama, counts: list[int], ids: torch.Tensor) -> list[torch.Tensor]:
    """What rows of a block give with a vector on row 0 and an adapter on row 1, from position 2 on:
    logits, and what was recorded."""
    name = "model.layers.1.self_attn.q_proj"
    generator = torch.Generator().manual_seed(0)
    a, b, vector = (torch.randn(*size, generator=generator) for size in ((3, 32), (32, 3), (32,)))
    adapter = LoraAdapter({name: LoraDelta(a, b, 0.5)})
    cache = model.new_cache(len(counts), 16)
    model(ids[:, :2], cache)
    found = Record(layer=1, rows=(1, 0))
    slots = (Add(0, ((3, None),), (0,), vector=vector), found)
    applied = (AdaptedRows(adapter, slice(1, 2)),)
    logits = model(ids[:, 2:], cache, counts=counts, slots=slots, adapters=applied)
    return [*(logits[row, : counts[row]] for row in range(len(counts))), found.values()]


def test_slots_and_adapters_find_their_tokens_in_a_ragged_block() -> None:
    """Against the same rows at full width, where there is no padding: what comes after a row's
    tokens does not change them; and against the plain model, which keeps the padding."""
    ids = torch.randint(0, 67, (3, 7), generator=torch.Generator().manual_seed(2))
    counts = [3, 5, 1]
    packed = outputs(MODEL, counts, ids)
    whole = outputs(MODEL, [5, 5, 5], ids)
    for found, expected in zip(packed, outputs(PLAIN, counts, ids), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for row, count in enumerate(counts):
        torch.testing.assert_close(packed[row], whole[row][:count], atol=1e-5, rtol=0)
    recorded = torch.cat((whole[3][:5], whole[3][5:8]))  # row 1's five, then row 0's first three
    torch.testing.assert_close(packed[3], recorded, atol=1e-5, rtol=0)
