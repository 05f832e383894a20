"""The decoding step in the form that torch's compiler needs: one token per row, all layers.

It repeats `Llama.run` for that case only, without state; `compiled` decides when it runs. Products
share the model's weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisafe.config import LlamaConfig
from minisafe.fast.norm import scaled
from minisafe.linear import Linear
from minisafe.lockstep import Stream
from minisafe.lora import LoraAdapter, LoraDelta
from minisafe.model import Layer, Llama, RMSNorm
from minisafe.rotary import rotate
from minisafe.slots import Add
from minisafe.step import Step


class Product(nn.Module):
    """Linear maps of the same input as one product, with every adapter's deltas."""

    def __init__(self, parts: Sequence[Linear], adapters: Sequence[LoraAdapter]):
        super().__init__()
        self.weights = nn.ParameterList(frozen(part.weight) for part in parts)
        biases = (part.bias for part in parts)
        self.biases = nn.ParameterList(frozen(bias) for bias in biases if bias is not None)
        # per adapter: (first output column, delta) of each part that has one
        self.deltas: list[list[tuple[int, LoraDelta]]] = []
        for adapter in adapters:
            starts = accumulate((len(part.weight) for part in parts), initial=0)
            found = zip(starts, (part.name for part in parts), strict=False)
            self.deltas.append(
                [(at, adapter.deltas[name]) for at, name in found if name in adapter.deltas]
            )

    def forward(self, x: Tensor, acting: Sequence[Tensor]) -> Tensor:
        """x: (B, in_features) -> (B, sum of out_features). acting: per adapter (B, 1), True where
        it acts."""
        # the compiler joins these and keeps only the packed result
        bias = torch.cat(tuple(self.biases)) if len(self.biases) else None
        y = F.linear(x, torch.cat(tuple(self.weights)), bias)
        for deltas, on in zip(self.deltas, acting, strict=True):
            for at, delta in deltas:
                # sums, which torch fuses: a product's set-up does not pay for such a thin matrix
                low = (x.float()[:, None] * delta.a.float()).sum(-1)  # (B, r)
                change = (low[:, None] * delta.b.float()).sum(-1) * delta.scaling
                width = len(delta.b)
                part = y[:, at : at + width]
                part = torch.where(on, (part.float() + change).to(y.dtype), part)
                y = torch.cat((y[:, :at], part, y[:, at + width :]), dim=-1)
        return y


def frozen(tensor: Tensor) -> nn.Parameter:
    """A model's tensor as a parameter in the same memory, because freezing packs parameters."""
    return nn.Parameter(tensor.detach(), requires_grad=False)


@dataclass(frozen=True)
class Inputs:
    """What the graph reads besides weights. B rows, n tokens per row in the cache afterwards."""

    ids: Tensor  # (B,)
    positions: Tensor  # (B,) the cache columns of these tokens
    cos: Tensor  # (B, 1, head_dim)
    sin: Tensor  # (B, 1, head_dim)
    masks: tuple[Tensor, ...]  # per kind of window (B, 1, 1, n): 0 for what a row sees, else -inf
    added: Tensor  # (n_layers, B, hidden) what slots add to the residual stream after each layer
    acting: tuple[Tensor, ...]  # per adapter (B, 1), True where it acts
    keys: tuple[Tensor, ...]  # per layer (B, n_kv_heads, n, head_dim), a view of the cache
    values: tuple[Tensor, ...]


