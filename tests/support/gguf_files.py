"""Small models in GGUF, as llama.cpp's converter writes them: names, order of rows, vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer
from tokenizers import pre_tokenizers as split
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from minisafe.config import LlamaConfig
from tests.support.templates import CHATML, LLAMA_2
from tests.support.texts import texts

gguf = pytest.importorskip("gguf")
Kind, TokenType = gguf.GGMLQuantizationType, gguf.TokenType
GOLDENS = Path(__file__).parents[1] / "goldens"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NORMAL, USER_DEFINED = TokenType.NORMAL.value, TokenType.USER_DEFINED.value

# ---- vocabularies ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Words:
    """The keys `tokenizer.*` of a file."""

    model: str
    tokens: Sequence[str]
    types: Sequence[int]
    ids: Mapping[str, int]
    pre: str | None = None
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()
    template: str | None = CHATML
    more: Mapping[str, Any] = field(default_factory=dict)


def original_split(pre: str) -> split.PreTokenizer:
    """How the original model with this pre-tokenizer splits a text, as its own file says."""
    if pre == "smollm":
        byte_level = split.ByteLevel(add_prefix_space=False, use_regex=True)
        return split.Sequence([split.Digits(individual_digits=True), byte_level])
    if pre in ("gpt-2", "default"):
        return split.ByteLevel(add_prefix_space=False, use_regex=True)
    regex = QWEN2 if pre == "qwen2" else QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
    parts = split.Split(Regex(regex), "isolated")
    return split.Sequence([parts, split.ByteLevel(add_prefix_space=False, use_regex=False)])


@cache
def byte_level(pre: str = "smollm", n_merges: int = 90, padding: int = 0) -> Words:
    """A byte-level vocabulary trained with the split of `pre`. SmolLM's control tokens come first,
    those of others last, with a token of a user's and then padding behind them."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = original_split(pre)
    trainer = BpeTrainer(
        vocab_size=256 + n_merges, initial_alphabet=sorted(split.ByteLevel.alphabet()),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    learned = sorted(model["vocab"], key=model["vocab"].__getitem__)
    first = list(CONTROL) if pre == "smollm" else []
    last = [] if pre == "smollm" else [*CONTROL, "<note>"]
    filler = [f"[PAD{len(first + learned + last) + n}]" for n in range(padding)]
    types = dict.fromkeys(CONTROL, TokenType.CONTROL.value) | {"<note>": USER_DEFINED}
    types |= dict.fromkeys(filler, TokenType.UNUSED.value)
    tokens = [*first, *learned, *last, *filler]
    ids = {"bos": tokens.index(CONTROL[1]), "eos": tokens.index(CONTROL[2])}
    return Words(
        "gpt2", tokens, [types.get(token, NORMAL) for token in tokens], ids, pre,
        [" ".join(merge) for merge in model["merges"]], more={"add_bos_token": False},
    )  # fmt: skip


@cache
def sentencepiece() -> Words:
    """The pieces of a golden tokenizer, with scores that fall as its merges follow."""
    path = GOLDENS / "chat" / "tokenizers" / "sentencepiece.json"
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    places = {"".join(merge): -float(n) for n, merge in enumerate(model["merges"], 1)}
    types = [TokenType.UNKNOWN.value, TokenType.CONTROL.value, TokenType.CONTROL.value]
    types += [TokenType.BYTE.value] * 256
    types += [NORMAL] * (len(tokens) - len(types))
    scores = [places.get(token, -1000.0 - n) for n, token in enumerate(tokens)]
    scores[:259] = [0.0] * 259
    ids = {"bos": 1, "eos": 2, "unk": 0}
    return Words("llama", tokens, types, ids, "default", scores=scores, template=LLAMA_2)


def letters(n: int) -> Words:
    """n tokens that matter to nobody."""
    tokens = ["<unk>", "<s>", "</s>", *(f"▁{number}" for number in range(n - 3))]
    types = [TokenType.UNKNOWN.value, TokenType.CONTROL.value, TokenType.CONTROL.value]
    types += [NORMAL] * (n - 3)
    scores = [-float(number) for number in range(n)]
    return Words("llama", tokens, types, {"bos": 1, "eos": 2}, scores=scores)


# ---- models ------------------------------------------------------------------------------------

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}  # fmt: skip


def their_name(name: str) -> str:
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name.replace("model.layers.", "blk.")


