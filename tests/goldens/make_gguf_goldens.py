"""Make the GGUF goldens again: small files, and what Hugging Face transformers reads out of them.

    python tests/goldens/make_gguf_goldens.py

Needs transformers and gguf. Writes beside itself, under gguf/

    NAME.gguf         a random model, quantised, with a trained vocabulary
    NAME.safetensors  ids (2, 32), and logits (2, 32, vocab) float32 of the file in transformers
    NAME.json         for 60 texts, the ids of a chat with each, and of the text alone

transformers splits a text for SmolLM otherwise than the original does, and puts SentencePiece's
blank elsewhere than Llama 2; tests/support/peers_gguf.py has the original's rules put in.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent / "gguf"
sys.path.insert(0, str(HERE.parents[2]))

from tests.support.gguf_files import Words, byte_level, sentencepiece, write_model  # noqa: E402
from tests.support.peers_gguf import chat_ids, logits_of, tokenizer_of  # noqa: E402
from tests.support.texts import some_texts  # noqa: E402
from tests.support.tiny import random_ids, random_model, tensors_of, tiny_config  # noqa: E402

# name -> (family, vocabulary, type of the matrices)
FILES: dict[str, tuple[str, Words, str]] = {
    "llama_smollm_q4_1": ("llama", byte_level("smollm"), "Q4_1"),
    "llama_bpe_q5_0": ("llama", byte_level("llama-bpe"), "Q5_0"),
    "llama_sentencepiece_f16": ("llama", sentencepiece(), "F16"),
    "qwen2_q8_0": ("qwen2", byte_level("qwen2", padding=5), "Q8_0"),
    "qwen3_q5_1": ("qwen3", byte_level("qwen2"), "Q5_1"),
}


def make(name: str) -> None:
    family, words, kind = FILES[name]
    path, smollm = HERE / f"{name}.gguf", words.pre == "smollm"
    # transformers does not read Qwen3's head size from a file: it takes the default of its class
    normed = family == "qwen3"
    heads = {"n_heads": 2, "n_kv_heads": 1, "head_dim": 128} if normed else {"head_dim": 16}
    config = tiny_config(
        family=family, vocab_size=len(words.tokens), hidden=64, intermediate=96, **heads,
        qkv_bias=family == "qwen2", qk_norm=normed, tied=smollm, max_positions=512,
    )  # fmt: skip
    model = random_model(config)
    write_model(path, config, tensors_of(model), words, kind)
    ids = random_ids(model, 2, 32)
    save_file({"ids": ids.int(), "logits": logits_of(path, ids)}, HERE / f"{name}.safetensors")
    theirs, asked = tokenizer_of(path, words), some_texts()
    golden = {"chats": chat_ids(theirs, asked), "plain": [theirs.encode(text) for text in asked]}
    (HERE / f"{name}.json").write_text(json.dumps(golden) + "\n", encoding="utf-8")


def main() -> None:
    torch.set_num_threads(1)
    HERE.mkdir(exist_ok=True)
    for name in FILES:
        make(name)


if __name__ == "__main__":
    main()
