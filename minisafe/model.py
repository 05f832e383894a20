"""The transformer: Llama, and others that are Llama with another config.

Modules and parameters have Hugging Face's names. `Llama.forward` makes a `Step` and runs the layers
on it. `minisafe.fast` replaces some parts with faster subclasses.
Shapes: B rows, T tokens per row in this forward, n tokens per row in the cache after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisafe.cache import KVCache, Placement
from minisafe.config import LlamaConfig
from minisafe.linear import Linear
from minisafe.lora import AdaptedRows
from minisafe.rotary import Rotary, rotate
from minisafe.slots import BoundSlots, Slot
from minisafe.step import Step, make_masks, positions_of


class Llama(nn.Module):
    """A decoder-only transformer over token ids."""

    weights = "plain"  # how they are stored
    fingerprint: str | None = None  # of the plain weights, if they are stored another way

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.hidden, config.norm_eps)
        head = None if config.tied else Linear(config.hidden, config.vocab_size, False, "lm_head")
        self.lm_head = head
        self.rotary = Rotary(config)

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    def new_cache(self, rows: int, capacity: int, cache_dtype: str = "auto") -> KVCache:
        """An empty cache for this model; arguments and errors as for `KVCache`."""
        return KVCache(self.config, rows, capacity, self.dtype, self.device, cache_dtype)

    def forward(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        *,
        counts: Sequence[int] | None = None,
        rows: slice | None = None,
        slots: Iterable[Slot] = (),
        adapters: tuple[AdaptedRows, ...] = (),
        last_only: bool = False,
        no_logits: bool = False,
    ) -> Tensor:
        """Logits of a block of tokens, in the model's dtype.

        Args:
            ids: (B, T) token ids; rows shorter than T are padded on the right with any id.
            cache: keys and values of earlier tokens; the block is appended to it.
            counts: how many of each row's T ids are real; by default all.
            rows: the slice of cache rows that the block belongs to; by default all.
            slots: what to add, record or patch; their rows are rows of the block.
            adapters: low-rank deltas and the rows of the block that they act on.
            last_only: return logits only for each row's last real token.
            no_logits: return none and skip the head, for when only the cache or slots matter.

        Returns:
            (B, T, vocab), or (B, vocab) with `last_only`, or (B, 0) with `no_logits`.

        Raises:
            SlotError: a slot names a place that does not exist, or was not applied.
            PromptError: the block does not fit the context length.
        """
        batch, width = ids.shape
        counts = (width,) * batch if counts is None else tuple(counts)
        step = self.make_step(counts, width, cache, rows, slots, adapters)
        logits = self.run(ids, step, last_only, no_logits)
        if cache is not None:
            cache.advance(step.place)
        return logits

    def run(self, ids: Tensor, step: Step, last_only: bool, no_logits: bool) -> Tensor:
        """Run the layers and the head; arguments and result as for `forward`."""
        x: Tensor = self.embed_tokens(ids)  # (B, T, hidden)
        for layer in self.layers:
            x = layer(x, step)
        step.slots.finish()
        if no_logits:
            return x.new_empty(len(step.place.counts), 0)
        if last_only:
            return self.head(self.norm(step.last(x)), step).squeeze(1)
        return self.head(self.norm(x), step)

    def head(self, x: Tensor, step: Step) -> Tensor:
        """(..., hidden) -> (..., vocab)"""
        if self.config.logits_scaling != 1:
            x = x * (1 / self.config.logits_scaling)
        if self.lm_head is None:
            return F.linear(x, self.embed_tokens.weight)
        return self.lm_head(x, step.adapters)

    # ---- what the layers of one forward share ----

    def make_step(
        self,
        counts: tuple[int, ...],
        width: int,
        cache: KVCache | None = None,
        rows: slice | None = None,
        slots: Iterable[Slot] = (),
        adapters: tuple[AdaptedRows, ...] = (),
    ) -> Step:
        """The step of a block; arguments as for `forward`."""
        if cache is None:
            place = Placement(slice(0, len(counts)), (0,) * len(counts), counts, width)
        else:
            place = cache.place(counts, width, rows)
        dtype, device = self.norm.weight.dtype, self.norm.weight.device
        n = width if cache is None else place.stop
        positions = positions_of(place, n, device)  # (B or 1, T)
        cos, sin = self.rotary.tables(n, dtype, device)
        return Step(
            place=place,
            cos=cos[positions].unsqueeze(2),
            sin=sin[positions].unsqueeze(2),
            masks=make_masks(self.config.windows, positions, n, dtype),
            slots=BoundSlots(slots, self.config.n_layers, place, device),
            adapters=adapters,
            cache=cache,
        )

    # ---- parameters by their checkpoint names ----

    def tensors(self) -> dict[str, nn.Parameter]:
        """Every parameter by its checkpoint name."""
        return {stored_name(name): parameter for name, parameter in self.named_parameters()}

    def put(self, name: str, values: Tensor, requires_grad: bool = False) -> nn.Parameter:
        """Replace the parameter with this checkpoint name by a new one that holds `values`; returns
        the new one. The old one is unchanged. Raises `AttributeError` if there is none."""
        self.get_parameter(name.removeprefix(PREFIX))
        module, _, attribute = name.removeprefix(PREFIX).rpartition(".")
        parameter = nn.Parameter(values, requires_grad)
        setattr(self.get_submodule(module), attribute, parameter)
        return parameter


PREFIX = "model."  # of every checkpoint name except the head's


def stored_name(name: str) -> str:
    """`layers.0.mlp.up_proj.weight` -> `model.layers.0.mlp.up_proj.weight`"""
    return name if name.startswith("lm_head.") else PREFIX + name


class Layer(nn.Module):
    """One transformer block; the "residual" site is its output."""

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.layer, name = layer, f"{PREFIX}layers.{layer}"
        self.share = config.residual_multiplier  # of what each half adds
        self.input_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.self_attn = Attention(config, layer, f"{name}.self_attn")
        self.mlp = MLP(config, layer, f"{name}.mlp")

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """(B, T, hidden) -> (B, T, hidden)"""
        x = x.add(self.self_attn(self.input_layernorm(x), step), alpha=self.share)
        x = x.add(self.mlp(self.post_attention_layernorm(x), step), alpha=self.share)
        return step.slots.at("residual", self.layer, x)


class Attention(nn.Module):
    """Self-attention with rotary positions and grouped queries. With `qk_norm`, the queries and
    keys of each head are normed first, which bounds their products (Henry et al., 2020)."""

    def __init__(self, config: LlamaConfig, layer: int, name: str):
        super().__init__()
        self.layer, self.head_dim, self.window = layer, config.head_dim, config.windows[layer]
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        self.rotated = layer not in config.unrotated
        self.scale = config.attention_multiplier  # of the scores; None: 1 / sqrt(head_dim)
        hidden, bias = config.hidden, config.qkv_bias
        q_size, kv_size = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.q_proj = Linear(hidden, q_size, bias, f"{name}.q_proj")
        self.k_proj = Linear(hidden, kv_size, bias, f"{name}.k_proj")
        self.v_proj = Linear(hidden, kv_size, bias, f"{name}.v_proj")
        self.o_proj = Linear(q_size, hidden, config.o_bias, f"{name}.o_proj")
        self.q_norm, self.k_norm = head_norm(config), head_norm(config)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """(B, T, hidden) -> (B, T, hidden)"""
        heads = (*x.shape[:2], -1, self.head_dim)
        q = self.q_proj(x, step.adapters).view(heads)  # (B, T, n_heads, head_dim)
        k = self.k_proj(x, step.adapters).view(heads)  # (B, T, n_kv_heads, head_dim)
        v = self.v_proj(x, step.adapters).view(heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rotated:
            q, k = rotate(q, step.cos, step.sin), rotate(k, step.cos, step.sin)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if step.cache is not None:
            k, v = step.cache.write(self.layer, k, v, step.place)  # (B, n_kv_heads, n, head_dim)
        mask = step.masks[self.window]  # (B or 1, 1, T, n)
        y = F.scaled_dot_product_attention(q, k, v, mask, scale=self.scale, enable_gqa=True)
        y = step.slots.at("heads", self.layer, y.transpose(1, 2))  # (B, T, n_heads, head_dim)
        return self.o_proj(y.flatten(2), step.adapters)


def head_norm(config: LlamaConfig) -> nn.Module:
    """What each head of the queries, or of the keys, goes through before it is rotated."""
    return RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()


class MLP(nn.Module):
    """SwiGLU feed-forward (Shazeer, 2020)."""

    def __init__(self, config: LlamaConfig, layer: int, name: str):
        super().__init__()
        self.layer = layer
        hidden, inner, bias = config.hidden, config.intermediate, config.mlp_bias
        self.gate_proj = Linear(hidden, inner, bias, f"{name}.gate_proj")
        self.up_proj = Linear(hidden, inner, bias, f"{name}.up_proj")
        self.down_proj = Linear(inner, hidden, bias, f"{name}.down_proj")

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """(B, T, hidden) -> (B, T, hidden)"""
        gate, up = self.gate_proj(x, step.adapters), self.up_proj(x, step.adapters)
        keys = step.slots.at("mlp", self.layer, F.silu(gate) * up)  # (B, T, intermediate)
        return self.down_proj(keys, step.adapters)


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich, 2019), computed in float32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size)"""
        weight = self.weight
        return F.rms_norm(x, weight.shape, weight, self.eps)


class Embedding(nn.Module):
    """Token ids to vectors. torch's own class draws random values, even on the meta device."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden))
        self.factor = config.embedding_multiplier

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, hidden)"""
        x = F.embedding(ids, self.weight)
        return x if self.factor == 1 else x * self.factor
