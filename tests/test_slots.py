"""Slots: they act where they say, by what they say, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minisafe.cache import Placement
from minisafe.errors import SlotError
from minisafe.model import Llama
from minisafe.slots import Add, BoundSlots, Patch, Record, Slot, Span, covered
from tests.support.reference import read
from tests.support.tiny import (
    TOLERANCE,
    cache_for,
    chunkings,
    models,
    random_ids,
    random_model,
    tensors_of,
    tiny_config,
)

ROWS, WIDTH = 3, 12
seeds = st.integers(0, 1000)
rows_of = st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=4).map(tuple)


@st.composite
def spans_of(draw: st.DrawFn) -> tuple[Span, ...]:
    """One to three spans that may overlap, be open, or lie beyond the text."""
    spans = []
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, WIDTH))
        spans.append((start, draw(st.one_of(st.none(), st.integers(start + 1, WIDTH + 3)))))
    return tuple(spans)


def vector_for(model: Llama, seed: int) -> Tensor:
    return torch.randn(model.config.hidden, generator=torch.Generator().manual_seed(seed))


def recorders(model: Llama, rows: tuple[int, ...] = tuple(range(ROWS))) -> dict[Any, Record]:
    """One for each site of each layer, over all rows and positions."""
    return {
        (site, layer): Record(layer=layer, rows=rows, site=site)
        for site in ("residual", "heads")
        for layer in range(model.config.n_layers)
    }


def watch(model: Llama, ids: Tensor, slots: list[Slot]) -> tuple[Tensor, dict[Any, Tensor]]:
    """Logits, and every site's values (B, T, ...) as the slots leave them."""
    records = recorders(model, tuple(range(len(ids))))
    logits = model(ids, slots=[*slots, *records.values()])
    seen = {key: record.values().unflatten(0, ids.shape) for key, record in records.items()}
    return logits, seen


def touched(slot: Slot) -> Tensor:
    """(ROWS, WIDTH) True where the slot acts."""
    mask = torch.zeros(ROWS, WIDTH, dtype=torch.bool)
    for start, stop in slot.spans:
        for row in slot.rows:
            mask[row, start:stop] = True
    return mask


# ---- adding ------------------------------------------------------------------------------------


@given(models, seeds, rows_of, spans_of(), st.data())
def test_nothing_added_is_bit_exact(
    model: Llama, seed: int, rows: tuple[int, ...], spans: tuple[Span, ...], data: st.DataObject
) -> None:
    """A zero vector, or scale 0."""
    layer = data.draw(st.integers(0, model.config.n_layers - 1))
    ids = random_ids(model, ROWS, WIDTH, seed)
    zero = Add(layer, spans, rows, torch.zeros(model.config.hidden), 2.0)
    off = Add(layer, spans, rows, vector_for(model, seed), 0.0)
    plain, seen = watch(model, ids, [])
    for slot in (zero, off):
        logits, found = watch(model, ids, [slot])
        assert torch.equal(logits, plain)
        assert all(torch.equal(found[key], seen[key]) for key in seen)


@settings(max_examples=40)
@given(models, seeds, rows_of, spans_of(), st.floats(-3, 3), st.data())
def test_add_changes_what_it_names_and_nothing_before(
    model: Llama,
    seed: int,
    rows: tuple[int, ...],
    spans: tuple[Span, ...],
    scale: float,
    data: st.DataObject,
) -> None:
    layer = data.draw(st.integers(0, model.config.n_layers - 1))
    ids, vector = random_ids(model, ROWS, WIDTH, seed), vector_for(model, seed)
    slot = Add(layer, spans, rows, vector, scale)
    plain_logits, plain = watch(model, ids, [])
    logits, steered = watch(model, ids, [slot])
    mask = touched(slot)
    # at the output of its layer: exactly scale * vector, exactly there
    expected = plain["residual", layer].clone()
    expected[mask] += scale * vector
    assert torch.equal(steered["residual", layer], expected)
    # before it: nothing
    for (site, where), values in plain.items():
        if where < layer or (where == layer and site == "heads"):
            assert torch.equal(steered[site, where], values)
    # after it: rows without the slot, and positions before its first, are bit-equal
    after = mask.cumsum(1) > 0  # from the first touched position of each row on
    assert torch.equal(logits[~after], plain_logits[~after])
    for key, values in plain.items():
        assert torch.equal(steered[key][~after], values[~after])


