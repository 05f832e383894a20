"""Norms with fewer kernels or fewer copies, and factors that are mostly one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minisafe.model import RMSNorm

LAUNCH_ROWS = 16  # up to this many rows, launching a kernel costs more than its work


class FastNorm(RMSNorm):
    """The same norm, faster on a CPU. For few rows, it is a LayerNorm over x and -x, whose mean is
    0 and whose variance is the mean square of x: one kernel where `rms_norm` needs nine. For many
    rows, it makes fewer float32 copies of x than `rms_norm`, since new memory costs more than the
    sums (docs/log.md)."""

    def __init__(self, plain: RMSNorm):
        nn.Module.__init__(self)
        self.weight, self.eps = plain.weight, plain.eps
        self.hidden = len(plain.weight)
        self.twice = torch.cat((plain.weight, plain.weight)).detach()

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        if x.numel() > LAUNCH_ROWS * self.hidden:
            length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
            scale = length.square_().div_(self.hidden).add_(self.eps).rsqrt_()
            return (x * scale).mul_(self.weight).to(x.dtype)
        both = torch.cat((x, -x), dim=-1)
        y = torch.layer_norm(both, (2 * self.hidden,), self.twice, None, self.eps)
        return y[..., : self.hidden]


def fast_norm(plain: nn.Module) -> nn.Module:
    """A norm as a `FastNorm`; what stands in its place in a model without it stays."""
    return FastNorm(plain) if isinstance(plain, RMSNorm) else plain


def scaled(x: Tensor, factor: float) -> Tensor:
    """x times a factor, or x itself where that changes nothing."""
    return x if factor == 1 else x * factor
