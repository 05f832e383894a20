"""Products with int4 weights in groups of inputs (see `rounding`). Pure.

For few rows in bf16, torch's `_weight_int4pack_mm_for_cpu` reads 4 bits a weight. It has a blocked
layout of its own, which this file also reads, so weights are held once: for many rows, blocks of
channels are widened and multiplied. Without the kernel (float32, where it takes 20 to 500 times as
long; other layouts) the weights stay as they were stored, and are always widened.

torch's other kernel, `_dyn_quant_matmul_4bit`, is not used: without ARM's library it is a loop that
takes 100 times as long, and it rounds activations to 8 bits (docs/log.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from minisafe.fast.race import FEW, Lap, Shape, Trial, border, make_trials, race
from minisafe.rounding import MIDDLE, dequantize_groups, pack_codes, unpack_codes

CHANNELS = (64, 32)  # of a block of torch's layout, with AVX-512 and with AVX2
BLOCK = 1 << 19  # weights to widen at a time
SOME = 8  # times the kernel's rows, from which widening costs less than calls of the kernel


@dataclass(frozen=True)
class Int4:
    """int4 weights of `out` channels.

    channels: of a block of torch's layout; 0: as stored.
    codes: uint8. As stored, (out, in / 2). In torch's layout, (out / channels, in, channels / 2):
        of each input, the low halves are the block's first channels, the high halves the others.
    scales: as stored, (out, in / group, 2); in torch's layout, (in / group, out, 2).
    rows: the most rows that torch's kernel multiplies.
    """

    codes: Tensor
    scales: Tensor
    channels: int
    rows: int

    @property
    def out(self) -> int:
        """The number of channels."""
        return self.scales.shape[1 if self.channels else 0]

    @property
    def group(self) -> int:
        """Inputs per group."""
        groups = self.scales.shape[0 if self.channels else 1]
        return 2 * self.codes.numel() // self.out // groups


def hold_int4(packed: Tensor, scales: Tensor) -> Int4:
    """Codes and scales as stored -> what `int4_linear` reads."""
    shape, group = (len(packed), 2 * packed.shape[1]), 2 * packed.shape[1] // scales.shape[1]
    channels = layout() if scales.dtype == torch.bfloat16 and packed.device.type == "cpu" else 0
    rows = border(few_laps(shape, group)) if channels and shape[0] % channels == 0 else 0
    if rows == 0:
        return Int4(packed, scales, 0, 0)
    return Int4(to_blocks(packed, channels), scales.transpose(0, 1).contiguous(), channels, rows)


def to_blocks(packed: Tensor, channels: int) -> Tensor:
    """(out, in / 2) -> torch's layout, (out / channels, in, channels / 2)"""
    n_in = 2 * packed.shape[1]
    blocks = packed.new_empty(len(packed) // channels, n_in, channels // 2)
    n = max(1, BLOCK // (n_in * channels)) * channels
    for start in range(0, len(packed), n):  # torch's function takes 32 bits a code
        codes = unpack_codes(packed[start : start + n]).int()
        made = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        blocks[start // channels : (start + n) // channels] = made.view(-1, *blocks.shape[1:])
    return blocks


@cache
def layout() -> int:
    """The channels of a block in torch's layout on this machine; 0 if there is no such kernel, or
    if it has a layout that this file does not know."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (64, 32), generator=generator, dtype=torch.uint8)
    for channels in CHANNELS:
        try:
            blocks = to_blocks(pack_codes(codes), channels)
        except (AttributeError, RuntimeError, NotImplementedError):
            return 0
        if torch.equal(block_codes(blocks).transpose(1, 2).reshape(64, 32), codes):
            return channels
    return 0


def block_codes(blocks: Tensor) -> Tensor:
    """(n, in, channels / 2) -> codes (n, in, channels)"""
    return torch.cat((blocks & 15, blocks >> 4), dim=-1)


def int4_linear(x: Tensor, held: Int4) -> Tensor:
    """`x @ W.T` for the weights W that are held. x: (..., in) in the scales' dtype -> (..., out)"""
    flat = x.reshape(-1, x.shape[-1])
    if len(flat) <= held.rows:
        y = few_int4(flat, held)
    elif len(flat) <= SOME * held.rows:
        y = torch.cat([few_int4(each, held) for each in torch.split(flat, held.rows)])
    else:
        y = widened_blocks(flat, held) if held.channels else widened_rows(flat, held)
    return y.view(*x.shape[:-1], -1)


def few_int4(x: Tensor, held: Int4) -> Tensor:
    """(rows, in) -> (rows, out), by torch's kernel"""
    codes, x = held.codes.view(held.out, -1), x.contiguous()
    y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, codes, held.group, held.scales)
    return y


def widened_blocks(x: Tensor, held: Int4) -> Tensor:
    """(rows, in) -> (rows, out), from torch's layout, some blocks at a time"""
    n_blocks, n_in, half = held.codes.shape
    y = x.new_empty(len(x), n_blocks, 2 * half)
    scales = held.scales.view(-1, n_blocks, 2 * half, 2)  # (in / group, ...)
    n = max(1, BLOCK // (2 * half * n_in))
    for start in range(0, n_blocks, n):
        codes = block_codes(held.codes[start : start + n]).to(x.dtype).sub_(MIDDLE)
        step, middle = scales[:, start : start + n].transpose(0, 1).unsqueeze(2).unbind(-1)
        codes = codes.view(len(codes), -1, held.group, 2 * half)
        wide = torch.addcmul(middle, codes, step).flatten(1, 2)  # (n, in, channels)
        y[:, start : start + n] = torch.matmul(x, wide).transpose(0, 1)
    return y.flatten(1)


def widened_rows(x: Tensor, held: Int4) -> Tensor:
    """(rows, in) -> (rows, out), from codes as stored, some channels at a time"""
    y = x.new_empty(len(x), held.out)
    n = max(1, BLOCK // x.shape[1])
    for start in range(0, held.out, n):
        codes = unpack_codes(held.codes[start : start + n]).to(x.dtype).sub_(MIDDLE)
        step, middle = held.scales[start : start + n].unsqueeze(2).unbind(-1)
        codes = codes.view(len(codes), -1, held.group)
        wide = torch.addcmul(middle, codes, step).flatten(1)
        y[:, start : start + n] = torch.mm(x, wide.t())
    return y


@cache
def few_laps(shape: Shape, group: int) -> tuple[Lap, ...]:
    """Laps of torch's kernel against `F.linear` and `widened_blocks`, in bf16."""
    channels, laps = layout(), []
    for trial in int4_trials(shape, group):
        packed = pack_codes(trial.q.view(torch.uint8))
        scales = trial.scales.transpose(0, 1).contiguous()
        held = Int4(to_blocks(packed, channels), scales, channels, len(trial.x))
        kernel, instead = (partial(f, trial.x, held) for f in (few_int4, widened_blocks))
        laps.append(race("int4", trial, kernel, partial(F.linear, trial.x, trial.weight), instead))
    return tuple(laps)


def int4_trials(shape: Shape, group: int) -> list[Trial]:
    """Random factors for races, with weights in int4: q has codes, and scales are as stored."""
    found = []
    for trial in make_trials(shape, torch.bfloat16, FEW):
        whole = len(trial.q) - len(trial.q) % max(CHANNELS)  # blocks
        codes = (trial.q[:whole] & 15).view(torch.uint8)
        step = torch.linspace(0.5, 1.5, shape[1] // group).expand(len(codes), -1)
        scales = torch.stack((step, -step), dim=-1).bfloat16().contiguous()
        weight = dequantize_groups(pack_codes(codes), scales).bfloat16()
        found.append(replace(trial, weight=weight, q=codes.view(torch.int8), scales=scales))
    return found