def test_add_acts_on_later_positions_above_its_layer(tiny_model) -> None:
    """Steering one position reaches the later ones through attention, in higher layers only."""
    model = tiny_model(n_layers=3)
    ids = random_ids(model, ROWS, WIDTH)
    slot = Add(1, ((4, 5),), (1,), vector_for(model, 0), 3.0)
    _, plain = watch(model, ids, [])
    _, steered = watch(model, ids, [slot])
    assert torch.equal(steered["residual", 1][1, 5:], plain["residual", 1][1, 5:])
    assert (steered["residual", 2][1, 5:] - plain["residual", 2][1, 5:]).abs().amax(-1).min() > 1e-3


@settings(max_examples=25)
@given(models, seeds, spans_of(), st.data())
def test_the_reference_agrees(
    model: Llama, seed: int, spans: tuple[Span, ...], data: st.DataObject
) -> None:
    """Two vectors at two layers, added to one sequence."""
    layers = [data.draw(st.integers(0, model.config.n_layers - 1)) for _ in range(2)]
    ids = random_ids(model, 1, WIDTH, seed)
    slots = [
        Add(layers[0], spans, (0,), vector_for(model, 1), 1.5),
        Add(layers[1], ((3, None),), (0,), vector_for(model, 2), -0.7),
    ]
    add: dict[tuple[int, int], Tensor] = {}
    for slot in slots:
        for position in covered(slot.spans, 0, WIDTH):
            old = add.get((slot.layer, position), 0)
            add[slot.layer, position] = old + slot.scale * slot.vector
    expected = read(tensors_of(model), model.config, ids[0].tolist(), add=add).logits.float()
    torch.testing.assert_close(model(ids, slots=slots)[0], expected, atol=TOLERANCE, rtol=0)


@settings(max_examples=40)
@given(models, seeds, rows_of, spans_of(), chunkings(WIDTH), st.data())
def test_positions_are_absolute(
    model: Llama,
    seed: int,
    rows: tuple[int, ...],
    spans: tuple[Span, ...],
    sizes: list[int],
    data: st.DataObject,
) -> None:
    """Chunked through a cache, the same slots give what they give to the whole."""
    layer = data.draw(st.integers(0, model.config.n_layers - 1))
    ids = random_ids(model, ROWS, WIDTH, seed)
    slot = Add(layer, spans, rows, vector_for(model, seed), 1.5)
    record = Record(layer, ((0, None),), (0, 1, 2))
    expected, seen = watch(model, ids, [slot])
    cache = cache_for(model, ROWS, capacity=3)
    logits = torch.cat([model(c, cache, slots=[slot, record]) for c in ids.split(sizes, 1)], 1)
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
    values = [x.unflatten(0, (ROWS, -1)) for x in record.into]
    whole = torch.cat(values, dim=1)
    torch.testing.assert_close(whole, seen["residual", layer], atol=TOLERANCE, rtol=0)


@given(models, seeds, st.lists(st.integers(1, WIDTH), min_size=ROWS, max_size=ROWS), spans_of())
def test_ragged_rows_each_count_their_own_positions(
    model: Llama, seed: int, counts: list[int], spans: tuple[Span, ...]
) -> None:
    """Rows that stand at different positions; the padding of a row is never steered."""
    ids = random_ids(model, ROWS, WIDTH, seed)
    follow = random_ids(model, ROWS, 4, seed + 1)
    vector = vector_for(model, seed)
    slot = Add(0, spans, (0, 1, 2), vector, 1.5)
    cache = cache_for(model, ROWS)
    model(ids, cache, counts=counts, slots=[slot])
    logits = model(follow, cache, slots=[slot])
    for row, count in enumerate(counts):
        alone = torch.cat((ids[row, :count], follow[row]))[None]
        expected = model(alone, slots=[replace(slot, rows=(0,))])[0, count:]
        torch.testing.assert_close(logits[row], expected, atol=TOLERANCE, rtol=0)


