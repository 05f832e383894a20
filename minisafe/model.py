"""The transformer: Llama, and Mistral and Qwen2, which differ from it only in their config.

Read from the bottom up: `Llama.forward` makes a `Step`, runs the layers on it and applies the head.
Shapes: B rows, T tokens a row in this forward, n tokens a row in the cache after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from minisafe.cache import KVCache, Placement
from minisafe.config import LlamaConfig
from minisafe.errors import SettingError
from minisafe.linear import Projection, linear
from minisafe.lora import Applied
from minisafe.packing import Packing, pack
from minisafe.rotary import inverse_frequencies, rotary_tables, rotate
from minisafe.slots import BoundSlots, Slot


@dataclass(frozen=True)
class Step:
    """All that one forward's layers share: positions, rotations, masks, adapters, slots."""

    cos: Tensor  # (B or 1, T, 1, head_dim); packed: (N, 1, 1, head_dim)
    sin: Tensor  # the same, the first half negative
    masks: dict[int | None, Tensor | None]  # window -> (B or 1, 1, T, n), what to add
    causal: bool  # the block is the whole sequence, so the lower triangle says it all
    slots: BoundSlots
    adapters: tuple[Applied, ...] = ()
    cache: KVCache | None = None
    packing: Packing | None = None  # then the block is N rows of one token, but for attention
    place: Placement = field(default_factory=lambda: Placement(slice(0, 0), (), (), 0))


class DecodingStep(Protocol):
    """A faster way to run some steps; all else is run as `Llama.forward` says."""

    def takes(self, width: int, step: Step) -> bool: ...

    def __call__(self, ids: Tensor, step: Step) -> Tensor: ...


@dataclass(frozen=True)
class Prepared:
    """How a model's weights were prepared, and their fingerprint before that."""

    weights: str
    fingerprint: str


class Embedding(nn.Module):
    """Token ids to vectors. torch's own draws a random start, even on the meta device."""

    def __init__(self, vocab_size: int, hidden: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich, 2019), in float32 inside."""

    def __init__(self, hidden: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Grouped-query attention. q: (B, n_heads, T, d), k and v: (B, n_kv_heads, n, d) -> as q.

    A group's query heads become extra query rows of its one key-value head, so that keys and
    values are neither copied nor expanded. Only a whole causal block expands them: there the
    kernel skips the upper triangle, which saves more than the copy costs.
    """
    batch, n_heads, width, head_dim = q.shape
    n_kv_heads = k.shape[1]
    group = n_heads // n_kv_heads
    if causal:
        if group > 1:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    q = q.reshape(batch, n_kv_heads, group * width, head_dim)
    if mask is not None and group > 1 and width > 1:
        mask = mask.repeat(1, 1, group, 1)  # (B, 1, group * T, n)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return y.reshape(batch, n_heads, width, head_dim)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a query looks, else -inf: what attention would make of a mask anew in every layer."""
    return torch.zeros((), dtype=dtype, device=mask.device).where(mask, -torch.inf)


class Attention(nn.Module):
    """Self-attention with rotary positions and grouped queries."""

    def __init__(self, config: LlamaConfig, layer: int, prefix: str):
        super().__init__()
        self.layer, self.head_dim, self.window = layer, config.head_dim, config.windows[layer]
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        q_size, kv_size = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        sizes = {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}
        parts = {f"{prefix}.{name}": size for name, size in sizes.items()}
        self.qkv = Projection(config.hidden, parts, config.qkv_bias)
        self.o = Projection(q_size, {f"{prefix}.o_proj": config.hidden}, config.o_bias)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        y = self.qkv.joined(x, step)
        heads = y.view(*y.shape[:2], -1, self.head_dim)  # q's, then k's, then v's
        # the method: `torch.split` takes a detour through Python, longer than the split itself
        qk, v = heads.split_with_sizes([self.n_heads + self.n_kv_heads, self.n_kv_heads], dim=2)
        qk = rotate(qk, step.cos, step.sin)  # one pass over the heads of both
        if step.packing is not None:
            qk, v = step.packing.spread(qk), step.packing.spread(v)
        q, k = qk.transpose(1, 2).split_with_sizes([self.n_heads, self.n_kv_heads], dim=1)
        v = v.transpose(1, 2)  # (B, n_kv_heads, T, head_dim)
        if step.cache is not None:
            k, v = step.cache.write(self.layer, k, v, step.place)
        causal = step.causal and self.window not in step.masks
        y = attend(q, k, v, step.masks.get(self.window), causal).transpose(1, 2)
        if step.packing is not None:
            y = step.packing.pack(y)
        heads = step.slots.at("heads", self.layer, y)  # (B, T, n_heads, head_dim)
        return self.o.joined(heads.flatten(2), step)


