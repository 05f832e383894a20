"""`KVCache` by itself: where tokens stand, how it grows, rewinds and drops rows."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from minisafe.cache import CACHE_DTYPES, KVCache, Placement, bytes_per_token
from minisafe.errors import OutOfMemory, PromptError, SettingError
from minisafe.fast.score import wipe_row
from tests.support.tiny import chunkings, random_ids, random_model, tiny_config

CONFIG = tiny_config(n_layers=2, n_kv_heads=2, head_dim=4, max_positions=40)


def block(rows: int, width: int, first: float) -> tuple[Tensor, Tensor]:
    """Keys and values (rows, n_kv_heads, width, head_dim), every element told apart."""
    k = first + torch.arange(rows * 2 * width * 4).float().view(rows, 2, width, 4)
    return k, -k


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


@given(st.integers(1, 3), chunkings(24), st.integers(1, 30))
def test_what_is_written_is_read(rows: int, sizes: list[int], capacity: int) -> None:
    """In chunks of any sizes, growing from any capacity, at every layer."""
    cache = KVCache(CONFIG, rows, capacity)
    written = [put(cache, [size] * rows, 1000.0 * i) for i, size in enumerate(sizes)]
    expected = torch.cat(written, dim=2)
    assert cache.lengths == [24] * rows
    assert cache.capacity >= 24
    for layer in range(2):
        assert torch.equal(cache.keys[layer, :, :, :24], expected + 10000 * layer)
        assert torch.equal(cache.values[layer, :, :, :24], -expected - 10000 * layer)


@given(st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=1, max_size=5))
def test_ragged_blocks_stand_at_their_positions(blocks: list[list[int]]) -> None:
    cache = KVCache(CONFIG, 3, capacity=2)
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


def test_padding_writes_nothing() -> None:
    cache = KVCache(CONFIG, 2, capacity=8)
    put(cache, [4, 1], 1.0)
    assert cache.keys[:, 0, :, :4].all()
    assert cache.keys[:, 1, :, :1].all()
    assert not cache.keys[:, 0, :, 4:].any()
    assert not cache.keys[:, 1, :, 1:].any()


def test_only_the_named_rows_are_written() -> None:
    cache = KVCache(CONFIG, 3, capacity=8)
    put(cache, [2, 3], 1.0, rows=slice(1, 3))
    assert cache.lengths == [0, 2, 3]
    assert not cache.keys[:, 0].any()
    token = put(cache, [1, 1], 500.0, rows=slice(1, 3))  # one a row, at unequal columns
    for row, column in ((1, 2), (2, 3)):
        assert torch.equal(cache.keys[0, row, :, column], token[row - 1, :, 0])
        assert torch.equal(cache.values[1, row, :, column], -token[row - 1, :, 0] - 10000)
    assert not cache.keys[:, 0].any()
    assert not cache.keys[:, 1, :, 3:].any()


def test_rows_of_unequal_lengths_grow_token_by_token() -> None:
    cache = KVCache(CONFIG, 2, capacity=4)
    put(cache, [1, 3], 1.0)
    written = [put(cache, [1, 1], 100.0 * step) for step in range(1, 12)]
    assert cache.lengths == [12, 14]
    for row, first in ((0, 1), (1, 3)):
        tokens = torch.cat([each[row] for each in written], dim=1)
        assert torch.equal(cache.keys[0, row, :, first : first + 11], tokens)
        assert torch.equal(cache.values[0, row, :, first : first + 11], -tokens)


@pytest.mark.parametrize("change", [lambda cache: cache.keep([0]), lambda cache: cache.reserve(32)])
def test_what_is_no_longer_held_is_let_go(change: Callable[[KVCache], None]) -> None:
    cache = KVCache(CONFIG, 2, capacity=8)
    put(cache, [1, 3], 1.0)
    put(cache, [1, 1], 100.0)  # views of all kinds
    before = weakref.ref(cache.keys)
    change(cache)
    assert before() is None


def test_it_grows_by_doubling_up_to_the_context() -> None:
    cache = KVCache(CONFIG, 1, capacity=4)
    seen = []
    for _ in range(40):
        put(cache, [1], 1.0)
        seen.append(cache.capacity)
    assert sorted(set(seen)) == [4, 8, 16, 32, 40]
    with pytest.raises(PromptError, match="41 tokens do not fit the model's context of 40"):
        cache.place([1], 1)
    assert cache.lengths == [40]


def test_growing_keeps_what_is_there() -> None:
    cache = KVCache(CONFIG, 2, capacity=3)
    put(cache, [3, 2], 1.0)
    keys, values = cache.keys.clone(), cache.values.clone()
    cache.reserve(20)
    assert cache.capacity == 20
    assert torch.equal(cache.keys[:, :, :, :3], keys)
    assert torch.equal(cache.values[:, :, :, :3], values)
    assert not cache.keys[:, :, :, 3:].any()
    cache.reserve(5)
    assert cache.capacity == 20


def test_a_capacity_beyond_the_context_is_cut() -> None:
    assert KVCache(CONFIG, 1, capacity=1000).capacity == 40


def test_bytes_and_dtype() -> None:
    cache = KVCache(CONFIG, 3, capacity=10, dtype=torch.bfloat16)
    assert cache.keys.dtype == cache.values.dtype == torch.bfloat16
    assert cache.n_bytes == 2 * (2 * 3 * 2 * 10 * 4) * 2


def test_rewinding() -> None:
    cache = KVCache(CONFIG, 2, capacity=8)
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


@given(st.lists(st.integers(0, 2), max_size=4))
def test_keeping_rows(kept: list[int]) -> None:
    """Any rows in any order, also one of them twice, also none."""
    cache = KVCache(CONFIG, 3, capacity=6)
    put(cache, [5, 3, 1], 1.0)
    keys, values = cache.keys.clone(), cache.values.clone()
    cache.keep(kept)
    assert cache.rows == len(kept)
    assert cache.lengths == [[5, 3, 1][row] for row in kept]
    assert torch.equal(cache.keys, keys[:, kept])
    assert torch.equal(cache.values, values[:, kept])


def test_rows_move_on_after_keeping() -> None:
    """A block placed after `keep` goes to the new rows, not to where the old ones stood."""
    cache = KVCache(CONFIG, 3, capacity=6)
    put(cache, [4, 2, 1], 1.0)
    cache.keep([2, 0])
    k = put(cache, [1, 2], 700.0)
    assert cache.lengths == [2, 6]
    assert torch.equal(cache.keys[0, 0, :, 1], k[0, :, 0])
    assert torch.equal(cache.keys[0, 1, :, 4:6], k[1])


def test_a_block_in_which_no_row_brings_a_token() -> None:
    cache = KVCache(CONFIG, 2, capacity=6)
    put(cache, [2, 1], 1.0)
    keys = cache.keys.clone()
    place = cache.place([0, 0], 3)
    k, v = block(2, 3, 50.0)
    cache.write(0, k, v, place)
    cache.advance(place)
    assert cache.lengths == [2, 1]
    assert torch.equal(cache.keys, keys)


def test_memory_that_cannot_be_had_is_named() -> None:
    huge = tiny_config(n_layers=1000, windows=(None,) * 1000, max_positions=2**40)
    with pytest.raises(OutOfMemory, match=r"4 rows of \d+ tokens needs \d+ MiB") as raised:
        KVCache(huge, 4, capacity=2**40)
    assert "--cache-dtype int8" in str(raised.value)
    assert "\n" not in str(raised.value)


# ---- held in a smaller dtype -------------------------------------------------------------------


def by_hand(x: Tensor, cache_dtype: str) -> Tensor:
    """A block as it should come back: rounded by the definition, value by value for int8."""
    if cache_dtype != "int8":
        return x.to(getattr(torch, cache_dtype)).to(x.dtype)
    back = torch.empty_like(x)
    for place in torch.cartesian_prod(*map(torch.arange, x.shape[:-1])).tolist():
        head = x[tuple(place)]
        largest = max(abs(value) for value in head.tolist())
        scale = torch.tensor(largest / 127).to(x.dtype)
        for i, value in enumerate(head.tolist()):
            # round() of Python takes ties to even, as torch does
            q = round((torch.tensor(value) / scale.float()).item()) if largest else 0
            back[(*place, i)] = torch.tensor(float(q)).to(x.dtype) * scale
    return back


@given(
    st.sampled_from(("float32", "bfloat16", "int8")),
    st.sampled_from((torch.float32, torch.bfloat16)),
    st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=2), min_size=1, max_size=3),
    st.integers(0, 99),
)
def test_a_smaller_dtype_gives_back_what_was_rounded(
    cache_dtype: str, dtype: torch.dtype, blocks: list[list[int]], seed: int
) -> None:
    """To the bit, uniform or ragged, and only once: what earlier blocks wrote never moves again."""
    cache = KVCache(CONFIG, 2, 2, dtype, cache_dtype=cache_dtype)
    generator = torch.Generator().manual_seed(seed)
    expected = torch.zeros(2, 2, 2, 16, 4, dtype=dtype)
    for counts in blocks:
        size = (2, 2, max(counts), 4)
        k, v = (torch.randn(size, generator=generator).to(dtype) * 3 for _ in range(2))
        starts, place = list(cache.lengths), cache.place(counts, max(counts))
        keys, values = cache.write(1, k, v, place)
        cache.advance(place)
        for half, written in enumerate((k, v)):
            back = by_hand(written, cache_dtype)
            for row, count in enumerate(counts):
                columns = slice(starts[row], starts[row] + count)
                expected[half, row, :, columns] = back[row, :, :count]
        assert keys.dtype == values.dtype == dtype
        assert torch.equal(keys, expected[0, :, :, : place.stop])
        assert torch.equal(values, expected[1, :, :, : place.stop])


def test_int8_errs_by_half_a_scale() -> None:
    """|x - q s| <= s / 2, s the head's largest value over 127; zeros stay zeros."""
    x = torch.randn(1, 2, 50, 4, generator=torch.Generator().manual_seed(0))
    x[0, 0, 3], x[0, 1, 4] = 0, torch.tensor([1e-30, 0, 0, -1e-30])
    cache = KVCache(CONFIG, 1, 40, cache_dtype="int8")
    x = x[:, :, :40]
    keys, values = cache.write(0, x, -x, cache.place([40], 40))
    half = x.abs().amax(-1, keepdim=True) / 254
    assert ((keys - x).abs() <= half * 1.0001).all()
    assert torch.equal(values, -keys)
    assert not keys[0, 0, 3].any()
    assert (keys - x).abs().max() > 1e-3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)