def test_a_half_precision_model_rounds_the_scaled_vector_once(tiny_model) -> None:
    model = tiny_model(dtype=torch.bfloat16)
    ids, vector = random_ids(model, ROWS, WIDTH), vector_for(model, 0)
    slot = Add(0, ((2, 6),), (1,), vector, 1.7)
    _, plain = watch(model, ids, [])
    _, steered = watch(model, ids, [slot])
    expected = plain["residual", 0].clone()
    expected[1, 2:6] += (1.7 * vector).bfloat16()
    assert torch.equal(steered["residual", 0], expected)


def test_a_row_or_position_named_twice_counts_once(tiny_model) -> None:
    model = tiny_model()
    ids, vector = random_ids(model, ROWS, WIDTH), vector_for(model, 0)
    once = model(ids, slots=[Add(0, ((2, 7),), (1,), vector)])
    twice = model(ids, slots=[Add(0, ((2, 5), (4, 7), (3, 4)), (1, 1), vector)])
    assert torch.equal(once, twice)
    both = model(ids, slots=[Add(0, ((2, 7),), (1,), vector)] * 2)  # two slots do add up
    double = model(ids, slots=[Add(0, ((2, 7),), (1,), vector, 2.0)])
    torch.testing.assert_close(both, double, atol=TOLERANCE, rtol=0)
    assert (both - once).abs().max() > 0.01


def test_steering_leaves_no_trace(tiny_model) -> None:
    """Slots are arguments of one forward: the next one without them is the plain one."""
    model = tiny_model()
    ids = random_ids(model, ROWS, WIDTH)
    before = model(ids)
    vector = vector_for(model, 0)
    kept = vector.clone()
    assert not torch.equal(model(ids, slots=[Add(0, vector=vector)]), before)
    assert torch.equal(model(ids), before)
    assert torch.equal(vector, kept)


# ---- recording ---------------------------------------------------------------------------------


def test_records_come_row_by_row_then_by_position(tiny_model) -> None:
    model = tiny_model()
    ids = random_ids(model, ROWS, WIDTH)
    _, seen = watch(model, ids, [])
    record = Record(1, ((8, 10), (2, 3)), (2, 0), site="heads")
    model(ids, slots=[record])
    expected = torch.cat((seen["heads", 1][2, [2, 8, 9]], seen["heads", 1][0, [2, 8, 9]]))
    assert torch.equal(record.values(), expected)
    assert expected.shape == (6, model.config.n_heads, model.config.head_dim)


def test_padding_is_not_recorded(tiny_model) -> None:
    """Rows of 2, 5 and no tokens in a block of 5, after a block of ragged rows."""
    model = tiny_model()
    ids = random_ids(model, ROWS, 5)
    cache = cache_for(model, ROWS)
    model(ids, cache, counts=[3, 1, 2])
    record = Record(0, ((2, None),), (0, 1, 2))
    model(ids, cache, counts=[2, 5, 0], slots=[record])
    assert len(record.values()) == 2 + 4  # positions 3 and 4; positions 2 to 5; none
    alone = Record(0, ((3, None),))
    model(torch.cat((ids[:1, :3], ids[:1, :2]), dim=1), slots=[alone])
    torch.testing.assert_close(record.values()[:2], alone.values(), atol=TOLERANCE, rtol=0)


@given(models, seeds)
def test_the_reference_sees_the_same_sites(model: Llama, seed: int) -> None:
    ids = random_ids(model, 1, WIDTH, seed)
    _, seen = watch(model, ids, [])
    expected = read(tensors_of(model), model.config, ids[0].tolist())
    for layer in range(model.config.n_layers):
        for found, values in (
            (seen["residual", layer], expected.residuals[layer]),
            (seen["heads", layer], expected.heads[layer]),
        ):
            torch.testing.assert_close(found[0], values.float(), atol=TOLERANCE, rtol=0)


