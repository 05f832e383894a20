"""Prepared weights: a model whose matrices are fused and stored the way its kernels read them.

`prepare(model, "packed")` or `prepare(model, "int8")` changes a plain model into one for inference
only. The plain one stays the reference, and is what training, amplification and editing take.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from minisafe.checkpoint import EMBED, fingerprint_of, sample, samples_of
from minisafe.errors import SettingError
from minisafe.kernels import can_pack, packed_product, packs, race_plain, wide_rows
from minisafe.linear import Projection, Step
from minisafe.lora import LoraAdapter, LoraDelta
from minisafe.model import Embedding, Layer, Llama, Prepared, RMSNorm
from minisafe.quantize import (
    digits_fit,
    few_rows,
    int8_linear,
    pack_int8,
    packed_linear,
    quantize,
)

WEIGHTS = ("auto", "plain", "packed", "int8")
FEW_ROWS = 16  # up to here one kernel's launch costs more than its work
FUSED_RANK = 64  # deltas of a projection's parts are one product up to this rank in all


def choose_weights(model: Llama, weights: str) -> str:
    """What `auto` means for a model; the others mean themselves."""
    return automatic(model.dtype, model.device.type) if weights == "auto" else weights


def automatic(dtype: torch.dtype, device: str = "cpu") -> str:
    """What `auto` means: packed where that was measured to pay (docs/log.md), which is in bf16 on a
    CPU with instructions for it; else plain."""
    pays = dtype == torch.bfloat16 and device == "cpu" and has_bf16()
    return "packed" if pays and can_pack(dtype) else "plain"


def prepare(model: Llama, weights: str = "auto") -> Llama:
    """Change `model`, in place and part by part, so that it decodes faster; returns it.

    weights: "packed", "int8" (weight-only; CPU; see `quantize`), "plain" (nothing changes) or
        "auto". A plain part is let go before the next one is made, so that weights that nobody else
        holds take up at most 1.3 times their memory, also while this runs.

    Raises `SettingError` for other `weights`, or where the model's dtype, device or state does not
    fit them.
    """
    if weights not in WEIGHTS:
        raise SettingError(f"weights is {weights!r}; expected one of {', '.join(WEIGHTS)}")
    kind = choose_weights(model, weights)
    now = "plain" if model.prepared is None else model.prepared.weights
    if kind != "int8" and model.device.type == "cpu":  # packed: a tied head stays plain
        race_plain(model.config, model.dtype)
    if kind == now:
        return model
    if kind == "int8" and (model.device.type != "cpu" or model.dtype == torch.float16):
        dtype = str(model.dtype).removeprefix("torch.")
        raise SettingError(
            f"int8 weights need a CPU and bfloat16 or float32, not {model.device.type} and {dtype}"
        )
    if now != "plain":
        raise SettingError(f"the weights are {now} already; load the model again for {kind}")
    # an untied embedding stays as it is: looked at last, it takes no room while the head is there
    # twice
    samples = samples_of(model, without=None if model.config.tied else EMBED)
    make = Int8Projection if kind == "int8" else PackedProjection
    prepare_head(model, make)
    for layer in model.layers:
        assert isinstance(layer, Layer)
        for holder, name in layer.projections():
            setattr(holder, name, make(getattr(holder, name)))
        layer.input_layernorm = PreparedNorm(layer.input_layernorm)
        layer.post_attention_layernorm = PreparedNorm(layer.post_attention_layernorm)
    model.norm = PreparedNorm(model.norm)
    if EMBED not in samples:
        samples[EMBED] = sample(model.embed_tokens.weight)
    model.prepared = Prepared(kind, fingerprint_of(samples))
    give_back_memory()
    return model


def prepare_head(model: Llama, make: type[PreparedProjection]) -> None:
    """The head's product. A tied matrix is also what tokens are looked up in, so it keeps its rows:
    packing a second copy would cost its memory again and save 3 % of a step (docs/log.md)."""
    if model.lm_head is not None:
        model.lm_head = make(model.lm_head)
    elif make is Int8Projection:
        with torch.device("meta"):
            head = Projection(model.config.hidden, {"lm_head": model.config.vocab_size})
        head.weight_0 = model.embed_tokens.weight
        model.lm_head = tied = Int8Head(head)
        assert tied.rows is not None
        model.embed_tokens = Int8Embedding(*tied.rows)


class PreparedProjection(Projection):
    """Linear maps of the same input as one product, whose weights cannot be taken apart again."""

    def __init__(self, plain: Projection):
        torch.nn.Module.__init__(self)
        self.in_features, self.sizes = plain.in_features, plain.sizes
        self.splits = list(plain.sizes.values())
        self.bias = torch.cat(plain.biases) if plain.biases else None
        self.deltas: dict[int, tuple[LoraAdapter, FusedDeltas | SeparateDeltas | None]] = {}
        self.store([weight.detach() for weight in plain.weights])

    def store(self, weights: list[Tensor]) -> None:
        """Keep the parts' weights, (out_features, in_features) each, as `product` takes them."""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        """(B, T, in_features) -> (B, T, sum of out_features)"""
        raise NotImplementedError

    @property
    def weights(self) -> tuple[Tensor, ...]:
        raise SettingError(
            "the weights are prepared for decoding; load the model with weights plain"
        )

    def forward(self, x: Tensor, step: Step) -> tuple[Tensor, ...]:
        return self.joined(x, step).split_with_sizes(self.splits, dim=-1)

    def joined(self, x: Tensor, step: Step) -> Tensor:
        y = self.product(x)
        for applied in step.adapters:
            deltas = self.deltas_of(applied.adapter)
            if deltas is not None:  # written into its rows, so the others stay bit-equal
                deltas.add_to(y[applied.rows], x[applied.rows])
        return y

    def deltas_of(self, adapter: LoraAdapter) -> FusedDeltas | SeparateDeltas | None:
        """An adapter's deltas for all parts; made once, and kept while few others come between."""
        known = self.deltas.get(id(adapter))
        if known is None:  # the entry holds the adapter, so no other can get its id
            if len(self.deltas) >= 4:
                self.deltas.clear()
            known = self.deltas[id(adapter)] = adapter, gather_deltas(self.sizes, adapter)
        return known[1]