def test_what_is_not_finite_stays_so(cache_dtype: str, bad: float) -> None:
    """A model that broke down must not look sound because its cache rounds."""
    cache = KVCache(CONFIG, 1, 8, cache_dtype=cache_dtype)
    k, v = block(1, 2, 1.0)
    k[0, 0, 1, 2] = v[0, 1, 1, 0] = bad
    keys, values = cache.write(0, k, v, cache.place([2], 2))
    assert not keys[0, 0, 1].isfinite().all()
    assert not values[0, 1, 1].isfinite().all()
    assert keys[0, 1].isfinite().all()
    assert values[0, 0].isfinite().all()
    wipe_row(cache, 0)
    assert all(each.isfinite().all() and not each.any() for each in cache.held)


@given(st.sampled_from(CACHE_DTYPES), st.lists(st.integers(0, 2), min_size=1, max_size=4))
def test_growing_keeping_and_repeating_move_everything_that_is_held(
    cache_dtype: str, kept: list[int]
) -> None:
    cache = KVCache(CONFIG, 3, 5, torch.bfloat16, cache_dtype=cache_dtype)
    k, v = (torch.randn(3, 2, 5, 4).bfloat16() for _ in range(2))
    place = cache.place([5, 3, 4], 5)
    before = [[each.clone() for each in cache.write(layer, k, v, place)] for layer in range(2)]
    cache.advance(place)
    cache.keep(kept)
    cache.reserve(20)
    ends = [[5, 3, 4][row] for row in kept]
    again = cache.place([0] * len(kept), 1)
    nothing = torch.zeros(len(kept), 2, 1, 4, dtype=torch.bfloat16)
    for layer in range(2):
        for old, new in zip(
            before[layer], cache.write(layer, nothing, nothing, again), strict=True
        ):
            for place_, (row, end) in enumerate(zip(kept, ends, strict=True)):
                assert torch.equal(new[place_, :, :end], old[row, :, :end])


