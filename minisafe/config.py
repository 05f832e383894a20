"""`LlamaConfig`: the shape of a model. `checkpoint.config` reads it from a `config.json`."""

from __future__ import annotations

from dataclasses import dataclass

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3 frequency scaling (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class Yarn:
    """YaRN frequency scaling (`rope_type: yarn`; Peng et al., 2023).

    Frequencies that turn `beta_fast` times in the original context stay as they are, those that
    turn `beta_slow` times are slowed by the factor, and those between are blended. `truncate`
    widens the blend to whole pairs of values. Rotated queries and keys are multiplied by
    `attention_factor`.
    """

    factor: float
    original_max_positions: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    @property
    def max_positions(self) -> int:
        """The context length that this makes. Published configs often state the original one."""
        return int(self.factor * self.original_max_positions)


@dataclass(frozen=True)
class LlamaConfig:
    """Everything that `Llama` needs to know about a checkpoint's shape.

    `windows` has one entry per layer: None for full attention, or the number of tokens that a
    query sees, including itself. `max_positions` is the context length in tokens. `qk_norm` says
    whether each head of the queries and keys is normed before it is rotated. `unrotated` are the
    layers that rotate nothing: they read texts without positions.

    Granite's four factors: `embedding_multiplier` of the embeddings, `residual_multiplier` of what
    each half of a layer adds to the residual stream, `attention_multiplier` of the attention scores
    (None: 1 / sqrt(head_dim)), and `logits_scaling`, which divides the logits.
    """

    family: str
    vocab_size: int
    hidden: int
    intermediate: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    norm_eps: float
    max_positions: int
    rope_theta: float
    rope_scaling: RopeScaling | Yarn | None
    tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    windows: tuple[int | None, ...]
    qk_norm: bool = False
    unrotated: tuple[int, ...] = ()
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float | None = None
    logits_scaling: float = 1.0
    dtype: str | None = None

    @property
    def n_parameters(self) -> int:
        """The number of values in the checkpoint's tensors."""
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        layer = self.hidden * (2 * q + 2 * kv + 3 * self.intermediate + 2)
        layer += self.qk_norm * 2 * self.head_dim
        biases = self.qkv_bias * (q + 2 * kv) + self.o_bias * self.hidden
        biases += self.mlp_bias * (2 * self.intermediate + self.hidden)
        tables = self.vocab_size * self.hidden * (1 if self.tied else 2)
        return self.n_layers * (layer + biases) + tables + self.hidden

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values per token, in a cache of the checkpoint's dtype."""
        size = 4 if self.dtype in (None, "float32") else 2
        return 2 * self.n_layers * self.n_kv_heads * self.head_dim * size