class Decoder(nn.Module):
    """`Llama.run` for one token per row, written for the compiler: no state, no branches."""

    def __init__(self, model: Llama, adapters: Sequence[LoraAdapter]):
        super().__init__()
        self.config, self.windows = model.config, window_kinds(model)
        self.embedding, self.norm = frozen(model.embed_tokens.weight), frozen(model.norm.weight)
        self.norms, self.products = nn.ParameterList(), nn.ModuleList()
        self.head_norms = nn.ParameterList()  # q's and k's of each layer, or none
        for layer in model.layers:
            assert isinstance(layer, Layer)
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                self.norms.append(frozen(norm.weight))
            attn, mlp = layer.self_attn, layer.mlp
            for part in (attn.q_norm, attn.k_norm):
                if isinstance(part, RMSNorm):
                    self.head_norms.append(frozen(part.weight))
            for parts in (
                (attn.q_proj, attn.k_proj, attn.v_proj), (attn.o_proj,),
                (mlp.gate_proj, mlp.up_proj), (mlp.down_proj,),
            ):  # fmt: skip
                self.products.append(self.product(parts, adapters))
        head = model.lm_head
        self.head = None if head is None else self.product((head,), adapters)

    def product(self, parts: Sequence[Linear], adapters: Sequence[LoraAdapter]) -> nn.Module:
        """What computes linear maps of the same input; called with x and `acting`."""
        return Product(parts, adapters)

    def so_far(self, held: Tensor, mask: Tensor) -> Tensor:
        """The part of a layer's keys or values that attention reads: (B, n_kv_heads, n, head_dim)
        of what `Inputs` gives; here, all of it. mask: (B, 1, 1, n)"""
        return held

    def normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.config.norm_eps)

    def forward(
        self, ids: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, masks: Sequence[Tensor],
        added: Tensor, acting: Sequence[Tensor], keys: Sequence[Tensor], values: Sequence[Tensor],
    ) -> Tensor:  # fmt: skip
        """Logits (B, vocab). Takes the fields of `Inputs`; writes the tokens' keys and values."""
        x = scaled(F.embedding(ids, self.embedding), self.config.embedding_multiplier)
        share = self.config.residual_multiplier
        for layer in range(self.config.n_layers):
            qkv, o, gate_up, down = self.products[4 * layer : 4 * layer + 4]
            y = qkv(self.normed(x, self.norms[2 * layer]), acting)
            mask = masks[self.windows.index(self.config.windows[layer])]
            head_norms = self.head_norms[2 * layer : 2 * layer + 2]
            heads = self.attended(
                y, positions, cos, sin, mask, keys[layer], values[layer], head_norms,
                layer not in self.config.unrotated,
            )  # fmt: skip
            # not `add` with alpha: where it fuses that with a product, torch's compiler loses alpha
            x = x + scaled(o(heads, acting), share)  # (B, hidden)
            y = gate_up(self.normed(x, self.norms[2 * layer + 1]), acting)
            gate, up = y.chunk(2, dim=-1)
            x = x + scaled(down(F.silu(gate) * up, acting), share)
            x = x + added[layer]
        x = scaled(self.normed(x, self.norm), 1 / self.config.logits_scaling)
        if self.head is None:
            return F.linear(x, self.embedding)
        logits: Tensor = self.head(x, acting)
        return logits

    def attended(
        self, y: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, keys: Tensor,
        values: Tensor, head_norms: Iterable[Tensor], rotated: bool,
    ) -> Tensor:  # fmt: skip
        """All heads' outputs, (B, n_heads * head_dim). y: q, k and v side by side, (B, ...).
        head_norms: q's and k's weights, (head_dim,) each, or none."""
        config, batch = self.config, y.shape[0]
        n_heads, n_kv = config.n_heads, config.n_kv_heads
        y = y.view(batch, n_heads + 2 * n_kv, config.head_dim)
        qk = y[:, : n_heads + n_kv]
        if config.qk_norm:
            parts = zip(qk.split_with_sizes([n_heads, n_kv], dim=1), head_norms, strict=True)
            qk = torch.cat([self.normed(part, weight) for part, weight in parts], dim=1)
        if rotated:
            qk = rotate(qk, cos, sin)
        group = n_heads // n_kv  # query heads of one key-value head are rows of one product
        q = qk[:, :n_heads].reshape(batch, n_kv, group, config.head_dim)
        rows, kv_heads = torch.arange(batch)[:, None], torch.arange(n_kv)[None]
        keys.index_put_((rows, kv_heads, positions[:, None]), qk[:, n_heads:])
        values.index_put_((rows, kv_heads, positions[:, None]), y[:, n_heads + n_kv :])
        keys, values = self.so_far(keys, mask), self.so_far(values, mask)
        mask = mask.expand(batch, 1, group, mask.shape[-1])
        scale = config.attention_multiplier
        heads = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale)
        return heads.reshape(batch, n_heads * config.head_dim)


def added_by(step: Step, config: LlamaConfig, batch: int) -> Tensor:
    """What the step's slots add, (n_layers, B, hidden); marks them as applied."""
    total = torch.zeros(config.n_layers, batch, config.hidden, dtype=step.cos.dtype)
    for (_, layer), bound in step.slots.waiting.items():
        for slot, rows, columns in bound:
            total[layer] = slot.apply(total[layer].unsqueeze(1), rows, columns).squeeze(1)
    step.slots.waiting.clear()
    return total


def only_adds(step: Step, hidden: int) -> bool:
    """Whether all slots of the step add to the residual stream, which is what `added_by` takes."""
    return all(
        type(slot) is Add and slot.vector.shape == (hidden,)
        for bound in step.slots.waiting.values()
        for slot, _, _ in bound
    )


def by_model(streams: Sequence[Stream]) -> list[list[Stream]]:
    """The streams of each model, in the streams' order."""
    found: dict[int, list[Stream]] = {}
    for stream in streams:
        found.setdefault(id(stream.model), []).append(stream)
    return list(found.values())


def window_kinds(model: Llama) -> list[int | None]:
    """The different windows in use, in layer order."""
    return list(dict.fromkeys(model.config.windows))
