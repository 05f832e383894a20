"""Rounding to 4 bits: how far a weight may err, and that codes come back (int8: fast/test_int8)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from minisafe import rounding
from minisafe.errors import SettingError
from minisafe.rounding import dequantize_groups, pack_codes, quantize_groups, unpack_codes

DTYPES = (torch.bfloat16, torch.float32)


def draw(seed: int, rows: int, groups: int, group: int, dtype: torch.dtype) -> Tensor:
    """Groups of very different sizes, some far from 0."""
    generator = torch.Generator().manual_seed(seed)
    size = 10 ** (4 * torch.rand(rows, groups, 1, generator=generator) - 3)
    far = torch.randn(rows, groups, 1, generator=generator)
    values = (torch.randn(rows, groups, group, generator=generator) + far) * size
    return values.flatten(1).to(dtype)


def test_by_hand() -> None:
    weight = torch.tensor([[-1.0, 14.0] + [3.2] * 30])
    codes, scales = quantize_groups(weight, 32)
    assert scales.tolist() == [[[1.0, 7.0]]]
    assert unpack_codes(codes).tolist() == [[0, 15] + [4] * 30]
    assert codes[0, 0] == 15 << 4, "the first input is in the low half"
    assert dequantize_groups(codes, scales)[0, :3].tolist() == [-1.0, 14.0, 3.0]


@given(
    st.integers(0, 999), st.integers(1, 9), st.integers(1, 3), st.sampled_from((32, 128)),
    st.sampled_from(DTYPES),
)  # fmt: skip
def test_a_weight_errs_by_half_a_step_at_most(
    seed: int, rows: int, groups: int, group: int, dtype: torch.dtype
) -> None:
    weight = draw(seed, rows, groups, group, dtype)
    codes, scales = quantize_groups(weight, group)
    assert (codes.shape, codes.dtype) == ((rows, groups * group // 2), torch.uint8)
    assert (scales.shape, scales.dtype) == ((rows, groups, 2), dtype)
    found = dequantize_groups(codes, scales).double().view(rows, groups, group)
    expected = weight.double().view(rows, groups, group)
    step = scales[..., :1].double().abs()
    largest = expected.abs().amax(-1, keepdim=True)
    eps = 2.0**-9 if dtype == torch.bfloat16 else 2.0**-23  # of a rounded scale
    allowed = step * (0.5 + 15 * eps) + 2 * eps * largest
    assert bool(((found - expected).abs() <= allowed * (1 + 1e-5)).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_weights_stay(dtype: torch.dtype) -> None:
    weight = torch.full((2, 64), 0.01).to(dtype)
    weight[1] = 0
    assert torch.equal(dequantize_groups(*quantize_groups(weight, 32)), weight.float())


def test_codes_come_back_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randint(0, 16, (5, 64), dtype=torch.uint8)
    assert torch.equal(unpack_codes(pack_codes(codes)), codes)
    weight = draw(1, 7, 2, 32, torch.bfloat16)
    whole = quantize_groups(weight, 32)
    monkeypatch.setattr(rounding, "AT_ONCE", 2 * 64)
    assert all(map(torch.equal, quantize_groups(weight, 32), whole))


@pytest.mark.parametrize(
    ("width", "group", "words"),
    [(576, 128, "576 inputs; expected a group of 32 or 64"), (64, 16, "groups of 16"),
     (40, 32, "expected a group of none: no int4")],
)  # fmt: skip
def test_groups_that_do_not_fill_rows(width: int, group: int, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        quantize_groups(torch.ones(1, width), group)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(SettingError, match="int4 weights are for bfloat16 or float32"):
        quantize_groups(torch.ones(1, 32, dtype=torch.float16), 32)
