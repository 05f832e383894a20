"""Linear maps of the same input as one product: q, k and v; gate and up.

The weights are stored in their kernel's layout (`packed`, `int8`) and cannot be separated again, so
such layers are for decoding only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisafe.fast.attention import attend_step
from minisafe.fast.deltas import FusedDeltas, SeparateDeltas, gather_deltas
from minisafe.fast.norm import fast_norm
from minisafe.fast.packing import PackedStep
from minisafe.linear import Linear
from minisafe.lora import AdaptedRows, LoraAdapter
from minisafe.model import MLP, Attention, RMSNorm
from minisafe.rotary import rotate
from minisafe.step import Step


class JoinedLinear(Linear):
    """Linear maps that read the same input: (B, T, in_features) -> (B, T, sum of out_features)."""

    def __init__(self, parts: Sequence[Linear]):
        nn.Module.__init__(self)
        self.sizes = {part.name: len(part.weight) for part in parts}
        biases = [part.bias for part in parts if part.bias is not None]
        self.bias = torch.cat(biases).detach() if biases else None
        self.deltas: dict[int, tuple[LoraAdapter, FusedDeltas | SeparateDeltas | None]] = {}
        self.store(parts)

    def store(self, parts: Sequence[Linear]) -> None:
        """Store the parts' weights, (out_features, in_features) each, in the form that `product`
        reads."""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        """(B, T, in_features) -> (B, T, sum of out_features), without adapters"""
        raise NotImplementedError

    def forward(self, x: Tensor, adapters: Sequence[AdaptedRows]) -> Tensor:
        y = self.product(x)
        for adapted in adapters:
            deltas = self.deltas_of(adapted.adapter)
            if deltas is not None:  # writes only its rows, so the others stay bit-equal
                deltas.add_to(y[adapted.rows], x[adapted.rows])
        return y

    def __call__(self, x: Tensor, adapters: Sequence[AdaptedRows]) -> Tensor:
        return self.forward(x, adapters)  # without the check for hooks: see `TurnedAttention`

    def deltas_of(self, adapter: LoraAdapter) -> FusedDeltas | SeparateDeltas | None:
        """An adapter's deltas for all parts; they are kept until a fifth adapter comes."""
        known = self.deltas.get(id(adapter))
        if known is None:  # the entry holds the adapter, so no other adapter can get its id
            if len(self.deltas) >= 4:
                self.deltas.clear()
            known = self.deltas[id(adapter)] = adapter, gather_deltas(self.sizes, adapter)
        return known[1]


Make = Callable[[Sequence[Linear]], JoinedLinear]


class TurnedAttention(Attention):
    """Attention that rotates queries and keys in one pass over the heads of both, and reads packed
    tokens.

    Modules in this folder skip torch's check for hooks: in a small model it takes longer than some
    of the work.
    """

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        return self.forward(x, step)

    def qkv(self, x: Tensor, step: Step) -> Tensor:
        """(B, T, hidden) -> queries, keys and values side by side, (B, T, ...)"""
        parts = (self.q_proj, self.k_proj, self.v_proj)
        return torch.cat([part(x, step.adapters) for part in parts], dim=-1)

    def normed(self, qk: Tensor) -> Tensor:
        """Queries and keys with each head normed: (B, T, n_heads + n_kv_heads, head_dim)"""
        q, k = qk.split_with_sizes([self.n_heads, self.n_kv_heads], dim=2)
        return torch.cat((self.q_norm(q), self.k_norm(k)), dim=2)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        packed = step if isinstance(step, PackedStep) else None
        heads = self.qkv(x, step).view(*x.shape[:2], -1, self.head_dim)
        # the method, because `torch.split` runs Python code that takes longer than the split itself
        qk, v = heads.split_with_sizes([self.n_heads + self.n_kv_heads, self.n_kv_heads], dim=2)
        if isinstance(self.q_norm, RMSNorm):
            qk = self.normed(qk)
        if self.rotated:
            qk = rotate(qk, step.cos, step.sin)
        if packed is not None:
            qk, v = packed.spread(qk), packed.spread(v)
        q, k = qk.transpose(1, 2).split_with_sizes([self.n_heads, self.n_kv_heads], dim=1)
        v = v.transpose(1, 2)
        if step.cache is not None:
            k, v = step.cache.write(self.layer, k, v, step.place)
        y = attend_step(q, k, v, step, self.window, self.scale).transpose(1, 2)
        y = step.slots.at("heads", self.layer, y if packed is None else packed.pack(y))
        return self.o_proj(y.flatten(2), step.adapters)


class JoinedAttention(TurnedAttention):
    """Attention whose q, k and v are one product. It takes the plain one apart: each part is freed
    before the next one is made."""

    def __init__(self, plain: Attention, make: Make):
        nn.Module.__init__(self)
        self.layer, self.head_dim, self.window = plain.layer, plain.head_dim, plain.window
        self.n_heads, self.n_kv_heads, self.scale = plain.n_heads, plain.n_kv_heads, plain.scale
        self.rotated = plain.rotated
        self.qkv_proj = make((plain.q_proj, plain.k_proj, plain.v_proj))
        del plain.q_proj, plain.k_proj, plain.v_proj
        self.o_proj = make((plain.o_proj,))
        self.q_norm, self.k_norm = fast_norm(plain.q_norm), fast_norm(plain.k_norm)

    def qkv(self, x: Tensor, step: Step) -> Tensor:
        return self.qkv_proj(x, step.adapters)


class JoinedMLP(MLP):
    """An MLP whose gate and up are one product; it takes the plain one apart."""

    def __init__(self, plain: MLP, make: Make):
        nn.Module.__init__(self)
        self.layer = plain.layer
        self.gate_up_proj = make((plain.gate_proj, plain.up_proj))
        del plain.gate_proj, plain.up_proj
        self.down_proj = make((plain.down_proj,))

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        return self.forward(x, step)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        gate, up = self.gate_up_proj(x, step.adapters).chunk(2, dim=-1)
        keys = step.slots.at("mlp", self.layer, F.silu(gate) * up)
        return self.down_proj(keys, step.adapters)