def test_slots_at_one_site_act_in_the_order_given(tiny_model) -> None:
    """A record sees what stands before it, and keeps a copy."""
    model = tiny_model()
    ids, vector = random_ids(model, 1, WIDTH), vector_for(model, 0)
    before, after = Record(0), Record(0)
    model(ids, slots=[before, Add(0, vector=vector), after])
    assert torch.equal(after.values(), before.values() + vector)


def test_a_record_of_nothing_is_an_error(tiny_model) -> None:
    record = Record(0, ((50, None),), (0,))
    with pytest.raises(SlotError, match=r"nothing was recorded at site 'residual' of layer 0"):
        record.values()
    model = tiny_model()
    model(random_ids(model, 1, 4), slots=[record])  # its positions are still to come
    with pytest.raises(SlotError, match="nothing was recorded"):
        record.values()


# ---- patching ----------------------------------------------------------------------------------


@settings(max_examples=25)
@given(models, seeds, st.integers(0, WIDTH - 1), st.data())
def test_patching_a_head_is_recomputing_with_it(
    model: Llama, seed: int, position: int, data: st.DataObject
) -> None:
    layer = data.draw(st.integers(0, model.config.n_layers - 1))
    head = data.draw(st.integers(0, model.config.n_heads - 1))
    ids = random_ids(model, 1, WIDTH, seed)
    value = torch.randn(model.config.head_dim, generator=torch.Generator().manual_seed(seed))
    slot = Patch(layer, ((position, position + 1),), (0,), value, head, site="heads")
    logits, seen = watch(model, ids, [slot])
    expected = read(
        tensors_of(model), model.config, ids[0].tolist(), patch={(layer, position, head): value}
    )
    torch.testing.assert_close(logits[0], expected.logits.float(), atol=TOLERANCE, rtol=0)
    assert torch.equal(seen["heads", layer][0, position, head], value)


def test_patching_changes_only_what_it_names(tiny_model) -> None:
    model = tiny_model()
    ids = random_ids(model, ROWS, WIDTH)
    _, plain = watch(model, ids, [])
    value = torch.ones(model.config.head_dim)
    _, patched = watch(model, ids, [Patch(1, ((3, 5),), (0, 2), value, 2, site="heads")])
    expected = plain["heads", 1].clone()
    expected[[0, 2], 3:5, 2] = value
    assert torch.equal(patched["heads", 1], expected)
    assert torch.equal(patched["residual", 0], plain["residual", 0])
    assert torch.equal(patched["residual", 1][1], plain["residual", 1][1])


@given(models, seeds, st.sampled_from(("residual", "heads")), st.data())
def test_patching_in_what_is_there_is_bit_exact(
    model: Llama, seed: int, site: str, data: st.DataObject
) -> None:
    layer = data.draw(st.integers(0, model.config.n_layers - 1))
    ids = random_ids(model, ROWS, WIDTH, seed)
    plain, seen = watch(model, ids, [])
    value = seen[site, layer][1, 4]  # (hidden,) or (n_heads, head_dim)
    assert torch.equal(model(ids, slots=[Patch(layer, ((4, 5),), (1,), value, site=site)]), plain)


def test_all_heads_at_once_are_each_head_in_turn(tiny_model) -> None:
    model = tiny_model()
    ids = random_ids(model, ROWS, WIDTH)
    heads, size = model.config.n_heads, model.config.head_dim
    value = torch.randn(heads, size, generator=torch.Generator().manual_seed(0))
    where = {"layer": 0, "spans": ((5, None),), "rows": (0, 1), "site": "heads"}
    whole = model(ids, slots=[Patch(**where, value=value)])
    each = model(ids, slots=[Patch(**where, value=value[h], head=h) for h in range(heads)])
    assert torch.equal(whole, each)


