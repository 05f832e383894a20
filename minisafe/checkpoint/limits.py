"""The largest values that files may state. Each is far beyond existing models (dense ones of up to
about 10^12 parameters), and small enough that nothing built from it hangs or overflows.

docs/limits.md lists them for users.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """The values from `least` to `most`, both included."""

    least: float
    most: float

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most

    def __str__(self) -> str:
        return f"{_spelt(self.least)} to {_spelt(self.most)}"


def _spelt(value: float) -> str:
    """Whole numbers with all their digits, other numbers in short form."""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


POSITIONS = 2**27  # tokens of context; the longest stated by a published model is 10 million
WIDTH = 2**17  # values of the residual stream
LAYERS = 512

CONFIG = {  # by key of config.json
    "vocab_size": Range(1, 2**22),
    "hidden_size": Range(1, WIDTH),
    "intermediate_size": Range(1, 2**20),
    "num_hidden_layers": Range(1, LAYERS),
    "num_attention_heads": Range(1, 2**12),
    "num_key_value_heads": Range(1, 2**12),
    "head_dim": Range(2, 2**12),
    "max_position_embeddings": Range(1, POSITIONS),
    "original_max_position_embeddings": Range(1, POSITIONS),
    "sliding_window": Range(1, POSITIONS),
    "max_window_layers": Range(0, 2**16),
    "no_rope_layer_interval": Range(1, 2**16),
    # below 1 the angles grow with the dimension and overflow; above, nothing rotates
    "rope_theta": Range(1.0, 1e12),
    # about the squares of the smallest and the largest activations that a norm may see
    "rms_norm_eps": Range(1e-12, 0.1),
    "factor": Range(1.0, 1e4),
    "low_freq_factor": Range(1e-3, 1e4),
    "high_freq_factor": Range(1e-3, 1e4),
    "embedding_multiplier": Range(1e-4, 1e4),
    "residual_multiplier": Range(1e-4, 1e4),
    "attention_multiplier": Range(1e-4, 1e4),
    "logits_scaling": Range(1e-4, 1e4),
    "attention_factor": Range(1e-3, 1e3),
    "beta_fast": Range(1e-3, 1e4),
    "beta_slow": Range(1e-3, 1e4),
}

HEADER_BYTES = 16 * 2**20  # of one safetensors file; the library reads up to 100 MB
TENSORS = 2**16  # of one safetensors file; 512 layers with every bias have 7,171
SHARDS = 4096
VECTOR_BYTES = 2**30  # of a safety vector's file; 512 layers of 131,072 float32 take a quarter

GGUF_HEADER_BYTES = (
    2**26
)  # metadata and table of tensors; 262,144 tokens and their merges take 10 MB
GGUF_KEYS = 4096  # of a model's metadata; published files have 20 to 60
GGUF_ITEMS = 2**22  # of one list in the metadata, such as tokens or merges
GGUF_NAME_BYTES = 1024  # of a key or a tensor's name; the format allows 65,535 and 64
GGUF_ALIGNMENT = 2**16  # bytes; 32 is usual
MERGE_WORK = 2**28  # characters compared to find the merges of a vocabulary with scores
