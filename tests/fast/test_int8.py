"""Weight-only int8: bounded errors a weight, and products that are those of the rounded weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minisafe.errors import SettingError
from minisafe.fast import int8 as module
from minisafe.fast.int8 import (
    BASE,
    FEW_DIGITS,
    FEW_ROWS,
    MOST_INPUTS,
    STEP,
    can_pack_int8,
    digit_product,
    int8_linear,
    pack_int8,
    packed_linear,
    two_digits,
)
from minisafe.fast.race import FEW, ROWS, Lap
from minisafe.rounding import dequantize, quantize

DTYPES = (torch.float32, torch.bfloat16)
# of a sum of sizes; bf16 kernels round up to four times on the way (3.3 x 2^-9 was seen)
ROUNDING = {torch.float32: 2.0**-20, torch.bfloat16: 4 * 2.0**-9}


def draw_weight(seed: int, out_features: int, in_features: int, dtype: torch.dtype) -> Tensor:
    """Channels of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 10 ** (4 * torch.rand(out_features, 1, generator=generator) - 3)
    return (torch.randn(out_features, in_features, generator=generator) * sizes).to(dtype)


def test_by_hand() -> None:
    weight = torch.tensor([[127.0, -63.6, 0.4, 0.6], [0.0, 0.0, 0.0, 0.0], [-2.54, 0.02, 1.0, 0.0]])
    q, scales = quantize(weight)
    torch.testing.assert_close(scales, torch.tensor([1.0, 1.0, 0.02]), atol=1e-8, rtol=0)
    assert q.tolist() == [[127, -64, 0, 1], [0, 0, 0, 0], [-127, 1, 50, 0]]
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    # 127 - 128 + 4; 0; 0.02 * (-127 + 2 + 150)
    torch.testing.assert_close(int8_linear(x, q, scales), torch.tensor([[3.0, 0.0, 0.5]]))


@given(st.integers(0, 999), st.integers(1, 40), st.integers(1, 70), st.sampled_from(DTYPES))
def test_a_weight_errs_by_half_a_scale_at_most(
    seed: int, out_features: int, in_features: int, dtype: torch.dtype
) -> None:
    weight = draw_weight(seed, out_features, in_features, dtype)
    q, scales = quantize(weight)
    error = (dequantize(q, scales).double() - weight.double()).abs()
    assert bool((error <= scales.double()[:, None] / 2 * (1 + 1e-5)).all())
    assert scales.dtype == dtype
    assert q.abs().max() <= 127
    peak, step = weight.double().abs().amax(1), 2.0**-8 if dtype == torch.bfloat16 else 2.0**-22
    assert bool(((scales.double() * 127 - peak).abs() <= peak * step).all())


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 999),
    st.sampled_from((1, 2, 5, FEW_ROWS, FEW_ROWS + 1, 40)),
    st.sampled_from((1, 3, 64, 97)),
    st.sampled_from((12, 60, 64, 96)),
    st.sampled_from(DTYPES),
)
def test_products_are_those_of_the_rounded_weights(
    seed: int, rows: int, out_features: int, in_features: int, dtype: torch.dtype
) -> None:
    weight = draw_weight(seed, out_features, in_features, dtype)
    x = torch.randn(rows, 1, in_features, generator=torch.Generator().manual_seed(seed)).to(dtype)
    q, scales = quantize(weight)
    y = int8_linear(x, q, scales)
    rounded = dequantize(q, scales).double()
    assert y.shape == (rows, 1, out_features)
    assert y.dtype == dtype
    size = x.double().abs() @ rounded.abs().T  # what the sum's roundings are relative to
    assert bool(((y.double() - x.double() @ rounded.T).abs() <= ROUNDING[dtype] * size).all())
    bound = x.double().abs().sum(-1, keepdim=True) * scales.double() / 2 + ROUNDING[dtype] * size
    assert bool(((y.double() - x.double() @ weight.double().T).abs() <= bound * (1 + 1e-5)).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [2, 6, FEW_ROWS, 34])
