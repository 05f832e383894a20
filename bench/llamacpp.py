"""llama.cpp as a peer: a minisafe model as a GGUF file, and tokens through llama-cpp-python.

bench/README.md explains how to install both.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minisafe.guidance import Rule
from minisafe.model import Llama

NAMES = {  # GGUF's names of a layer's tensors, by Hugging Face name
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
ROTATES_HALVES = {"llama": False, "qwen2": True}  # by family: how llama.cpp rotates q and k
QUANTIZED = {"Q4_0": 2, "Q8_0": 7}  # llama.h: LLAMA_FTYPE_MOSTLY_Q4_0, ..._Q8_0


def gguf_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`"""
    module, _, kind = name.rpartition(".")
    if module in OUTER:
        return f"{OUTER[module]}.{kind}"
    _, _, layer, inner = module.split(".", 3)
    return f"blk.{layer}.{NAMES[inner]}.{kind}"


def interleaved(weight: Tensor, n_heads: int) -> Tensor:
    """q's or k's rows in llama.cpp's order, which rotates adjacent values instead of halves."""
    halves = weight.view(n_heads, 2, -1, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def write_gguf(model: Llama, path: Path) -> None:
    """A Llama or Qwen2 as a bf16 GGUF file without a vocabulary.

    Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    import gguf

    config = model.config
    if config.family not in ROTATES_HALVES:
        raise ValueError(f"{config.family}: no GGUF is written of it; expected llama or qwen2")
    writer = gguf.GGUFWriter(path, config.family)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.intermediate)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_tokenizer_model("no_vocab")
    for name, parameter in model.tensors().items():
        tensor = parameter.detach()
        if not ROTATES_HALVES[config.family]:
            if name.endswith("q_proj.weight"):
                tensor = interleaved(tensor, config.n_heads)
            if name.endswith("k_proj.weight"):
                tensor = interleaved(tensor, config.n_kv_heads)
        if tensor.dim() == 1:  # llama.cpp wants norms in float32
            writer.add_tensor(gguf_name(name), tensor.float().numpy())
        else:
            raw = tensor.bfloat16().contiguous().view(torch.uint8).numpy()
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(gguf_name(name), raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@cache
def silence(api: Any) -> Any:
    """A silent callback for llama.cpp's log; keep it, because llama.cpp stores its address."""
    return api.llama_log_callback(lambda *_: None)


class Peer:
    """A GGUF file's weights; close it, because llama.cpp manages its own memory.

    capacity: tokens per context. form: of `QUANTIZED`, made from the file. Quantised weights read
    prompts token by token, because llama-cpp-python 0.3.36 crashed in its AMX kernel for longer
    blocks. block: tokens that are read at once; by default all, or 1 with a form.
    """

    def __init__(
        self,
        path: Path,
        capacity: int,
        threads: int,
        form: str | None = None,
        block: int | None = None,
    ):
        import llama_cpp

        self.api: Any = llama_cpp
        self.stack = ExitStack()
        self.api.llama_log_set(silence(llama_cpp), None)
        self.api.llama_backend_init()
        if form is not None:
            path = self.quantize(path, form, threads)
        self.model = self.api.llama_model_load_from_file(
            str(path).encode(), self.api.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"llama.cpp could not load {path}")
        self.stack.callback(self.api.llama_model_free, self.model)
        self.vocab_size = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))
        self.capacity, self.threads = capacity, threads
        self.block = block or (capacity if form is None else 1)

    def quantize(self, path: Path, form: str, threads: int) -> Path:
        params = self.api.llama_model_quantize_default_params()
        params.ftype, params.nthread = QUANTIZED[form], threads
        target = path.with_suffix(f".{form}.gguf")
        source, made = str(path).encode(), str(target).encode()
        if self.api.llama_model_quantize(source, made, ctypes.byref(params)):
            raise RuntimeError(f"llama.cpp could not quantize {path}")
        return target

    def context(self) -> Any:
        params = self.api.llama_context_default_params()
        params.n_ctx = self.capacity
        params.n_batch = params.n_ubatch = self.capacity
        params.n_threads = params.n_threads_batch = self.threads
        return self.api.llama_init_from_model(self.model, params)

    def logits(self, context: Any, ids: Sequence[int]) -> Tensor:
        """(vocab,) float32 after `ids`, which are appended to the context."""
        for start in range(0, len(ids), self.block):
            block = ids[start : start + self.block]
            array = (ctypes.c_int * len(block))(*block)
            if self.api.llama_decode(context, self.api.llama_batch_get_one(array, len(block))):
                raise RuntimeError("llama.cpp could not decode")
        found = self.api.llama_get_logits_ith(context, -1)
        return torch.from_numpy(np.ctypeslib.as_array(found, (self.vocab_size,)))

    def tokens(
        self, prompt: Sequence[int], n_contexts: int = 1, rule: Rule | None = None
    ) -> Iterator[int]:
        """Greedy tokens; with guidance, of contexts in lockstep over the same weights."""
        contexts = [self.context() for _ in range(n_contexts)]
        feed = list(prompt)
        try:
            while True:
                found = [self.logits(context, feed)[None] for context in contexts]
                if rule is None:
                    scores = found[0]
                else:
                    scores = rule(tuple(logits.log_softmax(-1) for logits in found))
                feed = [int(scores.argmax())]
                yield feed[0]
        finally:
            for context in contexts:
                self.api.llama_free(context)

    def close(self) -> None:
        self.stack.close()