def test_bytes_of_every_dtype() -> None:
    """2 halves x 2 layers x 3 rows x 2 heads x 10 columns, of 4 values and for int8 a scale."""
    heads = 2 * 2 * 3 * 2 * 10
    sizes = {"auto": 4 * 2, "float32": 4 * 4, "bfloat16": 4 * 2, "int8": 4 + 2}
    for name, size in sizes.items():
        cache = KVCache(CONFIG, 3, 10, torch.bfloat16, cache_dtype=name)
        assert cache.n_bytes == heads * size
        assert cache.n_bytes == 3 * 10 * bytes_per_token(CONFIG, torch.bfloat16, name)
    assert bytes_per_token(CONFIG, torch.float32, "int8") == 2 * 2 * 2 * (4 + 4)
    assert bytes_per_token(CONFIG, torch.float32) == CONFIG.kv_bytes_per_token


def test_another_dtype_is_refused() -> None:
    with pytest.raises(SettingError, match=r"cache_dtype is 'float8'; expected one of auto, "):
        KVCache(CONFIG, 1, cache_dtype="float8")


class Rounding(KVCache):
    """The reference: keys and values rounded by hand, then held as they are."""

    kind = "int8"

    def write(self, layer: int, k: Tensor, v: Tensor, place: Placement) -> tuple[Tensor, Tensor]:
        return super().write(layer, by_hand(k, self.kind), by_hand(v, self.kind), place)


@pytest.mark.parametrize("cache_dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("windows", [(None, None), (3, 3)])
def test_a_model_reads_what_was_rounded(cache_dtype: str, windows: tuple[int | None, ...]) -> None:
    """A prompt, a ragged block and single tokens, to the bit; and near the cache that rounds not:
    of log-probabilities around 4, bf16 moves 0.1 at most, int8 0.2."""
    model = random_model(tiny_config(n_layers=2, windows=windows, family="mistral"), 0)
    rounding = Rounding(model.config, 2, 4)
    rounding.kind = cache_dtype
    held = KVCache(model.config, 2, 4, cache_dtype=cache_dtype)
    plain = KVCache(model.config, 2, 4)
    ids = random_ids(model, 2, 16)
    sizes = ((0, 7, (7, 7)), (7, 11, (4, 2)), (11, 12, (1, 1)), (12, 13, (1, 1)))
    for start, stop, counts in sizes:
        found, expected, exact = (
            model(ids[:, start:stop], cache, counts=counts, last_only=True).log_softmax(-1)
            for cache in (held, rounding, plain)
        )
        assert torch.equal(found, expected)
        assert 0 < (found - exact).abs().max() < {"bfloat16": 0.1, "int8": 0.2}[cache_dtype]
