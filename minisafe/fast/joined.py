"""Linear maps of the same input as one product: q, k and v; gate and up.

The weights are stored as their kernel reads them (`packed`, `int8`), and cannot be taken apart
again, so layers of these are for decoding only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from minisafe.fast.deltas import FusedDeltas, SeparateDeltas, gather_deltas
from minisafe.linear import Linear
from minisafe.lora import Applied, LoraAdapter
from minisafe.model import MLP, Attention
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
        self.store([part.weight.detach() for part in parts])

    def store(self, weights: list[Tensor]) -> None:
        """Keep the parts' weights, (out_features, in_features) each, as `product` takes them."""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        """(B, T, in_features) -> (B, T, sum of out_features), without adapters"""
        raise NotImplementedError

    def forward(self, x: Tensor, adapters: Sequence[Applied]) -> Tensor:
        y = self.product(x)
        for applied in adapters:
            deltas = self.deltas_of(applied.adapter)
            if deltas is not None:  # written into its rows, so the others stay bit-equal
                deltas.add_to(y[applied.rows], x[applied.rows])
        return y

    def __call__(self, x: Tensor, adapters: Sequence[Applied]) -> Tensor:
        return self.forward(x, adapters)  # without a look for hooks: see `TurnedAttention`

    def deltas_of(self, adapter: LoraAdapter) -> FusedDeltas | SeparateDeltas | None:
        """An adapter's deltas for all parts; made once, and kept while few others come between."""
        known = self.deltas.get(id(adapter))
        if known is None:  # the entry holds the adapter, so no other can get its id
            if len(self.deltas) >= 4:
                self.deltas.clear()
            known = self.deltas[id(adapter)] = adapter, gather_deltas(self.sizes, adapter)
        return known[1]


Make = Callable[[Sequence[Linear]], JoinedLinear]


class TurnedAttention(Attention):
    """Attention that turns queries and keys in one pass over the heads of both.

    In this folder modules are called without torch's look for hooks: with a small model it takes
    longer than some of the work.
    """

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        return self.forward(x, step)

    def qkv(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        parts = (self.q_proj, self.k_proj, self.v_proj)
        return self.turned(torch.cat([part(x, step.adapters) for part in parts], dim=-1), step)

    def turned(self, y: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v side by side, (B, T, ...), to what `qkv` gives."""
        heads = y.view(*y.shape[:2], -1, self.head_dim)
        # the method: `torch.split` takes a detour through Python, longer than the split itself
        qk, v = heads.split_with_sizes([self.n_heads + self.n_kv_heads, self.n_kv_heads], dim=2)
        qk = step.layout.spread(rotate(qk, step.cos, step.sin)).transpose(1, 2)
        q, k = qk.split_with_sizes([self.n_heads, self.n_kv_heads], dim=1)
        return q, k, step.layout.spread(v).transpose(1, 2)


class JoinedAttention(TurnedAttention):
    """Attention whose q, k and v are one product. It takes the plain one apart: each part is let go
    before the next one is made."""

    def __init__(self, plain: Attention, make: Make):
        nn.Module.__init__(self)
        self.layer, self.head_dim, self.window = plain.layer, plain.head_dim, plain.window
        self.n_heads, self.n_kv_heads = plain.n_heads, plain.n_kv_heads
        self.qkv_proj = make((plain.q_proj, plain.k_proj, plain.v_proj))
        del plain.q_proj, plain.k_proj, plain.v_proj
        self.o_proj = make((plain.o_proj,))

    def qkv(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        return self.turned(self.qkv_proj(x, step.adapters), step)


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

    def gate_up(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        gate, up = self.gate_up_proj(x, step.adapters).chunk(2, dim=-1)
        return gate, up