@dataclass(frozen=True)
class FusedDeltas:
    """Low-rank deltas of a projection's parts as one, in float32: for few rows, float32 products
    cost less than bf16 ones. a: (in_features, r), b: (r, sum of out_features), scaled."""

    a: Tensor
    b: Tensor

    def add_to(self, y: Tensor, x: Tensor) -> None:
        """y: (rows, T, sum of out_features), changed; x: (rows, T, in_features)"""
        inner = torch.mm(x.reshape(-1, x.shape[-1]).float(), self.a)
        if y.dtype == torch.float32 and y.is_contiguous():
            y.view(-1, y.shape[-1]).addmm_(inner, self.b)
        else:
            y.add_(torch.mm(inner, self.b).view(y.shape))


@dataclass(frozen=True)
class SeparateDeltas:
    """The same, one after another: (columns of the output, delta) of every part that has one."""

    parts: tuple[tuple[slice, LoraDelta], ...]

    def add_to(self, y: Tensor, x: Tensor) -> None:
        for columns, delta in self.parts:
            y[..., columns].add_(delta(x))

    def fused(self, width: int) -> FusedDeltas:
        """As one, for outputs of `width` columns."""
        a = torch.cat([delta.a for _, delta in self.parts]).t().float().contiguous()
        b = a.new_zeros(a.shape[1], width)
        row = 0
        for columns, delta in self.parts:
            rank = len(delta.a)
            b[row : row + rank, columns] = delta.b.t().float() * delta.scaling
            row += rank
        return FusedDeltas(a, b)


def gather_deltas(
    sizes: Mapping[str, int], adapter: LoraAdapter
) -> FusedDeltas | SeparateDeltas | None:
    """The adapter's deltas for the parts of a projection, or None where it has none; fused up to
    `FUSED_RANK`, since the zeros between fused ones grow with their ranks."""
    parts = []
    start = 0
    for name, size in sizes.items():
        if name in adapter.deltas:
            parts.append((slice(start, start + size), adapter.deltas[name]))
        start += size
    separate = SeparateDeltas(tuple(parts))
    if sum(len(delta.a) for _, delta in parts) > FUSED_RANK:
        return separate
    return separate.fused(start) if parts else None


