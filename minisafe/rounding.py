"""Weights rounded to 8 or 4 bits, and back. Pure.

8 bits: `W ~ scales[:, None] * q`, one symmetric scale per output channel.

4 bits: the inputs of a channel are cut into groups; a group holds codes 0 to 15, and
`W ~ (code - 8) * scales[..., 0] + scales[..., 1]`: a step, and the value of code 8. Two codes share
a byte: the input with the even index is in the low half.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minisafe.errors import SettingError

ROUNDED = ("int8", "int4")
GROUPS = (32, 64, 128)  # inputs per group
AT_ONCE = 1 << 18  # weights to round at a time, in float32
STEPS = 15  # between the lowest and the highest code
MIDDLE = 8  # the code whose value is stored


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) -> int8 (out, in), and positive scales (out,) in the weight's dtype.

    `|q * scale - weight| <= scale / 2`, even for a bf16 scale: rounding lowers it by at most 2^-9,
    so the largest weight is at most 127.25 scales, which still rounds to 127.
    Raises `SettingError` unless the dtype is bfloat16 or float32.
    """
    check_dtype(weight.dtype, "int8")
    q = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(len(weight), dtype=weight.dtype, device=weight.device)
    n = max(1, AT_ONCE // weight.shape[1])
    for start in range(0, len(weight), n):  # block by block, to keep the float32 copies small
        block = weight[start : start + n].float()
        scale = (block.abs().amax(dim=1) / 127).to(weight.dtype)
        scale[scale == 0] = 1  # a channel of zeros
        scales[start : start + n] = scale
        q[start : start + n] = (block / scale.float()[:, None]).round_()
    return q, scales


def dequantize(q: Tensor, scales: Tensor) -> Tensor:
    """The weights that `q` and `scales` encode, float32 (out, in)."""
    return q.float() * scales.float()[:, None]


def quantize_groups(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """(out, in) -> uint8 (out, in / 2), and scales (out, in / group, 2) in the weight's dtype.

    The codes of a group go from its lowest to its highest weight. The error of a weight is at most
    half a step; where the scales are bf16, rounding them adds up to 15 steps / 512 and 2^-9 of the
    group's largest weight.
    Raises `SettingError` unless the dtype is bfloat16 or float32, and groups fill the rows.
    """
    check_dtype(weight.dtype, "int4")
    n_in = weight.shape[1]
    if group not in GROUPS or n_in % group:
        fit = [str(each) for each in GROUPS if n_in % each == 0]
        raise SettingError(
            f"groups of {group} do not fill {n_in} inputs; expected a group of "
            f"{' or '.join(fit) or 'none: no int4 weights are possible, use int8'}"
        )
    codes = torch.empty(len(weight), n_in // 2, dtype=torch.uint8, device=weight.device)
    scales = weight.new_empty(len(weight), n_in // group, 2)
    n = max(1, AT_ONCE // n_in)
    for start in range(0, len(weight), n):
        block = weight[start : start + n].float().view(-1, n_in // group, group)
        low, high = block.aminmax(dim=-1)
        step = ((high - low) / STEPS).to(weight.dtype)
        middle = (low + MIDDLE * step.float()).to(weight.dtype)
        step[step == 0] = 1  # a group of equal weights: all have code 8
        scales[start : start + n] = torch.stack((step, middle), dim=-1)
        far = (block - middle.float()[..., None]) / step.float()[..., None]
        code = far.round_().add_(MIDDLE).clamp_(0, STEPS).to(torch.uint8).flatten(1)
        codes[start : start + n] = pack_codes(code)
    return codes, scales


def pack_codes(codes: Tensor) -> Tensor:
    """uint8 codes 0 to 15, (out, in) -> two per byte, (out, in / 2)"""
    return codes[:, ::2] | (codes[:, 1::2] << 4)


def unpack_codes(packed: Tensor) -> Tensor:
    """The inverse of `pack_codes`."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def dequantize_groups(packed: Tensor, scales: Tensor) -> Tensor:
    """The weights that codes and scales encode, float32 (out, in)."""
    codes = unpack_codes(packed).float().view(*scales.shape[:2], -1)
    step, middle = scales.float().unsqueeze(-2).unbind(-1)
    return torch.addcmul(middle, codes - MIDDLE, step).flatten(1)


def check_dtype(dtype: torch.dtype, weights: str) -> None:
    """Raise `SettingError` unless weights of this dtype can be rounded."""
    if dtype not in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        raise SettingError(
            f"{weights} weights are for bfloat16 or float32 models, not {name}; give --dtype "
            "bfloat16"
        )