class MLP(nn.Module):
    """SwiGLU feed-forward (Shazeer, 2020)."""

    def __init__(self, config: LlamaConfig, layer: int, prefix: str):
        super().__init__()
        self.layer = layer
        parts = {f"{prefix}.{name}": config.intermediate for name in ("gate_proj", "up_proj")}
        self.gate_up = Projection(config.hidden, parts, config.mlp_bias)
        down = {f"{prefix}.down_proj": config.hidden}
        self.down = Projection(config.intermediate, down, config.mlp_bias)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        gate, up = self.gate_up(x, step)
        keys = step.slots.at("mlp", self.layer, F.silu(gate) * up)  # (B, T, intermediate)
        return self.down.joined(keys, step)


class Layer(nn.Module):
    """One transformer block; the "residual" site is its output."""

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.layer, prefix = layer, f"model.layers.{layer}"
        self.input_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.self_attn = Attention(config, layer, f"{prefix}.self_attn")
        self.post_attention_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.mlp = MLP(config, layer, f"{prefix}.mlp")

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), step)
        x = x + self.mlp(self.post_attention_layernorm(x), step)
        return step.slots.at("residual", self.layer, x)

    def projections(self) -> tuple[tuple[nn.Module, str], ...]:
        """(module, attribute) of every projection of the layer."""
        attn, mlp = self.self_attn, self.mlp
        return (attn, "qkv"), (attn, "o"), (mlp, "gate_up"), (mlp, "down")

    def tensors(self) -> Iterator[tuple[str, nn.Module, str]]:
        """(Hugging Face name, module, attribute) of every tensor of the layer."""
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{self.layer}.{norm}.weight", getattr(self, norm), "weight"
        for holder, attribute in self.projections():
            yield from getattr(holder, attribute).tensors()


def all_tokens(x: Tensor, step: Step) -> Tensor:
    """The block's tokens as they were given, padding and all: -> (B, T, hidden)"""
    return x if step.packing is None else step.packing.spread(x)


def last_tokens(x: Tensor, step: Step) -> Tensor:
    """Each row's last real token, or another's where it has none: -> (B, 1, hidden)"""
    if step.packing is not None:
        return step.packing.last(x)
    if step.place.width == 1:
        return x
    last = torch.tensor([max(count - 1, 0) for count in step.place.counts], device=x.device)
    return x[torch.arange(len(last), device=x.device), last].unsqueeze(1)


