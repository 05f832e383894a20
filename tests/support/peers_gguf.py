"""What transformers makes of a GGUF file, with the original model's split where it differs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers
from torch import Tensor

from tests.support.gguf_files import Words, original_split


def model_of(path: Path) -> Any:
    """The model as transformers reads it from the file, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@torch.no_grad()
def logits_of(path: Path, ids: Tensor) -> Tensor:
    found: Tensor = model_of(path)(input_ids=ids, use_cache=False).logits
    return found


def tokenizer_of(path: Path, words: Words) -> Any:
    """The tokenizer as transformers reads it from the file, with two of its rules replaced.

    transformers splits a text for SmolLM as GPT-2 does, digits together. And it puts the blank of
    SentencePiece before the first word only, as Llama's later tokenizers do; Llama 2's own file
    puts it after every control token too.
    """
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    backend: Backend = found.backend_tokenizer
    if words.model == "llama":
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    elif words.pre == "smollm":
        backend.pre_tokenizer = original_split("smollm")
    return found


def chat_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of a chat with each text as its only message."""
    return [
        list(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            )
        )
        for text in texts
    ]