def permuted(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of q or k as llama.cpp wants them: the halves of each head interleaved."""
    size = len(values) // heads // 2
    parts = values.reshape(heads, 2, size, *values.shape[1:])
    return parts.swapaxes(1, 2).reshape(values.shape)


def divisors(config: LlamaConfig) -> NDArray[np.float32] | None:
    """The values of rope_freqs.weight, by the three cases of the published formula (Llama 3.1)."""
    scaling = config.rope_scaling
    if scaling is None:
        return None
    found = []
    for pair in range(0, config.head_dim, 2):
        length = 2 * np.pi * config.rope_theta ** (pair / config.head_dim)
        context = scaling.original_max_positions
        if length < context / scaling.high_freq_factor:
            found.append(1.0)
        elif length > context / scaling.low_freq_factor:
            found.append(scaling.factor)
        else:
            spread = scaling.high_freq_factor - scaling.low_freq_factor
            smooth = (context / length - scaling.low_freq_factor) / spread
            found.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return np.array(found, np.float32)


def as_stored(config: LlamaConfig, tensors: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """Tensors under llama.cpp's names and in its order, float32."""
    found = {}
    for name, tensor in tensors.items():
        values = tensor.detach().float().numpy()
        if config.family == "llama" and ".q_proj." in name:
            values = permuted(values, config.n_heads)
        elif config.family == "llama" and ".k_proj." in name:
            values = permuted(values, config.n_kv_heads)
        found[their_name(name)] = np.ascontiguousarray(values)
    scaled = divisors(config)
    return found if scaled is None else found | {"rope_freqs.weight": scaled}


def write_model(
    path: Path,
    config: LlamaConfig,
    tensors: Mapping[str, Tensor],
    words: Words,
    kind: str = "F32",
    leave_out: Sequence[str] = (),
    **changes: Any,
) -> Path:
    """Write a model; norms, biases and what `kind` cannot hold in rows of this length are F32.

    leave_out: names in GGUF of tensors not to write. changes: other metadata, with `__` for a dot;
    None leaves a key out.
    """
    writer = gguf.GGUFWriter(str(path), config.family)
    head = {
        "block_count": config.n_layers, "context_length": config.max_positions,
        "embedding_length": config.hidden, "feed_forward_length": config.intermediate,
        "attention.head_count": config.n_heads, "attention.head_count_kv": config.n_kv_heads,
        "attention.layer_norm_rms_epsilon": config.norm_eps, "rope.freq_base": config.rope_theta,
    }  # fmt: skip
    if config.head_dim * config.n_heads != config.hidden or config.family == "qwen3":
        head |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    if config.family == "llama":
        head |= {"rope.dimension_count": config.head_dim, "vocab_size": config.vocab_size}
    keys = {f"{config.family}.{key}": value for key, value in head.items()} | vocabulary(words)
    keys |= {key.replace("__", "."): value for key, value in changes.items()}
    for key, value in keys.items():
        if key == "general.architecture" and value is not None:
            writer.kv_data[0][key].value = value
        elif value is not None:
            add(writer, key, value)
    for name, values in as_stored(config, tensors).items():
        if name not in leave_out:
            add_tensor(writer, name, values, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def vocabulary(words: Words) -> dict[str, Any]:
    """The keys of a vocabulary."""
    named = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id"}
    keys: dict[str, Any] = {
        "model": words.model, "pre": words.pre, "tokens": list(words.tokens),
        "token_type": list(words.types), "scores": list(words.scores) or None,
        "merges": list(words.merges) or None, **words.more,
        **{named[name]: id_ for name, id_ in words.ids.items()},
    }  # fmt: skip
    found = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    return found | {"tokenizer.chat_template": words.template}


def add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def add_tensor(writer: Any, name: str, values: NDArray[np.float32], kind: str) -> None:
    """A tensor of this kind; one that cannot be quantised stays F32."""
    number = Kind[kind]
    block, _ = gguf.GGML_QUANT_SIZES[number]
    if values.ndim == 1 or values.shape[-1] % block:
        number = Kind.F32
    raw = gguf.quants.quantize(values, number)
    if number in (Kind.F32, Kind.F16):
        writer.add_tensor(name, raw)
    else:
        writer.add_tensor(name, raw, raw_dtype=number)


def bf16(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors rounded to bfloat16, as most models are published."""
    return {name: tensor.to(torch.bfloat16).float() for name, tensor in tensors.items()}