class PackedProjection(PreparedProjection):
    """In the dtype they had, in oneDNN's own order of blocks; plain rows where that is missing.

    A small matrix has a second copy in float32: for few rows a call of that product takes a third
    of the other's time, and rounds no more (docs/log.md).
    """

    def store(self, weights: list[Tensor]) -> None:
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        shape = weight.shape[0], weight.shape[1]
        self.packed = weight.device.type == "cpu" and packs(shape, weight.dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.packed else weight
        self.wide_rows = wide_rows(shape, weight.dtype) if self.packed else 0
        self.wide = weight.float() if self.wide_rows > 0 else None
        self.wide_bias = None if self.bias is None else self.bias.float()

    def joined(self, x: Tensor, step: Step) -> Tensor:
        if self.wide is None or x.numel() > self.wide_rows * self.in_features:
            return super().joined(x, step)
        return super().joined(x.float(), step).to(x.dtype)  # deltas, too, before it is rounded

    def product(self, x: Tensor) -> Tensor:
        if self.wide is not None and x.dtype == torch.float32:
            return F.linear(x, self.wide, self.wide_bias)
        if not self.packed:
            return F.linear(x, self.weight, self.bias)
        return packed_product(x, self.weight, self.bias)


class Int8Projection(PreparedProjection):
    """As int8 with a scale an output channel; large ones packed."""

    may_pack: ClassVar[bool] = True

    def store(self, weights: list[Tensor]) -> None:
        rounded = [quantize(weight) for weight in weights]
        q = torch.cat([q for q, _ in rounded])
        scales = torch.cat([scales for _, scales in rounded])
        shape = q.shape[0], q.shape[1]
        pack = self.may_pack and digits_fit(shape, scales.dtype)
        self.packed = pack_int8(q, scales) if pack else None
        if not pack:
            few_rows(shape, scales.dtype)  # raced now, and not in the first answer
        self.rows = None if pack else (q, scales)

    def product(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            y = packed_linear(x, self.packed)
        else:
            assert self.rows is not None
            y = int8_linear(x, *self.rows)
        return y if self.bias is None else y.add_(self.bias)


class Int8Head(Int8Projection):
    """A tied one, whose rows are also what tokens are looked up in."""

    may_pack = False


class PreparedNorm(RMSNorm):
    """The same norm on a CPU. For few rows a LayerNorm over x and -x, whose mean is 0 and whose
    variance the mean square of x: one kernel where `rms_norm` is nine. For many, fewer copies of x
    in float32 than `rms_norm` makes, since fresh memory costs more than the sums (docs/log.md)."""

    def __init__(self, plain: RMSNorm):
        torch.nn.Module.__init__(self)
        self.weight, self.eps = plain.weight, plain.eps
        self.hidden = len(plain.weight)
        self.twice = torch.cat((plain.weight, plain.weight)).detach()

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        if x.numel() > FEW_ROWS * self.hidden:
            length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
            scale = length.square_().div_(self.hidden).add_(self.eps).rsqrt_()
            return (x * scale).mul_(self.weight).to(x.dtype)
        both = torch.cat((x, -x), dim=-1)
        y = torch.layer_norm(both, (2 * self.hidden,), self.twice, None, self.eps)
        return y[..., : self.hidden]


class Int8Embedding(Embedding):
    """Rows of a tied int8 head."""

    def __init__(self, q: Tensor, scales: Tensor):
        torch.nn.Module.__init__(self)
        self.q, self.scales = q, scales

    def forward(self, ids: Tensor) -> Tensor:
        return self.q[ids] * self.scales[ids].unsqueeze(-1)


def give_back_memory() -> None:
    """Let the system have what malloc keeps of freed memory, where malloc is glibc's: parts that
    were joined and packed leave holes, 40 MiB at TinyLlama's size (docs/log.md)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


@cache
def has_bf16() -> bool:
    """Whether the CPU multiplies bf16 itself; False where torch cannot tell."""
    asked = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    found = (getattr(torch.cpu, name, None) for name in asked)
    return any(ask is not None and ask() for ask in found)
