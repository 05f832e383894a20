"""Products with int4 weights: every way equals the product with the weights that they encode."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from minisafe.fast import int4 as module
from minisafe.fast.int4 import (
    SOME,
    Int4,
    block_codes,
    hold_int4,
    int4_linear,
    layout,
    to_blocks,
    widened_blocks,
    widened_rows,
)
from minisafe.fast.race import FEW_ROWS
from minisafe.rounding import dequantize_groups, quantize_groups, unpack_codes

DTYPES = (torch.bfloat16, torch.float32)
# of a sum of sizes: in bf16, weights, sums and results are rounded
ROUNDING = {torch.float32: 2.0**-19, torch.bfloat16: 6 * 2.0**-9}
needs_kernel = pytest.mark.skipif(layout() == 0, reason="no kernel whose layout is known")


def factors(
    seed: int, rows: int, channels: int, width: int, group: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator).to(dtype)
    weight = torch.randn(channels, width, generator=generator).to(dtype)
    return x, *quantize_groups(weight, group)


def equals(y: Tensor, x: Tensor, codes: Tensor, scales: Tensor) -> None:
    """Against the slow reference, relative to the sum of the sizes of what is added."""
    weight = dequantize_groups(codes, scales).double()
    sizes = x.double().abs() @ weight.abs().T
    error = (y.double() - x.double() @ weight.T).abs()
    assert y.dtype == x.dtype
    assert bool((error <= ROUNDING[x.dtype] * sizes).all())


@given(
    st.integers(0, 99), st.sampled_from((1, 2, FEW_ROWS, FEW_ROWS + 1, SOME * FEW_ROWS + 1)),
    st.sampled_from((5, 16, 64, 192)), st.sampled_from((128, 256)), st.sampled_from((32, 64, 128)),
    st.sampled_from(DTYPES),
)  # fmt: skip
def test_a_product_equals_the_reference(
    seed: int, rows: int, channels: int, width: int, group: int, dtype: torch.dtype
) -> None:
    x, codes, scales = factors(seed, rows, channels, width, group, dtype)
    equals(int4_linear(x, hold_int4(codes, scales)), x, codes, scales)


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="not seen there")
def test_torch_s_layout_is_known() -> None:
    """Without it the kernel is never used, and the tests below are skipped."""
    assert layout() == 64


@needs_kernel
def test_torch_s_layout_is_read_as_torch_writes_it() -> None:
    x, codes, scales = factors(0, 3, 192, 96, 32, torch.bfloat16)
    channels = layout()
    blocks = to_blocks(codes, channels)
    read = block_codes(blocks).transpose(1, 2).reshape(192, 96)
    assert torch.equal(read, unpack_codes(codes))
    held = Int4(blocks, scales.transpose(0, 1).contiguous(), channels, FEW_ROWS)
    equals(widened_blocks(x, held), x, codes, scales)
    equals(module.few_int4(x, held), x, codes, scales)
    equals(widened_rows(x, Int4(codes, scales, 0, 0)), x, codes, scales)


@needs_kernel
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, codes, scales = factors(1, 3, 256, 64, 32, torch.bfloat16)
    whole = to_blocks(codes, layout())
    monkeypatch.setattr(module, "BLOCK", 64 * 64)
    assert torch.equal(to_blocks(codes, layout()), whole)
    held = Int4(whole, scales.transpose(0, 1).contiguous(), layout(), FEW_ROWS)
    equals(widened_blocks(x, held), x, codes, scales)
    equals(widened_rows(x, Int4(codes, scales, 0, 0)), x, codes, scales)


@needs_kernel
def test_weights_are_held_once() -> None:
    _, codes, scales = factors(2, 1, 128, 64, 32, torch.bfloat16)
    held = hold_int4(codes, scales)
    assert held.codes.nbytes + held.scales.nbytes == codes.nbytes + scales.nbytes
    assert (held.out, held.group) == (128, 32)


def test_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another layout, or none: the same product, from codes as stored."""
    monkeypatch.setattr(module, "layout", lambda: 0)
    x, codes, scales = factors(3, 2, 64, 64, 32, torch.bfloat16)
    held = hold_int4(codes, scales)
    assert (held.channels, held.out, held.group) == (0, 64, 32)
    equals(int4_linear(x, held), x, codes, scales)


def test_any_leading_shape() -> None:
    x, codes, scales = factors(4, 6, 64, 64, 32, torch.bfloat16)
    held = hold_int4(codes, scales)
    y = int4_linear(x.view(2, 3, 64), held)
    assert torch.equal(y, int4_linear(x, held).view(2, 3, 64))