def test_a_patched_residual_is_all_that_later_layers_see(tiny_model) -> None:
    """The last layer's output replaced everywhere: the logits are the head's of that value."""
    model = tiny_model()
    ids = random_ids(model, 1, 5)
    value = vector_for(model, 3)
    logits = model(ids, slots=[Patch(1, value=value)])
    expected = model.lm_head.weight @ model.norm(value)
    torch.testing.assert_close(logits, expected.expand_as(logits), atol=1e-5, rtol=0)


def test_one_token_over_a_filled_cache(tiny_model) -> None:
    """How average indirect effects are measured: many rows share a prefix, each patched apart."""
    model = tiny_model()
    ids = random_ids(model, 1, WIDTH)
    heads = model.config.n_heads
    value = torch.randn(heads, model.config.head_dim, generator=torch.Generator().manual_seed(0))
    cache = cache_for(model, 1)
    model(ids[:, :-1], cache)
    cache.keep([0] * heads)
    last = (WIDTH - 1, WIDTH)
    slots = [Patch(1, (last,), (h,), value[h], h, site="heads") for h in range(heads)]
    logits = model(ids[:, -1:].expand(heads, 1), cache, slots=slots)[:, 0]
    for h in range(heads):
        whole = model(ids, slots=[Patch(1, (last,), (0,), value[h], h, site="heads")])[0, -1]
        torch.testing.assert_close(logits[h], whole, atol=TOLERANCE, rtol=0)


# ---- errors ------------------------------------------------------------------------------------

VECTOR = torch.ones(32)
ERRORS: list[tuple[Slot, str]] = [
    (Add(2, vector=VECTOR), "no layer 2; the model has layers 0 to 1"),
    (Add(-1, vector=VECTOR), "no layer -1"),
    (Add(0, rows=(3,), vector=VECTOR), "no row 3; the batch has rows 0 to 2"),
    (Add(0, rows=(0, -1), vector=VECTOR), "no row -1"),
    (Record(0, site="attention"), "no site 'attention'; expected one of residual, heads"),
    (Patch(0, value=VECTOR, site="ffn"), "no site 'ffn'"),
    (Add(0, ((3, 3),), vector=VECTOR), "span (3, 3) is empty"),
    (Add(0, ((0, 2), (5, 4)), vector=VECTOR), "span (5, 4) is empty"),
    (Add(0, ((-1, 2),), vector=VECTOR), "span (-1, 2) is empty"),
    (Add(0, (), vector=VECTOR), "acts nowhere"),
    (Add(0, rows=(), vector=VECTOR), "acts nowhere"),
    (Add(0, vector=torch.ones(31)), "a vector of shape (31,)"),
    (Add(0, vector=torch.ones(1, 32)), "a vector of shape (1, 32)"),
    (Add(0), "a vector of shape (0,)"),
    (Patch(0, value=torch.ones(8)), "a patch of shape (8,) does not fit site 'residual'"),
    (Patch(0, value=VECTOR, site="heads"), "a patch of shape (32,) does not fit site 'heads'"),
    (Patch(0, value=torch.ones(4, 8), site="heads", head=1), "expected (8,)"),
    (Patch(0, value=torch.ones(8), site="heads", head=4), "no head 4 at site 'heads' of layer 0"),
    (Patch(0, value=torch.ones(8), site="heads", head=-1), "no head -1"),
    (Patch(0, value=VECTOR, head=0), "no head 0 at site 'residual'"),
]


@pytest.mark.parametrize(("slot", "message"), ERRORS, ids=[message for _, message in ERRORS])
def test_a_slot_that_cannot_act_is_an_error(tiny_model, slot: Slot, message: str) -> None:
    model = tiny_model()
    cache = cache_for(model, ROWS)
    with pytest.raises(SlotError) as raised:
        model(random_ids(model, ROWS, 4), cache, slots=[slot])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert cache.lengths == [0, 0, 0]  # the refused forward leaves no trace


def test_bad_slots_are_found_before_their_position_comes(tiny_model) -> None:
    model = tiny_model()
    with pytest.raises(SlotError, match="no layer 9"):
        model(random_ids(model, 1, 4), slots=[Add(9, ((50, None),), vector=VECTOR)])


