"""Caches of both kinds that hold keys and values in a smaller dtype."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from minisafe.cache import KVCache, Placement
from minisafe.cache_dtype import CACHE_DTYPES, bytes_per_token
from minisafe.errors import SettingError
from minisafe.fast.score import wipe_row
from tests.support.caches import CONFIG, block, both_kinds
from tests.support.tiny import random_ids, random_model, tiny_config


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


@both_kinds
@given(
    st.sampled_from(("float32", "bfloat16", "int8")),
    st.sampled_from((torch.float32, torch.bfloat16)),
    st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=2), min_size=1, max_size=3),
    st.integers(0, 99),
)
def test_a_smaller_dtype_gives_back_what_was_rounded(
    kind: type[KVCache], cache_dtype: str, dtype: torch.dtype, blocks: list[list[int]], seed: int
) -> None:
    """To the bit, uniform or ragged, and only once: what earlier blocks wrote never moves again."""
    cache = kind(CONFIG, 2, 2, dtype, cache_dtype=cache_dtype)
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


@both_kinds
def test_int8_errs_by_half_a_scale(kind: type[KVCache]) -> None:
    """|x - q s| <= s / 2, s the head's largest value over 127; zeros stay zeros."""
    x = torch.randn(1, 2, 50, 4, generator=torch.Generator().manual_seed(0))
    x[0, 0, 3], x[0, 1, 4] = 0, torch.tensor([1e-30, 0, 0, -1e-30])
    cache = kind(CONFIG, 1, 40, cache_dtype="int8")
    x = x[:, :, :40]
    keys, values = cache.write(0, x, -x, cache.place([40], 40))
    half = x.abs().amax(-1, keepdim=True) / 254
    assert ((keys - x).abs() <= half * 1.0001).all()
    assert torch.equal(values, -keys)
    assert not keys[0, 0, 3].any()
    assert (keys - x).abs().max() > 1e-3


@both_kinds
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)
def test_what_is_not_finite_stays_so(kind: type[KVCache], cache_dtype: str, bad: float) -> None:
    """A model that broke down must not look sound because its cache rounds."""
    cache = kind(CONFIG, 1, 8, cache_dtype=cache_dtype)
    k, v = block(1, 2, 1.0)
    k[0, 0, 1, 2] = v[0, 1, 1, 0] = bad
    keys, values = cache.write(0, k, v, cache.place([2], 2))
    assert not keys[0, 0, 1].isfinite().all()
    assert not values[0, 1, 1].isfinite().all()
    assert keys[0, 1].isfinite().all()
    assert values[0, 0].isfinite().all()
    wipe_row(cache, 0)
    assert all(each.isfinite().all() and not each.any() for each in cache.held)


@both_kinds
@given(st.sampled_from(CACHE_DTYPES), st.lists(st.integers(0, 2), min_size=1, max_size=4))
def test_growing_keeping_and_repeating_move_everything_that_is_held(
    kind: type[KVCache], cache_dtype: str, kept: list[int]
) -> None:
    cache = kind(CONFIG, 3, 5, torch.bfloat16, cache_dtype=cache_dtype)
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


@both_kinds
def test_bytes_of_every_dtype(kind: type[KVCache]) -> None:
    """2 halves x 2 layers x 3 rows x 2 heads x 10 columns, of 4 values and for int8 a scale."""
    heads = 2 * 2 * 3 * 2 * 10
    sizes = {"auto": 4 * 2, "float32": 4 * 4, "bfloat16": 4 * 2, "int8": 4 + 2}
    for name, size in sizes.items():
        cache = kind(CONFIG, 3, 10, torch.bfloat16, cache_dtype=name)
        assert cache.n_bytes == heads * size
        assert cache.n_bytes == 3 * 10 * bytes_per_token(CONFIG, torch.bfloat16, name)
    assert bytes_per_token(CONFIG, torch.float32, "int8") == 2 * 2 * 2 * (4 + 4)
    assert bytes_per_token(CONFIG, torch.float32) == CONFIG.kv_bytes_per_token


@both_kinds
def test_another_dtype_is_refused(kind: type[KVCache]) -> None:
    with pytest.raises(SettingError, match=r"cache_dtype is 'float8'; expected one of auto, "):
        kind(CONFIG, 1, cache_dtype="float8")


class Rounding(KVCache):
    """The reference: keys and values rounded by hand, then held as they are."""

    kind = "int8"

    def write(self, layer: int, k: Tensor, v: Tensor, place: Placement) -> tuple[Tensor, Tensor]:
        return super().write(layer, by_hand(k, self.kind), by_hand(v, self.kind), place)


@both_kinds
@pytest.mark.parametrize("cache_dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("windows", [(None, None), (3, 3)])
def test_a_model_reads_what_was_rounded(
    kind: type[KVCache], cache_dtype: str, windows: tuple[int | None, ...]
) -> None:
    """A prompt, a ragged block and single tokens, to the bit; and near the cache that rounds not:
    of log-probabilities around 4, bf16 moves 0.1 at most, int8 0.2."""
    model = random_model(tiny_config(n_layers=2, windows=windows, family="mistral"), 0)
    rounding = Rounding(model.config, 2, 4)
    rounding.kind = cache_dtype
    held = kind(model.config, 2, 4, cache_dtype=cache_dtype)
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
