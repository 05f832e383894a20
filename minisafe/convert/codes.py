"""Weights that other programs quantised, as codes, and how they run here. Pure.

    W[o, i] = (codes[o, i] - zeros[o, g]) * scales[o, g]

where g is the group of input i. The layouts in files are those of GPTQ (Frantar et al. 2022,
arXiv 2210.17323, as AutoGPTQ stores it), AWQ (Lin et al. 2023, arXiv 2306.00978, its GEMM layout),
and compressed-tensors (pack-quantized, int-quantized).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minisafe.rounding import GROUPS, MIDDLE, pack_codes, unpack_codes

WORD = 32  # bits of the integers that hold codes
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where AWQ's word holds each of 8 consecutive channels


@dataclass(frozen=True)
class Codes:
    """The weights of one linear map.

    codes: uint8 (out, in), 0 to 2^bits - 1. zeros: uint8 (out, groups). scales: (out, groups).
    groups: int64 (in,), the group of each input.
    """

    codes: Tensor
    zeros: Tensor
    scales: Tensor
    groups: Tensor
    bits: int

    def rows(self, start: int, stop: int) -> Codes:
        """Some output channels."""
        codes, zeros, scales = (each[start:stop] for each in (self.codes, self.zeros, self.scales))
        return replace(self, codes=codes, zeros=zeros, scales=scales)


def widened(block: Codes) -> Tensor:
    """The weights, float32 (out, in)."""
    zeros, scales = (
        each.float().index_select(1, block.groups) for each in (block.zeros, block.scales)
    )
    return (block.codes.float() - zeros) * scales


def carried(
    block: Codes, form: str | None, group: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor] | None:
    """The same codes as `rounding` has them, with scales in `dtype`; None where its form cannot
    hold them, so that they have to be rounded again.

    form: "int8", which holds 8 bits with one symmetric scale per channel, or "int4", which holds
    4 bits in runs of whole groups. group: inputs per group of int4.
    """
    scales = block.scales.float()
    if form == "int8" and block.bits == 8 and scales.shape[1] == 1 and (block.zeros == 128).all():
        return (block.codes ^ 128).view(torch.int8), scales[:, 0].to(dtype)
    run = run_length(block.groups, scales.shape[1])
    if form == "int4" and block.bits == 4 and run and run % group == 0:
        middle = (MIDDLE - block.zeros.float()) * scales  # the value of code 8
        both = torch.stack((scales, middle), dim=-1).to(dtype)
        return pack_codes(block.codes), both.repeat_interleave(run // group, dim=1)
    return None


def run_length(groups: Tensor, n: int) -> int:
    """Inputs per group, if the n groups are runs of inputs of one length; else 0, as where GPTQ
    orders inputs by activation (`desc_act`). groups: (in,), the group of each input."""
    n_in = len(groups)
    runs = torch.arange(n_in) // max(1, n_in // n)
    return n_in // n if n_in % n == 0 and torch.equal(groups, runs) else 0


def common_group(group: int) -> int:
    """The longest group of int4 that groups of this length are cut into; 0 if there is none."""
    return max((each for each in GROUPS if group and group % each == 0), default=0)


# ---- layouts -----------------------------------------------------------------------------------


def from_gptq(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, groups: Tensor, bits: int, less: int
) -> Codes:
    """GPTQ: words along the inputs, (in * bits / 32, out), zeros (groups, out * bits / 32), scales
    (groups, out). less: what was taken from the zeros before they were stored, 1 or 0."""
    codes = unpacked(qweight.t(), bits)
    zeros = (unpacked(qzeros, bits) + less) & (2**bits - 1)
    return Codes(codes, zeros.t()[: len(codes)], scales.t(), groups, bits)


def from_awq(qweight: Tensor, qzeros: Tensor, scales: Tensor, groups: Tensor) -> Codes:
    """AWQ: words along the outputs, (in, out / 8), zeros (groups, out / 8), scales (groups, out);
    channels in an order of its own."""

    def channels(words: Tensor) -> Tensor:
        codes = unpacked(words, 4)
        return codes.view(len(codes), -1, 8)[..., AWQ_PLACES].flatten(1)

    n_out = scales.shape[1]  # of the last word, not all channels are in use
    codes, zeros = (channels(each).t()[:n_out] for each in (qweight, qzeros))
    return Codes(codes, zeros, scales.t(), groups, 4)


def from_packed(
    packed: Tensor, zero_point: Tensor | None, scales: Tensor, groups: Tensor, bits: int
) -> Codes:
    """compressed-tensors, packed: words along the inputs, (out, in * bits / 32), zeros along the
    outputs, (out * bits / 32, groups), scales (out, groups); without zeros symmetric."""
    zeros = torch.full(scales.shape, 2 ** (bits - 1), dtype=torch.uint8)
    if zero_point is not None:
        zeros = unpacked(zero_point.t(), bits).t()[: len(packed)]
    return Codes(unpacked(packed, bits), zeros, scales, groups, bits)


def from_int8(weight: Tensor, zero_point: Tensor | None, scales: Tensor, groups: Tensor) -> Codes:
    """compressed-tensors, one int8 value per weight, (out, in); zeros and scales (out, groups)."""
    zeros = torch.zeros_like(scales, dtype=torch.int8) if zero_point is None else zero_point
    codes, zeros = (each.contiguous().view(torch.uint8) ^ 128 for each in (weight, zeros))
    return Codes(codes, zeros, scales, groups, 8)


def unpacked(words: Tensor, bits: int) -> Tensor:
    """int32 (rows, n) -> uint8 codes (rows, n * 32 / bits), those in the low bits first. bits: 4 or
    8."""
    held = words.flatten().view(torch.uint8).view(len(words), -1)
    return unpack_codes(held) if bits == 4 else held
