"""`FastCache`: the plain cache to the bit, and the cache of every model that fast paths are in."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from minisafe.amplify.branches import read_prefix
from minisafe.cache import KVCache
from minisafe.cache_dtype import CACHE_DTYPES
from minisafe.fast.cache import FastCache
from minisafe.fast.prepare import prepare
from minisafe.lockstep import Lockstep, Stream
from minisafe.model import Llama
from tests.support.caches import CONFIG
from tests.support.tiny import random_model, tiny_config

ROWS = 4
ACTS = st.sampled_from(("write", "write", "rewind", "keep"))


def draw_counts(data: st.DataObject, rows: int) -> list[int]:
    """One number for all rows, one token or none a row, or any."""
    size = st.integers(0, data.draw(st.sampled_from((1, 5))))
    if data.draw(st.booleans()):
        return [data.draw(size)] * rows
    return [data.draw(size) for _ in range(rows)]


def write_both(data: st.DataObject, caches: list[KVCache], generator: torch.Generator) -> None:
    """Write the same block into some rows of both, and hold against each other what is read."""
    first = data.draw(st.integers(0, caches[0].rows - 1))
    rows = slice(first, data.draw(st.integers(first + 1, caches[0].rows)))
    counts = draw_counts(data, rows.stop - rows.start)
    width = max(*counts, 1) + data.draw(st.sampled_from((0, 0, 1)))
    if max(caches[0].lengths) + width > CONFIG.max_positions:
        return
    places = [cache.place(counts, width, rows) for cache in caches]
    assert places[0] == places[1]
    for layer in range(CONFIG.n_layers):
        # as attention gives them: (B, T, n_kv_heads, head_dim), turned
        k, v = (
            torch.randn(len(counts), width, 2, 4, generator=generator)
            .to(caches[0].dtype)
            .transpose(1, 2)
            for _ in range(2)
        )
        plain, fast = (
            cache.write(layer, k, v, place) for cache, place in zip(caches, places, strict=True)
        )
        for one, other in zip(plain, fast, strict=True):
            assert same(one, other)
    for cache, place in zip(caches, places, strict=True):
        cache.advance(place)


def same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


@given(
    st.data(),
    st.sampled_from(CACHE_DTYPES),
    st.sampled_from((torch.float32, torch.bfloat16)),
    st.integers(1, 12),
)
def test_it_is_the_plain_cache_to_the_bit(
    data: st.DataObject, cache_dtype: str, dtype: torch.dtype, capacity: int
) -> None:
    """Blocks of all kinds in any rows, and between them rows that rewind, move, and drop out."""
    caches = [
        kind(CONFIG, ROWS, capacity, dtype, cache_dtype=cache_dtype)
        for kind in (KVCache, FastCache)
    ]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    for act in data.draw(st.lists(ACTS, min_size=3, max_size=12)):
        if act == "write":
            write_both(data, caches, generator)
        elif act == "rewind":
            row = data.draw(st.integers(0, caches[0].rows - 1))
            length = data.draw(st.integers(0, caches[0].lengths[row]))
            for cache in caches:
                cache.rewind(row, length)
        else:
            last = caches[0].rows - 1
            kept = data.draw(st.lists(st.integers(0, last), min_size=1, max_size=ROWS))
            for cache in caches:
                cache.keep(kept)
        assert caches[0].lengths == caches[1].lengths
        assert caches[0].capacity == caches[1].capacity
        for one, other in zip(caches[0].held, caches[1].held, strict=True):
            assert same(one, other)


def test_views_are_made_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    views_of = FastCache.views_of
    monkeypatch.setattr(
        FastCache, "views_of", lambda self, place: made.append(place) or views_of(self, place)
    )
    cache = FastCache(CONFIG, 2, 8)
    for counts in ([2, 2], [1, 2], [1, 1]):
        place = cache.place(counts, max(counts))
        x = torch.ones(2, 2, max(counts), 4)
        for layer in range(CONFIG.n_layers):
            cache.write(layer, x, x, place)
        cache.advance(place)
    assert len(made) == 3


def changed(weights: str) -> Callable[[Llama], Llama]:
    return lambda model: prepare(copy.deepcopy(model), weights)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (changed("plain"), KVCache),
        (changed("auto"), FastCache),
        (changed("packed"), FastCache),
        (changed("int8"), FastCache),
    ],
    ids=["plain", "auto", "packed", "int8"],
)
def test_a_prepared_model_makes_it_and_a_plain_one_does_not(
    change: Callable[[Llama], Llama], kind: type[KVCache]
) -> None:
    """By itself, in lockstep, and for the branches of an effect."""
    model = change(random_model(tiny_config(), dtype=torch.bfloat16))
    own = model.new_cache(3, 5, "int8")
    assert (own.rows, own.capacity, own.dtype, own.stored) == (3, 5, model.dtype, torch.int8)
    lockstep = Lockstep([Stream(model), Stream(model)], rows=2, capacity=7, cache_dtype="float32")
    (group,) = lockstep.groups
    assert (group.cache.rows, group.cache.capacity, group.cache.stored) == (4, 7, torch.float32)
    limit = model.config.max_positions
    assert own.limit == limit
    prefix = read_prefix(model, [1, 2], limit)
    assert (prefix.limit, prefix.capacity, prefix.lengths) == (limit + 2, limit + 2, [2])
    assert [type(each) for each in (own, group.cache, prefix)] == [kind] * 3
