"""Names and order of values: what llama.cpp changes when it writes a Hugging Face model as GGUF.

Hugging Face's rotation pairs value i of a head with value i + head_dim / 2, llama.cpp's pairs
neighbours for the architecture `llama`. Its converter therefore reorders the rows of q and k;
`original_order` puts them back. `qwen2` and `qwen3` are rotated as
Hugging Face does it, so nothing moves.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from minisafe.config import LlamaConfig

OUTER = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
EMBED, HEAD, ROPE = "token_embd.weight", "output.weight", "rope_freqs.weight"
Q_BIAS, O_BIAS, MLP_BIAS = "blk.0.attn_q.bias", "blk.0.attn_output.bias", "blk.0.ffn_up.bias"


def gguf_name(name: str) -> str:
    """The name in GGUF of a tensor with a Hugging Face name."""
    found = LAYER.fullmatch(name)
    if found is None:
        module, _, ending = name.rpartition(".")
        return f"{OUTER[module]}.{ending}"
    return f"blk.{found[1]}.{IN_LAYER[found[2]]}.{found[3]}"


def is_reordered(name: str, config: LlamaConfig) -> bool:
    """Whether the rows of a tensor with this Hugging Face name are in llama.cpp's order."""
    return config.family == "llama" and (".q_proj." in name or ".k_proj." in name)


def original_order(n: int, head_dim: int) -> NDArray[np.int64]:
    """Of n rows in llama.cpp's order, the index of each row of Hugging Face's order: (n,)."""
    return np.arange(n).reshape(-1, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
