"""Caches of both kinds by themselves: where tokens stand, how they grow, rewind and drop rows."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from minisafe.cache import KVCache
from minisafe.errors import OutOfMemory, PromptError
from tests.support.caches import CONFIG, block, both_kinds
from tests.support.tiny import chunkings, tiny_config


def put(cache: KVCache, counts: list[int], first: float, rows: slice | None = None) -> Tensor:
    """Write a block to every layer, layer l's keys raised by 10000 l; returns layer 0's keys."""
    width = max(counts)
    k, v = block(len(counts), width, first)
    place = cache.place(counts, width, rows)
    for layer in range(2):
        keys, values = cache.write(layer, k + 10000 * layer, v - 10000 * layer, place)
        assert keys.shape == values.shape == (len(counts), 2, place.stop, 4)
    cache.advance(place)
    return k


@both_kinds
@given(st.integers(1, 3), chunkings(24), st.integers(1, 30))
def test_what_is_written_is_read(
    kind: type[KVCache], rows: int, sizes: list[int], capacity: int
) -> None:
    """In chunks of any sizes, growing from any capacity, at every layer."""
    cache = kind(CONFIG, rows, capacity)
    written = [put(cache, [size] * rows, 1000.0 * i) for i, size in enumerate(sizes)]
    expected = torch.cat(written, dim=2)
    assert cache.lengths == [24] * rows
    assert cache.capacity >= 24
    for layer in range(2):
        assert torch.equal(cache.keys[layer, :, :, :24], expected + 10000 * layer)
        assert torch.equal(cache.values[layer, :, :, :24], -expected - 10000 * layer)


@both_kinds
@given(st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=1, max_size=5))
def test_ragged_blocks_stand_at_their_positions(
    kind: type[KVCache], blocks: list[list[int]]
) -> None:
    cache = kind(CONFIG, 3, capacity=2)
    expected: list[list[Tensor]] = [[], [], []]
    for i, counts in enumerate(blocks):
        if max(counts) == 0:
            continue
        k = put(cache, counts, 1000.0 * i)
        for row, count in enumerate(counts):
            expected[row].extend(k[row, :, :count].unbind(1))
    assert cache.lengths == [len(row) for row in expected]
    for row, tokens in enumerate(expected):
        if tokens:
            written = torch.stack(tokens, dim=1)
            assert torch.equal(cache.keys[0, row, :, : len(tokens)], written)
            assert torch.equal(cache.values[0, row, :, : len(tokens)], -written)


@both_kinds
def test_padding_writes_nothing(kind: type[KVCache]) -> None:
    cache = kind(CONFIG, 2, capacity=8)
    put(cache, [4, 1], 1.0)
    assert cache.keys[:, 0, :, :4].all()
    assert cache.keys[:, 1, :, :1].all()
    assert not cache.keys[:, 0, :, 4:].any()
    assert not cache.keys[:, 1, :, 1:].any()


@both_kinds
def test_only_the_named_rows_are_written(kind: type[KVCache]) -> None:
    cache = kind(CONFIG, 3, capacity=8)
    put(cache, [2, 3], 1.0, rows=slice(1, 3))
    assert cache.lengths == [0, 2, 3]
    assert not cache.keys[:, 0].any()
    token = put(cache, [1, 1], 500.0, rows=slice(1, 3))  # one a row, at unequal columns
    for row, column in ((1, 2), (2, 3)):
        assert torch.equal(cache.keys[0, row, :, column], token[row - 1, :, 0])
        assert torch.equal(cache.values[1, row, :, column], -token[row - 1, :, 0] - 10000)
    assert not cache.keys[:, 0].any()
    assert not cache.keys[:, 1, :, 3:].any()


@both_kinds
def test_rows_of_unequal_lengths_grow_token_by_token(kind: type[KVCache]) -> None:
    cache = kind(CONFIG, 2, capacity=4)
    put(cache, [1, 3], 1.0)
    written = [put(cache, [1, 1], 100.0 * step) for step in range(1, 12)]
    assert cache.lengths == [12, 14]
    for row, first in ((0, 1), (1, 3)):
        tokens = torch.cat([each[row] for each in written], dim=1)
        assert torch.equal(cache.keys[0, row, :, first : first + 11], tokens)
        assert torch.equal(cache.values[0, row, :, first : first + 11], -tokens)


@both_kinds
@pytest.mark.parametrize("change", [lambda cache: cache.keep([0]), lambda cache: cache.reserve(32)])
def test_what_is_no_longer_held_is_let_go(
    kind: type[KVCache], change: Callable[[KVCache], None]
) -> None:
    cache = kind(CONFIG, 2, capacity=8)
    put(cache, [1, 3], 1.0)
    put(cache, [1, 1], 100.0)  # views of all kinds
    before = weakref.ref(cache.keys)
    change(cache)
    assert before() is None


@both_kinds
def test_it_grows_by_doubling_up_to_the_context(kind: type[KVCache]) -> None:
    cache = kind(CONFIG, 1, capacity=4)
    seen = []
    for _ in range(40):
        put(cache, [1], 1.0)
        seen.append(cache.capacity)
    assert sorted(set(seen)) == [4, 8, 16, 32, 40]
    with pytest.raises(PromptError, match="41 tokens do not fit the model's context of 40"):
        cache.place([1], 1)
    assert cache.lengths == [40]


@both_kinds
def test_growing_keeps_what_is_there(kind: type[KVCache]) -> None:
    cache = kind(CONFIG, 2, capacity=3)
    put(cache, [3, 2], 1.0)
    keys, values = cache.keys.clone(), cache.values.clone()
    cache.reserve(20)
    assert cache.capacity == 20
    assert torch.equal(cache.keys[:, :, :, :3], keys)
    assert torch.equal(cache.values[:, :, :, :3], values)
    assert not cache.keys[:, :, :, 3:].any()
    cache.reserve(5)
    assert cache.capacity == 20


@both_kinds
def test_a_capacity_beyond_the_context_is_cut(kind: type[KVCache]) -> None:
    assert kind(CONFIG, 1, capacity=1000).capacity == 40


@both_kinds
def test_bytes_and_dtype(kind: type[KVCache]) -> None:
    cache = kind(CONFIG, 3, capacity=10, dtype=torch.bfloat16)
    assert cache.keys.dtype == cache.values.dtype == torch.bfloat16
    assert cache.n_bytes == 2 * (2 * 3 * 2 * 10 * 4) * 2


@both_kinds
def test_rewinding(kind: type[KVCache]) -> None:
    cache = kind(CONFIG, 2, capacity=8)
    put(cache, [5, 3], 1.0)
    cache.rewind(0, 2)
    assert cache.lengths == [2, 3]
    cache.rewind(1, 3)
    cache.rewind(0, 0)
    assert cache.lengths == [0, 3]
    for row, length in ((0, 1), (1, 4), (1, -1)):
        with pytest.raises(ValueError, match=f"row {row} holds"):
            cache.rewind(row, length)
    k = put(cache, [1, 1], 500.0)
    assert torch.equal(cache.keys[0, 0, :, 0], k[0, :, 0])
    assert torch.equal(cache.keys[0, 1, :, 3], k[1, :, 0])


@both_kinds
@given(st.lists(st.integers(0, 2), max_size=4))
def test_keeping_rows(kind: type[KVCache], kept: list[int]) -> None:
    """Any rows in any order, also one of them twice, also none."""
    cache = kind(CONFIG, 3, capacity=6)
    put(cache, [5, 3, 1], 1.0)
    keys, values = cache.keys.clone(), cache.values.clone()
    cache.keep(kept)
    assert cache.rows == len(kept)
    assert cache.lengths == [[5, 3, 1][row] for row in kept]
    assert torch.equal(cache.keys, keys[:, kept])
    assert torch.equal(cache.values, values[:, kept])


@both_kinds
def test_rows_move_on_after_keeping(kind: type[KVCache]) -> None:
    """A block placed after `keep` goes to the new rows, not to where the old ones stood."""
    cache = kind(CONFIG, 3, capacity=6)
    put(cache, [4, 2, 1], 1.0)
    cache.keep([2, 0])
    k = put(cache, [1, 2], 700.0)
    assert cache.lengths == [2, 6]
    assert torch.equal(cache.keys[0, 0, :, 1], k[0, :, 0])
    assert torch.equal(cache.keys[0, 1, :, 4:6], k[1])


@both_kinds
def test_a_block_in_which_no_row_brings_a_token(kind: type[KVCache]) -> None:
    cache = kind(CONFIG, 2, capacity=6)
    put(cache, [2, 1], 1.0)
    keys = cache.keys.clone()
    place = cache.place([0, 0], 3)
    k, v = block(2, 3, 50.0)
    cache.write(0, k, v, place)
    cache.advance(place)
    assert cache.lengths == [2, 1]
    assert torch.equal(cache.keys, keys)


@both_kinds
def test_memory_that_cannot_be_had_is_named(kind: type[KVCache]) -> None:
    huge = tiny_config(n_layers=1000, windows=(None,) * 1000, max_positions=2**40)
    with pytest.raises(OutOfMemory, match=r"4 rows of \d+ tokens needs \d+ MiB") as raised:
        kind(huge, 4, capacity=2**40)
    assert "--cache-dtype int8" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_where_tokens_go_is_worked_out_once_for_all_layers() -> None:
    place = KVCache(CONFIG, 2).place([2, 1], 2)
    rows, block_columns, columns = place.cells
    assert (rows.tolist(), block_columns.tolist()) == ([0, 0, 1], [0, 1, 0])
    assert columns.tolist() == [0, 1, 0]
    assert place.cells is place.cells
