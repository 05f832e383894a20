"""The weight on the left: a faster product for few rows of bf16 on a CPU with AMX."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from minisafe.fast.race import FEW, FEW_ROWS, Lap, Shape, border, make_trials, race
from minisafe.linear import Linear, add_deltas
from minisafe.lora import AdaptedRows

MIN_WEIGHTS = 1 << 18  # of a matrix; with fewer, this costs more than it saves


class LeftLinear(Linear):
    """A plain linear map that calls `linear`; `prepare` turns a `Linear` into one, in place."""

    def forward(self, x: Tensor, adapters: Sequence[AdaptedRows]) -> Tensor:
        y = linear(x, self.weight, self.bias)
        return add_deltas(y, x, self.name, adapters) if adapters else y


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`; for few rows of bf16 on a CPU with AMX, `(weight @ x.T).T`.

    On such a CPU the usual order leaves much of the memory bandwidth unused (bench/README.md). A
    race checks this, since oneDNN may be configured to use less than the CPU has. Both orders give
    the same products. One row is faster as two equal rows. The result is contiguous: with other
    strides, torch would multiply row by row and copy the next weight for each row.
    """
    rows = x.numel() // x.shape[-1]
    usual = rows > FEW_ROWS or weight.numel() < MIN_WEIGHTS
    if usual or x.dtype != torch.bfloat16 or not weight_goes_left(x):
        return F.linear(x, weight, bias)
    if rows > left_rows((weight.shape[0], weight.shape[1])):
        return F.linear(x, weight, bias)
    y = weight_left(x.reshape(rows, -1), weight).view(*x.shape[:-1], -1)
    return y if bias is None else y + bias


def weight_left(x: Tensor, weight: Tensor) -> Tensor:
    """(rows, in) -> (rows, out), contiguous"""
    columns = x.expand(2, -1) if len(x) == 1 else x
    return torch.mm(weight, columns.t())[:, : len(x)].t().contiguous()


@cache
def left_laps(shape: Shape) -> tuple[Lap, ...]:
    """Laps of the weight on the left against `F.linear` in bf16, up to the first that is out."""
    laps = []
    for trial in make_trials(shape, torch.bfloat16, FEW):
        left, right = (partial(act, trial.x, trial.weight) for act in (weight_left, F.linear))
        with torch.inference_mode():
            laps.append(race("left", trial, left, right))
        if not laps[-1].fits:
            break
    return tuple(laps)


@cache
def left_rows(shape: Shape) -> int:
    """The most rows for which the weight goes left."""
    return border(left_laps(shape))


def weight_goes_left(x: Tensor) -> bool:
    """Whether `x` is multiplied on a CPU with AMX, for inference."""
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return False
    return has_amx()


@cache
def has_amx() -> bool:
    """Whether torch's CPU kernels may use AMX tiles here; False if torch cannot tell."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported and supported())


def may_go_left(shape: Shape, dtype: torch.dtype) -> bool:
    """Whether `linear` may put the weight on the left for some numbers of rows."""
    return dtype == torch.bfloat16 and shape[0] * shape[1] >= MIN_WEIGHTS and has_amx()
