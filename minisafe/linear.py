"""`Projection`: one way to call the linear maps of a layer, however their weights are stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisafe.lora import Applied
from minisafe.race import FEW, FEW_ROWS, Lap, Shape, border, make_trials, race


class Step(Protocol):
    """What a projection needs of a forward's step (`minisafe.model.Step` has more)."""

    @property
    def adapters(self) -> tuple[Applied, ...]: ...


class Projection(nn.Module):
    """Linear maps that read the same input, such as q, k and v.

    sizes: Hugging Face module name -> out_features.

    The plain form, here, holds every part's weight as the checkpoint stores it, so that a
    memory-mapped file is used in place. `minisafe.prepare` makes faster ones for inference.
    """

    def __init__(self, in_features: int, sizes: Mapping[str, int], bias: bool = False):
        super().__init__()
        self.in_features, self.sizes = in_features, dict(sizes)
        self.parts = tuple((name, f"weight_{n}", f"bias_{n}") for n, name in enumerate(sizes))
        for (_, weight_key, bias_key), size in zip(self.parts, sizes.values(), strict=True):
            self.register_parameter(weight_key, nn.Parameter(torch.empty(size, in_features)))
            self.register_parameter(bias_key, nn.Parameter(torch.empty(size)) if bias else None)

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """Every part's weight, (out_features, in_features)."""
        return tuple(getattr(self, key) for _, key, _ in self.parts)

    @property
    def biases(self) -> tuple[Tensor, ...]:
        """Every part's bias, (out_features,); none where the parts have none."""
        found = (getattr(self, key) for _, _, key in self.parts)
        return tuple(bias for bias in found if bias is not None)

    def tensors(self) -> Iterator[tuple[str, nn.Module, str]]:
        """(Hugging Face name, module that holds it, attribute) of every tensor."""
        for name, weight_key, bias_key in self.parts:
            yield f"{name}.weight", self, weight_key
            if getattr(self, bias_key) is not None:
                yield f"{name}.bias", self, bias_key

    def forward(self, x: Tensor, step: Step) -> tuple[Tensor, ...]:
        """(B, T, in_features) -> one (B, T, out_features) a part."""
        held = self._parameters  # attribute look-up through nn.Module is slow in a small model
        outputs = []
        for name, weight_key, bias_key in self.parts:
            y = linear(x, held[weight_key], held[bias_key])  # type: ignore[arg-type]
            outputs.append(adapted(y, x, name, step) if step.adapters else y)
        return tuple(outputs)

    def joined(self, x: Tensor, step: Step) -> Tensor:
        """All parts' outputs side by side: (B, T, in_features) -> (B, T, sum of out_features)."""
        outputs = self(x, step)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


# up to FEW_ROWS a CPU with AMX multiplies faster with the weight on the left ...
LARGE = 1 << 18  # ... if the weight has so many values; below, the detour costs more than it saves


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`; for few rows of bf16 on a CPU with AMX, `(weight @ x.T).T`.

    There the usual order leaves much of the memory bandwidth unused (bench/README.md), which a
    race checks, since oneDNN may be told to use less than the CPU has; the
    products are the same, and one row is faster as two alike. The result is contiguous: given
    other strides, torch multiplies row by row and copies the next weight for each of them.
    """
    rows = x.numel() // x.shape[-1]
    usual = rows > FEW_ROWS or weight.numel() < LARGE
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
    """How the weight on the left does against `F.linear`, in bf16, until it is out."""
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
    """Up to how many rows the weight goes left."""
    return border(left_laps(shape))


def weight_goes_left(x: Tensor) -> bool:
    """Whether `x` is multiplied on a CPU with AMX, for inference."""
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return False
    return has_amx()


@cache
def has_amx() -> bool:
    """Whether torch's CPU kernels may use AMX tiles here; False where torch cannot tell."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported and supported())


def adapted(y: Tensor, x: Tensor, name: str, step: Step) -> Tensor:
    """`y`, with the step's low-rank deltas for module `name` added on their rows.

    The delta is written into its rows, so rows without an adapter stay bit-equal.
    """
    for applied in step.adapters:
        delta = applied.adapter.deltas.get(name)
        if delta is not None:
            y[applied.rows].add_(delta(x[applied.rows]))
    return y