def test_a_slot_fed_and_never_applied_is_an_error() -> None:
    """As with a model that skips a layer, or forgets a site."""
    place = Placement(slice(0, 1), (0,), (3,), 3)
    bound = BoundSlots([Add(0, vector=VECTOR), Record(1)], 2, place, torch.device("cpu"))
    x = torch.zeros(1, 3, 32)
    assert torch.equal(bound.at("residual", 0, x), x + 1)
    assert bound.at("heads", 1, x) is x
    with pytest.raises(SlotError, match=r"site 'residual' of layer 1 was fed but never applied"):
        bound.finish()
    bound.at("residual", 1, x)
    bound.finish()


def test_a_model_that_forgets_a_site_is_found_out(tiny_model, monkeypatch) -> None:
    model = random_model(tiny_config(), seed=99)
    monkeypatch.setattr(model.layers[1], "layer", 0)  # layer 1 now calls layer 0's slots again
    with pytest.raises(SlotError, match="layer 1 was fed but never applied"):
        model(random_ids(model, 1, 4), slots=[Add(1, vector=VECTOR)])


def test_a_slot_whose_positions_are_not_fed_waits(tiny_model) -> None:
    model = tiny_model()
    ids = random_ids(model, 1, WIDTH)
    slot = Add(0, ((7, 8),), vector=VECTOR)
    cache = cache_for(model, 1)
    assert torch.equal(model(ids[:, :7], cache, slots=[slot]), model(ids[:, :7]))
    logits = model(ids[:, 7:], cache, slots=[slot])
    expected = model(ids, slots=[slot])[:, 7:]
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


# ---- small parts -------------------------------------------------------------------------------


@given(spans_of(), st.integers(0, 10), st.integers(0, 10))
def test_covered_is_each_position_of_any_span_once(
    spans: tuple[Span, ...], start: int, length: int
) -> None:
    found = covered(spans, start, start + length)
    expected = [
        p
        for p in range(start, start + length)
        if any(first <= p and (last is None or p < last) for first, last in spans)
    ]
    assert found == expected


@pytest.mark.parametrize(
    "slot",
    [Add(1, ((2, 3),), (0, 2), VECTOR, 0.5), Patch(0, value=VECTOR), Record(1, site="heads")],
)
def test_shifting_moves_rows_only(slot: Slot) -> None:
    moved = slot.shifted(4)
    assert moved.rows == tuple(row + 4 for row in slot.rows)
    assert replace(moved, rows=slot.rows).__dict__ == slot.__dict__
    if isinstance(slot, Record):
        assert moved.into is slot.into  # what the shifted one records, the first one holds


# ---- the MLP's keys ----------------------------------------------------------------------------


@given(models, seeds, st.integers(0, WIDTH - 1), st.data())
def test_the_mlp_site_is_what_the_down_projection_reads(
    model: Llama, seed: int, position: int, data: st.DataObject
) -> None:
    """Another key at one token moves the residual stream there by W (new - old)."""
    layer = data.draw(st.integers(0, model.config.n_layers - 1))
    ids, rows = random_ids(model, ROWS, WIDTH, seed), tuple(range(ROWS))
    new = torch.randn(model.config.intermediate, generator=torch.Generator().manual_seed(seed))
    old = Record(layer, rows=rows, site="mlp")
    before, after = (Record(layer, rows=rows) for _ in range(2))
    model(ids, slots=[old, before])
    patch = Patch(layer, ((position, position + 1),), (1,), new, site="mlp")
    model(ids, slots=[patch, after])
    keys = old.values().unflatten(0, (ROWS, WIDTH))  # (ROWS, WIDTH, intermediate)
    weight = tensors_of(model)[f"model.layers.{layer}.mlp.down_proj.weight"]
    expected = before.values().unflatten(0, (ROWS, WIDTH))
    moves = weight @ (new - keys[1, position])
    expected[1, position] += model.config.residual_multiplier * moves
    moved = after.values().unflatten(0, (ROWS, WIDTH))
    torch.testing.assert_close(moved, expected, atol=TOLERANCE, rtol=1e-5)
