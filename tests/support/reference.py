"""The whole transformer again, slow and obvious: what `minisafe.model` must agree with.

One sequence, one query and one head at a time, in float64, without a cache, a mask tensor or a
fused kernel. It reads tensors by their Hugging Face names, so it also anchors the names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minisafe.config import LlamaConfig, Yarn


@dataclass
class Reading:
    """What came of one sequence of T tokens."""

    logits: Tensor  # (T, vocab)
    residuals: list[Tensor] = field(default_factory=list)  # one (T, hidden) a layer
    heads: list[Tensor] = field(default_factory=list)  # one (T, n_heads, head_dim) a layer


def read(
    tensors: Mapping[str, Tensor],
    config: LlamaConfig,
    ids: list[int],
    add: Mapping[tuple[int, int], Tensor] | None = None,
    patch: Mapping[tuple[int, int, int], Tensor] | None = None,
) -> Reading:
    """Run one sequence.

    Args:
        tensors: every tensor of the checkpoint by name.
        ids: T token ids.
        add: (layer, position) -> what to add to the residual stream after that layer.
        patch: (layer, position, head) -> what to put in that head's output's place.
    """
    w = {name: tensor.double() for name, tensor in tensors.items()}
    add, patch = add or {}, patch or {}
    n = len(ids)
    reading = Reading(torch.empty(0))
    x = torch.stack([w["model.embed_tokens.weight"][token] for token in ids])  # (T, hidden)
    x = x * config.embedding_multiplier
    for layer in range(config.n_layers):
        name = f"model.layers.{layer}"
        seen = norm(x, w[f"{name}.input_layernorm.weight"], config.norm_eps)
        heads = attention(w, config, layer, seen)  # (T, n_heads, head_dim)
        for (where, position, head), value in patch.items():
            if where == layer:
                heads[position, head] = value.double()
        reading.heads.append(heads)
        given = linear(w, f"{name}.self_attn.o_proj", heads.reshape(n, -1))
        x = x + config.residual_multiplier * given
        seen = norm(x, w[f"{name}.post_attention_layernorm.weight"], config.norm_eps)
        gate = linear(w, f"{name}.mlp.gate_proj", seen)
        up = linear(w, f"{name}.mlp.up_proj", seen)
        given = linear(w, f"{name}.mlp.down_proj", gate / (1 + torch.exp(-gate)) * up)
        x = x + config.residual_multiplier * given
        for (where, position), value in add.items():
            if where == layer:
                x[position] += value.double()
        reading.residuals.append(x.clone())
    x = norm(x, w["model.norm.weight"], config.norm_eps)
    head = w["model.embed_tokens.weight"] if config.tied else w["lm_head.weight"]
    reading.logits = x @ head.T / config.logits_scaling
    return reading


def linear(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.stack([row / math.sqrt(float(row.square().mean()) + eps) * weight for row in x])


def attention(w: Mapping[str, Tensor], config: LlamaConfig, layer: int, x: Tensor) -> Tensor:
    """(T, hidden) -> every head's output, (T, n_heads, head_dim)."""
    name, n = f"model.layers.{layer}.self_attn", len(x)
    q = linear(w, f"{name}.q_proj", x).reshape(n, config.n_heads, config.head_dim)
    k = linear(w, f"{name}.k_proj", x).reshape(n, config.n_kv_heads, config.head_dim)
    v = linear(w, f"{name}.v_proj", x).reshape(n, config.n_kv_heads, config.head_dim)
    if config.qk_norm:
        for parts, weight in ((q, w[f"{name}.q_norm.weight"]), (k, w[f"{name}.k_norm.weight"])):
            for position in range(n):
                parts[position] = norm(parts[position], weight, config.norm_eps)
    for position in range(n):
        turn = (
            rotation(config, position)
            if layer not in config.unrotated
            else torch.eye(config.head_dim, dtype=x.dtype)
        )
        for head in range(config.n_heads):
            q[position, head] = turn @ q[position, head]
        for head in range(config.n_kv_heads):
            k[position, head] = turn @ k[position, head]
    out = torch.zeros(n, config.n_heads, config.head_dim, dtype=x.dtype)
    window, factor = config.windows[layer], config.attention_multiplier
    factor = 1 / math.sqrt(config.head_dim) if factor is None else factor
    for head in range(config.n_heads):
        shared = head * config.n_kv_heads // config.n_heads  # the key-value head it reads
        for position in range(n):
            first = 0 if window is None else max(0, position - window + 1)
            scores = k[first : position + 1, shared] @ q[position, head]
            odds = torch.softmax(scores * factor, dim=0)
            out[position, head] = odds @ v[first : position + 1, shared]
    return out


def rotation(config: LlamaConfig, position: int) -> Tensor:
    """The (head_dim, head_dim) matrix that turns each pair (i, i + head_dim / 2) by its angle."""
    half = config.head_dim // 2
    matrix = torch.zeros(config.head_dim, config.head_dim, dtype=torch.float64)
    for i in range(half):
        angle = position * frequency(config, i)
        matrix[i, i] = matrix[i + half, i + half] = math.cos(angle)
        matrix[i, i + half], matrix[i + half, i] = -math.sin(angle), math.sin(angle)
    scaling = config.rope_scaling
    return matrix * scaling.attention_factor if isinstance(scaling, Yarn) else matrix


def frequency(config: LlamaConfig, i: int) -> float:
    """Radians per position of pair `i`. Llama 3 slows waves that are long for the old context."""
    plain = config.rope_theta ** (-2 * i / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return plain
    if isinstance(scaling, Yarn):
        share = slowed(config, scaling, i)
        return share * plain / scaling.factor + (1 - share) * plain
    wavelength = 2 * math.pi / plain
    if wavelength < scaling.original_max_positions / scaling.high_freq_factor:
        return plain
    if wavelength > scaling.original_max_positions / scaling.low_freq_factor:
        return plain / scaling.factor
    turns = scaling.original_max_positions / wavelength
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return (1 - share) * plain / scaling.factor + share * plain


def slowed(config: LlamaConfig, yarn: Yarn, i: int) -> float:
    """How far YaRN slows pair `i`: 0, not at all; 1, by the whole factor."""
    bounds = []
    for turns in (yarn.beta_fast, yarn.beta_slow):
        # the pair that turns so often in the original context, as a fraction of a pair
        wavelength = yarn.original_max_positions / turns
        bounds.append(math.log(wavelength / (2 * math.pi), config.rope_theta) * config.head_dim / 2)
    if yarn.truncate:
        bounds = [math.floor(bounds[0]), math.ceil(bounds[1])]
    first, last = max(bounds[0], 0), min(bounds[1], config.head_dim - 1)
    if first == last:
        return float(i > first)
    return min(max((i - first) / (last - first), 0), 1)
