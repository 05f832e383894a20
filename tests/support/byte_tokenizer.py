"""A byte-level tokenizer with a chat template, for tests that need text and no training."""

from __future__ import annotations

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from minisafe.tokenizer import Tokenizer

SPECIAL = ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>")
VOCAB_SIZE = 256 + len(SPECIAL)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer() -> Tokenizer:
    """One id a byte, and five control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({character: id_ for id_, character in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    return Tokenizer(backend, settings, "bytes")
