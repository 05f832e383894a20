"""Products with int8 weights: `W ~ scales[:, None] * q` (see `rounding`). Pure.

`int8_linear` keeps activations in their dtype. `packed_linear`, for large weights, writes each
activation as two digits of 8 bits (see `two_digits`): kernels multiply integers as fast as memory
delivers them, and two digits are at least as accurate as bf16. The digits are multiplied as
unsigned bytes, with 128 added before and subtracted after: oneDNN's kernels for signed bytes are
fast only on CPUs with AMX and take 300 times as long elsewhere (docs/log.md).
Both kernels are raced (`minisafe.fast.race`) before they are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from minisafe.fast.race import FEW, FEW_ROWS, ROWS, Lap, Shape, border, make_trials, race

# up to FEW_ROWS torch's int8 kernel is faster than widening the weights (docs/log.md)
BLOCK = 1 << 20  # weights to widen at a time: 2 MB of bf16, which fit a core's cache
STEP = 32  # inputs the kernel reads at a time; torch 2.13 crashes unless 16 divides their number
# from this many weights on, reading or widening costs more than writing two digits (docs/log.md)
MIN_DIGITS = {torch.bfloat16: 1 << 22, torch.float32: 1 << 18}
MOST_INPUTS = (2**31 - 1) // (255 * 128)  # of packed weights: more may overflow a 32-bit sum
FEW_DIGITS = 256  # rows to multiply as digits at a time: float32 results take much memory
BASE = 254  # of the digits: the second one is at most half of it, and both fit -127 to 127
SHARES = torch.tensor([1 / 127, 1 / 127 / BASE])[:, None, None]  # digits' steps / a row's largest
NOT_ZERO = torch.tensor(1e-30)  # the steps of a row that is all 0


def int8_linear(x: Tensor, q: Tensor, scales: Tensor) -> Tensor:
    """`x @ rounding.dequantize(q, scales).T`. x: (..., in) in the scales' dtype -> (..., out)"""
    flat = x.reshape(-1, x.shape[-1])
    few = len(flat) <= FEW_ROWS and x.device.type == "cpu"
    if few and len(flat) <= few_rows((q.shape[0], q.shape[1]), x.dtype):
        y = few_int8(flat, q, scales)
    else:
        y = widened(flat, q, scales)
    return y.view(*x.shape[:-1], -1)


def few_int8(x: Tensor, q: Tensor, scales: Tensor) -> Tensor:
    """(rows, in) -> (rows, out), by torch's kernel; `in` must be a multiple of `STEP`."""
    # torch 2.5 refuses rows that are not next to each other
    y: Tensor = torch.ops.aten._weight_int8pack_mm(x.contiguous(), q, scales)
    return y


