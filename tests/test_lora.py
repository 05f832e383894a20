"""Low-rank deltas: they act on their own rows and equal the merged weights there."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minisafe.lora import AdaptedRows, LoraAdapter, LoraDelta
from minisafe.model import Llama
from minisafe.slots import Add
from tests.support.reference import read
from tests.support.tiny import (
    TOLERANCE,
    cache_for,
    chunkings,
    models,
    random_adapter,
    random_ids,
    tensors_of,
)

ROWS, WIDTH = 3, 10
ENDINGS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
seeds = st.integers(0, 1000)
endings = st.lists(st.sampled_from(ENDINGS[:-1]), min_size=1, unique=True)


def merged(model: Llama, adapter: LoraAdapter) -> dict[str, Tensor]:
    """The tensors of the model with the adapter added into them."""
    tensors = dict(tensors_of(model))
    for name, delta in adapter.deltas.items():
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"] + delta.weight()
    return tensors


def close(x: Tensor, y: Tensor) -> None:
    torch.testing.assert_close(x, y, atol=TOLERANCE, rtol=0)


@settings(max_examples=30)
@given(models, seeds, endings)
def test_an_adapted_row_is_the_merged_model(model: Llama, seed: int, names: list[str]) -> None:
    """Against the slow reference with the deltas merged into its weights."""
    ids = random_ids(model, ROWS, WIDTH, seed)
    adapter = random_adapter(model, seed, rank=2, endings=names)
    logits = model(ids, adapters=(AdaptedRows(adapter, slice(1, 2)),))
    expected = read(merged(model, adapter), model.config, ids[1].tolist()).logits
    close(logits[1], expected.float())
    if set(names) - {"q_proj", "k_proj"}:  # with a window of 1, only these change nothing
        assert (logits[1] - model(ids)[1]).abs().max() > 1e-3


@given(models, seeds, endings, st.integers(0, ROWS - 1), st.integers(1, ROWS))
def test_rows_without_the_adapter_are_bit_equal(
    model: Llama, seed: int, names: list[str], first: int, n: int
) -> None:
    ids = random_ids(model, ROWS, WIDTH, seed)
    rows = slice(first, min(first + n, ROWS))
    plain = model(ids)
    logits = model(ids, adapters=(AdaptedRows(random_adapter(model, seed, endings=names), rows),))
    others = [row for row in range(ROWS) if row not in range(ROWS)[rows]]
    assert torch.equal(logits[others], plain[others])


@given(models, seeds, st.lists(st.integers(1, WIDTH), min_size=ROWS, max_size=ROWS))
def test_one_forward_is_two(model: Llama, seed: int, counts: list[int]) -> None:
    """Base rows and expert rows together, ragged, cached, only the base's steered."""
    ids = random_ids(model, ROWS, WIDTH, seed)
    adapter = random_adapter(model, seed)
    vector = torch.randn(model.config.hidden, generator=torch.Generator().manual_seed(seed))
    steer = Add(0, ((2, None),), (0, 1, 2), vector)
    both = cache_for(model, 2 * ROWS, capacity=2)
    base, expert = cache_for(model, ROWS), cache_for(model, ROWS)
    blocks = [(ids, counts), (random_ids(model, ROWS, 1, seed + 1), [1] * ROWS)]
    for block, n in blocks:
        fused = model(
            torch.cat((block, block)),
            both,
            counts=[*n, *n],
            slots=[steer],
            adapters=(AdaptedRows(adapter, slice(ROWS, 2 * ROWS)),),
            last_only=True,
        )
        apart = [
            model(block, base, counts=n, slots=[steer], last_only=True),
            model(
                block,
                expert,
                counts=n,
                adapters=(AdaptedRows(adapter, slice(0, ROWS)),),
                last_only=True,
            ),
        ]
        close(fused, torch.cat(apart))