class Llama(nn.Module):
    """A decoder-only transformer over token ids."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.hidden, config.norm_eps)
        head = {"lm_head": config.vocab_size}
        self.lm_head = None if config.tied else Projection(config.hidden, head)
        self.prepared: Prepared | None = None  # by `minisafe.prepare`, for inference only
        self.compiled: DecodingStep | None = None  # by `minisafe.compiled`, a fast path
        self.recompute = False  # activation checkpointing, for training
        self._rotary: tuple[Tensor, Tensor] | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    def forward(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        *,
        counts: Sequence[int] | None = None,
        rows: slice | None = None,
        slots: Iterable[Slot] = (),
        adapters: tuple[Applied, ...] = (),
        last_only: bool = False,
        no_logits: bool = False,
    ) -> Tensor:
        """Logits of a block of tokens, float or the model's dtype.

        Args:
            ids: (B, T) token ids; rows shorter than T are padded on the right with any id.
            cache: keys and values of earlier tokens; the block is appended to it.
            counts: how many of a row's T ids are real; all of them by default.
            rows: the cache rows that the block belongs to, a slice; all of them by default.
            slots: what to add, record or patch, with rows counted within the block.
            adapters: low-rank deltas and the rows of the block that they act on.
            last_only: give only each row's last real token's logits.
            no_logits: give none, which spares the head where only the cache or slots matter.

        Returns:
            (B, T, vocab), or (B, vocab) with `last_only`, or (B, 0) with `no_logits`.

        Raises:
            SlotError: a slot names what is not there, or was not applied.
            PromptError: the block does not fit the context length.
        """
        batch, width = ids.shape
        counts = (width,) * batch if counts is None else tuple(counts)
        step = self.step(counts, width, cache, rows, slots, adapters)
        if self.compiled is not None and not no_logits and self.compiled.takes(width, step):
            logits = self.compiled(ids, step)
            step.cache.advance(step.place)  # type: ignore[union-attr]
            return logits if last_only else logits.unsqueeze(1)
        x = self.embed_tokens(ids if step.packing is None else step.packing.pack(ids))
        for layer in self.layers:  # x: (B, T, hidden)
            if self.recompute and torch.is_grad_enabled():
                x = recompute(layer, x, step, use_reentrant=False)
            else:
                x = layer(x, step)
        step.slots.finish()
        if cache is not None:
            cache.advance(step.place)
        if no_logits:
            return torch.empty(batch, 0, dtype=x.dtype, device=x.device)
        x = last_tokens(x, step) if last_only else all_tokens(x, step)
        logits = self.head(self.norm(x), step)
        return logits.squeeze(1) if last_only else logits

    def head(self, x: Tensor, step: Step) -> Tensor:
        """(..., hidden) -> (..., vocab)"""
        if self.lm_head is None:
            return linear(x, self.embed_tokens.weight, None)
        return self.lm_head.joined(x, step)

    def step(
        self,
        counts: tuple[int, ...],
        width: int,
        cache: KVCache | None,
        rows: slice | None,
        slots: Iterable[Slot],
        adapters: tuple[Applied, ...],
    ) -> Step:
        """What the layers of one forward share."""
        if cache is None:
            place = Placement(slice(0, len(counts)), (0,) * len(counts), counts, width)
        else:
            place = cache.place(counts, width, rows)
        n = width if cache is None else place.stop
        positions = torch.arange(place.starts[0], place.starts[0] + width, device=self.device)[None]
        if not place.uniform:  # else one row of positions is every row's
            starts = torch.tensor(place.starts, device=self.device)
            positions = starts[:, None] - place.starts[0] + positions  # (B, T)
            positions = positions.clamp_(max=n - 1)  # padding may run past the last column
        cos, sin = self.rotary(n)
        packing = None
        if cache is not None and width > 1 and any(counts) and not place.uniform:
            packing = pack(counts, width, self.device)
            adapters = packing.adapters(adapters)
        if place.uniform:  # a slice costs less than picking rows
            cos, sin = (each[None, place.starts[0] : n] for each in (cos, sin))
        else:
            turned = positions if packing is None else packing.pack(positions)
            cos, sin = cos[turned], sin[turned]
        offsets = None if packing is None else packing.offsets
        bound = BoundSlots(slots, self.config.n_layers, place.starts, counts, self.device, offsets)
        causal = place.uniform and place.starts[0] == 0
        return Step(
            cos=cos.unsqueeze(2),
            sin=sin.unsqueeze(2),
            masks=self.masks(positions, n, place, causal),
            causal=causal,
            slots=bound,
            adapters=adapters,
            cache=cache,
            packing=packing,
            place=place,
        )

    def masks(
        self, positions: Tensor, n: int, place: Placement, causal: bool
    ) -> dict[int | None, Tensor | None]:
        """Which columns each query sees, for every window in use; no entry or None: no mask.
        positions: (B or 1, T)"""
        masks: dict[int | None, Tensor | None] = {}
        for window in set(self.config.windows):
            hidden_before = None if window is None or window >= n else window
            if hidden_before is None and (causal or (place.uniform and place.width == 1)):
                continue
            columns = torch.arange(n, device=positions.device)
            mask = columns <= positions[..., None]  # (B, T, n)
            if hidden_before is not None:
                mask &= columns > positions[..., None] - hidden_before
            masks[window] = additive(mask.unsqueeze(1), self.dtype)
        return masks

    def rotary(self, n: int) -> tuple[Tensor, Tensor]:
        """Rotations of positions 0 to n - 1 at least, as `Step` has them: (>= n, head_dim) each."""
        table = self._rotary
        stale = table is None or table[0].dtype != self.dtype or table[0].device != self.device
        if stale or table is None or len(table[0]) < n:
            size = min(max(2 * n, 256), max(n, self.config.max_positions))
            with torch.inference_mode(False):  # else training could not use the table later
                cos, sin = rotary_tables(inverse_frequencies(self.config), size)
                table = cos.to(self.device, self.dtype), sin.to(self.device, self.dtype)
            self._rotary = table
        return table

    def tensors(self) -> Iterator[tuple[str, nn.Module, str]]:
        """(Hugging Face name, module, attribute) of every tensor of the checkpoint.

        Raises `SettingError` for a prepared model, which has them no longer.
        """
        if self.prepared is not None:
            raise SettingError(
                f"the model's weights are {self.prepared.weights}, for decoding only; training, "
                "amplifying, editing and saving need it loaded with weights plain"
            )
        yield "model.embed_tokens.weight", self.embed_tokens, "weight"
        for layer in self.layers:
            assert isinstance(layer, Layer)
            yield from layer.tensors()
        yield "model.norm.weight", self.norm, "weight"
        if self.lm_head is not None:
            yield from self.lm_head.tensors()


def projections(model: Llama) -> Iterator[Projection]:
    """Every projection of a model, plain or prepared; not the head where it is tied."""
    for layer in model.layers:
        assert isinstance(layer, Layer)
        for holder, attribute in layer.projections():
            yield getattr(holder, attribute)
    if model.lm_head is not None and not model.config.tied:
        yield model.lm_head