def test_equal_rows_of_a_product_are_bit_equal(dtype: torch.dtype, rows: int) -> None:
    weight = draw_weight(rows, 160, 192, dtype)
    one = torch.randn(rows // 2, 192, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = int8_linear(torch.cat((one, one)), *quantize(weight))
    assert torch.equal(y[: rows // 2], y[rows // 2 :])


def test_the_kernel_is_for_few_rows_whose_width_it_divides(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16, and as far as its races say."""
    widened: list[tuple[int, int]] = []
    real = module.widened
    monkeypatch.setattr(
        module, "widened", lambda x, q, s: widened.append(tuple(x.shape)) or real(x, q, s)
    )
    fits = [Lap("int8 rows", rows, 1.0, 1.0, 0.0, rows <= 2) for rows in FEW]
    monkeypatch.setattr(module, "few_laps", lambda shape: fits if shape[1] % 32 == 0 else [])
    module.few_rows.cache_clear()
    shapes = [(1, 64), (2, 64), (3, 64), (FEW_ROWS, 64), (FEW_ROWS + 1, 64), (1, 60), (1, 48)]
    for rows, width in shapes:
        weight = quantize(draw_weight(0, 8, width, torch.bfloat16))
        int8_linear(torch.ones(rows, width).bfloat16(), *weight)
    assert widened == shapes[2:]
    int8_linear(torch.ones(1, 64), *quantize(draw_weight(0, 8, 64, torch.float32)))
    assert widened == [*shapes[2:], (1, 64)]
    module.few_rows.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    weight = draw_weight(1, 23, 40, dtype)
    x = torch.randn(30, 40, generator=torch.Generator().manual_seed(1)).to(dtype)
    q, scales = quantize(weight)
    whole = int8_linear(x, q, scales)
    monkeypatch.setattr(module, "BLOCK", 5 * 40)
    assert all(map(torch.equal, quantize(weight), (q, scales)))
    blocked = int8_linear(x, q, scales)
    torch.testing.assert_close(blocked, whole, rtol=2 * ROUNDING[dtype], atol=1e-5)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(SettingError, match="not float16; give --dtype bfloat16"):
        quantize(torch.ones(2, 2, dtype=torch.float16))


# ---- large weights: two digits ------------------------------------------------------------------

packs = pytest.mark.skipif(not can_pack_int8(), reason="this CPU or torch has no packed int8")


def test_two_digits_by_hand() -> None:
    x = torch.tensor([[32258.0, 254.0, -381.0, 126.6, 0.4], [0.0, 0.0, 0.0, 0.0, 0.0]])
    digits, steps = two_digits(x)
    torch.testing.assert_close(steps[:, 0, 0], torch.tensor([254.0, 1.0]), rtol=1e-6, atol=0)
    assert digits[0].tolist() == [[127, 1, -2, 0, 0], [0] * 5]  # -381 = -2 * 254 + 127
    assert digits[1].tolist() == [[0, 0, 127, 127, 0], [0] * 5]


@given(
    st.integers(0, 999), st.integers(1, 5), st.integers(1, 70), st.floats(-30, 30),
    st.sampled_from(DTYPES),
)  # fmt: skip
def test_two_digits_err_by_half_the_second_ones_step(
    seed: int, rows: int, width: int, size: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(rows, width, generator=generator) ** 3 * 2.0**size).to(dtype)
    digits, steps = two_digits(x)
    assert digits.dtype == torch.int8
    assert digits.abs().max() <= 127
    stands_for = (digits.double() * steps.double()).sum(dim=0)
    peak = x.double().abs().amax(-1, keepdim=True)
    bound = peak / (127 * BASE) * (0.5 + 1e-2)  # float32 rounds the quotient, 32258 at most
    assert bool(((stands_for - x.double()).abs() <= bound).all())


@packs
@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 999), st.sampled_from((1, 2, 7, FEW_DIGITS + 1)), st.sampled_from((1, 3, 97)),
    st.sampled_from((1, 12, 64, 96, 1000)), st.sampled_from(DTYPES),
)  # fmt: skip
def test_packed_products_are_those_of_the_rounded_weights(
    seed: int, rows: int, out_features: int, in_features: int, dtype: torch.dtype
) -> None:
    q, scales = quantize(draw_weight(seed, out_features, in_features, dtype))
    x = torch.randn(rows, 1, in_features, generator=torch.Generator().manual_seed(seed)).to(dtype)
    y = packed_linear(x, pack_int8(q, scales))
    assert (y.shape, y.dtype) == ((rows, 1, out_features), dtype)
    rounded = dequantize(q, scales).double()
    expected = x.double() @ rounded.T
    step = x.double().abs().amax(-1, keepdim=True) / (127 * BASE)
    bound = step * (0.5 + 1e-2) * rounded.abs().sum(-1)
    bound += expected.abs() * (2.0**-8 if dtype == torch.bfloat16 else 0)  # rounded once
    bound += 2.0**-22 * (x.double().abs() @ rounded.abs().T)
    assert bool(((y.double() - expected).abs() <= bound * (1 + 1e-5)).all())


@packs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_a_packed_product_do_not_touch(dtype: torch.dtype) -> None:
    """However many stand beside them, also where those are not finite."""
    x = torch.randn(FEW_DIGITS + 9, 192, generator=torch.Generator().manual_seed(0)).to(dtype)
    packed = pack_int8(*quantize(draw_weight(3, 160, 192, dtype)))
    whole = packed_linear(x, packed)
    for rows in (slice(0, 1), slice(3, 5), slice(250, 262)):
        assert torch.equal(packed_linear(x[rows], packed), whole[rows])
    for bad in (torch.nan, torch.inf):
        x[1, 7] = bad
        y = packed_linear(x[:3], packed)
        assert not bool(y[1].isfinite().any())
        assert torch.equal(y[[0, 2]], whole[[0, 2]])


def test_no_packing_where_the_largest_product_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def saturating(x: Tensor, packed: object) -> Tensor:
        return torch.full((len(x), 64), 32767.0 / 127)

    can_pack_int8.cache_clear()
    module.digit_laps.cache_clear()
    monkeypatch.setattr(module, "packed_linear", saturating)
    assert not can_pack_int8()
    assert not module.digits_fit((1 << 11, 1 << 11), torch.bfloat16)
    can_pack_int8.cache_clear()
    module.digit_laps.cache_clear()


@packs
def test_the_largest_sums_are_exact() -> None:
    """Unsigned digits times weights of 127, as many as an integer's sum holds."""
    width = MOST_INPUTS // STEP * STEP
    digits = torch.full((2, 1, width), 127, dtype=torch.int8)
    digits[1] = -127
    q = torch.full((3, width), 127, dtype=torch.int8)
    q[1] = -127
    q[2, ::2] = 0
    y = digit_product(digits, pack_int8(q, torch.ones(3)))
    exact = digits.view(2, -1).double() @ q.double().T
    assert torch.equal(y, exact.float())


@packs
def test_a_weight_is_packed_only_if_large_short_and_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_DIGITS", {torch.bfloat16: 100, torch.float32: 50})
    fits = module.digits_fit
    assert fits((10, 10), torch.bfloat16)
    assert not fits((9, 10), torch.bfloat16)
    assert fits((9, 10), torch.float32)
    assert not fits((1, MOST_INPUTS + 1), torch.float32)
    laps = [Lap("digits", rows, 1.0, 1.0, 0.0, rows < 64) for rows in ROWS]
    monkeypatch.setattr(module, "digit_laps", lambda shape, dtype: laps)
    assert not fits((10, 10), torch.bfloat16)