def widened(x: Tensor, q: Tensor, scales: Tensor) -> Tensor:
    """(rows, in) -> (rows, out), one block of channels at a time, with weights widened to x's
    dtype, which holds -128 to 127 exactly."""
    n = max(1, BLOCK // q.shape[1])
    block = torch.empty(min(n, len(q)), q.shape[1], dtype=x.dtype, device=x.device)
    y = torch.empty(len(x), len(q), dtype=x.dtype, device=x.device)
    for start in range(0, len(q), n):
        part = q[start : start + n]
        wide = block[: len(part)].copy_(part)
        y[:, start : start + n] = torch.mm(x, wide.t())
    return y.mul_(scales)


@cache
def few_laps(shape: Shape) -> tuple[Lap, ...]:
    """Laps of torch's kernel in bf16 against `F.linear` and `widened`; none for a width that it
    cannot multiply. It is not used in float32, where it takes 2 to 8 times as long as `widened`."""
    if shape[1] % STEP != 0:
        return ()
    laps = []
    for trial in make_trials(shape, torch.bfloat16, FEW):
        kernel, instead = (partial(f, trial.x, trial.q, trial.scales) for f in (few_int8, widened))
        linear = partial(F.linear, trial.x, trial.weight)
        laps.append(race("int8 rows", trial, kernel, linear, instead))
    return tuple(laps)


@cache
def few_rows(shape: Shape, dtype: torch.dtype) -> int:
    """The most rows for which torch's kernel is used, for int8 weights that are not packed."""
    return border(few_laps(shape)) if dtype == torch.bfloat16 else 0


# ---- large weights -----------------------------------------------------------------------------


@dataclass(frozen=True)
class PackedInt8:
    """int8 weights in oneDNN's blocked layout. scales: (out,) float32; zeros: (out,) int32."""

    weight: Tensor
    scales: Tensor
    zeros: Tensor


def pack_int8(q: Tensor, scales: Tensor) -> PackedInt8:
    """int8 (out, in) and scales (out,) for `packed_linear`; only if `can_pack_int8()`."""
    weight = torch.ops.onednn.qlinear_prepack(q, None)
    return PackedInt8(weight, scales.float(), torch.zeros(len(q), dtype=torch.int32))


def two_digits(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x ~ (digits * steps).sum(dim=0)`, within half of the second digit's step.

    x: (rows, in), bfloat16 or float32 -> int8 (2, rows, in) and float32 (2, rows, 1). The second
    step is the row's largest absolute value / 32258, the first one 254 times that. If a row holds
    NaN or infinity, its steps are not finite either.
    """
    steps = torch.addcmul(NOT_ZERO, x.abs().amax(dim=-1, keepdim=True), SHARES)
    fine = torch.div(x, steps).round_()
    fine[1].sub_(fine[0], alpha=BASE)
    return fine.to(torch.int8), steps


def packed_linear(x: Tensor, packed: PackedInt8) -> Tensor:
    """`x @ W.T` for the weights W that `packed` encodes. x: (..., in) -> (..., out), in x's dtype.

    Integer sums are exact, so a row's result does not depend on the other rows.
    """
    flat = x.reshape(-1, x.shape[-1])
    if len(flat) <= FEW_DIGITS:
        y = packed_rows(flat, packed)
    else:
        y = torch.cat([packed_rows(each, packed) for each in torch.split(flat, FEW_DIGITS)])
    return y.view(*x.shape[:-1], -1)


def packed_rows(x: Tensor, packed: PackedInt8) -> Tensor:
    """(rows, in) -> (rows, out)"""
    digits, steps = two_digits(x)
    y = digit_product(digits, packed)
    return y[len(x) :].add_(y[: len(x)], alpha=BASE).mul_(steps[1]).to(x.dtype)


def digit_product(digits: Tensor, packed: PackedInt8) -> Tensor:
    """int8 (2, rows, in) -> float32 (2 rows, out)"""
    unsigned = digits.view(torch.uint8).bitwise_xor(128)  # digit + 128
    y: Tensor = torch.ops.onednn.qlinear_pointwise(
        unsigned.view(-1, digits.shape[-1]), 1.0, 128, packed.weight, packed.scales, packed.zeros,
        None, 1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    return y


@cache
def can_pack_int8() -> bool:
    """Whether this torch and CPU multiply packed int8 without errors, tested with the largest
    product. CPUs without VNNI or AMX add pairs in 16 bits, which it overflows."""
    q = torch.full((64, 256), 127, dtype=torch.int8)
    q[::2] *= -1
    try:
        y = packed_linear(torch.ones(2, 256), pack_int8(q, torch.ones(64)))
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(y, q.float().sum(dim=1).expand(2, -1), rtol=1e-5)


@cache
def digit_laps(shape: Shape, dtype: torch.dtype) -> tuple[Lap, ...]:
    """Laps of products of digits against `F.linear` in `dtype`; none if sums could be wrong.
    Writing the digits is not timed: it is done once for all channels, of which a race has few."""
    if shape[1] > MOST_INPUTS or not can_pack_int8():
        return ()
    laps = []
    for trial in make_trials(shape, dtype, ROWS):
        packed = pack_int8(trial.q, trial.scales)
        kernel = partial(digit_product, two_digits(trial.x)[0], packed)
        linear = partial(F.linear, trial.x, trial.weight)
        result = partial(packed_rows, trial.x, packed)
        laps.append(race("digits", trial, kernel, linear, result=result))
    return tuple(laps)


def digits_fit(shape: Shape, dtype: torch.dtype) -> bool:
    """Whether a weight of this shape is packed for products of digits: if it is large, and the
    kernel is correct and fast for any number of rows."""
    if shape[0] * shape[1] < MIN_DIGITS[dtype]:
        return False
    laps = digit_laps(shape, dtype)
    return bool(laps) and all(lap.fits for lap in laps)