@given(models, seeds, chunkings(WIDTH))
def test_chunked_is_the_whole(model: Llama, seed: int, sizes: list[int]) -> None:
    ids = random_ids(model, ROWS, WIDTH, seed)
    applied = (AdaptedRows(random_adapter(model, seed), slice(0, 2)),)
    cache = cache_for(model, ROWS, capacity=2)
    logits = [model(chunk, cache, adapters=applied) for chunk in ids.split(sizes, dim=1)]
    close(torch.cat(logits, dim=1), model(ids, adapters=applied))


def test_two_adapters_on_two_rows(tiny_model) -> None:
    model = tiny_model()
    ids = random_ids(model, ROWS, WIDTH)
    first, second = random_adapter(model, 1), random_adapter(model, 2, endings=("up_proj",))
    logits = model(
        ids, adapters=(AdaptedRows(first, slice(0, 1)), AdaptedRows(second, slice(2, 3)))
    )
    assert torch.equal(logits[1], model(ids)[1])
    for row, adapter in ((0, first), (2, second)):
        expected = read(merged(model, adapter), model.config, ids[row].tolist()).logits
        close(logits[row], expected.float())


def test_two_adapters_on_one_row_add_up(tiny_model) -> None:
    model = tiny_model()
    ids = random_ids(model, 1, WIDTH)
    first, second = random_adapter(model, 1), random_adapter(model, 2)
    logits = model(
        ids, adapters=(AdaptedRows(first, slice(0, 1)), AdaptedRows(second, slice(0, 1)))
    )
    tensors = merged(model, first)
    for name, delta in second.deltas.items():
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"] + delta.weight()
    close(logits[0], read(tensors, model.config, ids[0].tolist()).logits.float())


def test_the_head_can_be_adapted(tiny_model) -> None:
    model = tiny_model()
    ids = random_ids(model, 2, WIDTH)
    adapter = random_adapter(model, endings=("lm_head",))
    logits = model(ids, adapters=(AdaptedRows(adapter, slice(1, 2)),))
    assert list(adapter.deltas) == ["lm_head"]
    assert torch.equal(logits[0], model(ids)[0])
    close(logits[1], read(merged(model, adapter), model.config, ids[1].tolist()).logits.float())


def test_a_delta_that_is_zero_changes_nothing(tiny_model) -> None:
    """As peft starts one: B is zero."""
    model = tiny_model()
    ids = random_ids(model, 2, WIDTH)
    deltas = {
        name: LoraDelta(delta.a, torch.zeros_like(delta.b), delta.scaling)
        for name, delta in random_adapter(model).deltas.items()
    }
    assert torch.equal(
        model(ids, adapters=(AdaptedRows(LoraAdapter(deltas), slice(0, 2)),)), model(ids)
    )


def test_an_adapter_leaves_no_trace(tiny_model) -> None:
    model = tiny_model()
    ids = random_ids(model, 2, WIDTH)
    before = model(ids)
    adapter = random_adapter(model)
    assert not torch.equal(model(ids, adapters=(AdaptedRows(adapter, slice(0, 2)),)), before)
    assert torch.equal(model(ids), before)


def test_gradients_reach_the_delta_and_not_the_base(tiny_model) -> None:
    """What training an expert needs."""
    model = tiny_model()
    adapter = random_adapter(model)
    for delta in adapter.deltas.values():
        delta.a.requires_grad_(True)
        delta.b.requires_grad_(True)
    ids = random_ids(model, 2, WIDTH)
    model(ids, adapters=(AdaptedRows(adapter, slice(0, 1)),)).square().mean().backward()
    for delta in adapter.deltas.values():
        assert delta.a.grad.abs().max() > 0
        assert delta.b.grad.abs().max() > 0
    assert all(tensor.grad is None for tensor in tensors_of(model).values())


def test_a_delta_as_a_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 8, generator=generator), torch.randn(5, 3, generator=generator)
    delta = LoraDelta(a, b, 0.25)
    x = torch.randn(2, 4, 8, generator=generator)
    torch.testing.assert_close(delta(x), x @ delta.weight().T)
    torch.testing.assert_close(delta.weight(), 0.25 * b @ a)
    assert LoraDelta(a.bfloat16(), b.bfloat16(), 1.0).weight().dtype == torch.float32
