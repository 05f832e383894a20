"""Comparisons with transformers' own reading of GGUF, if it is installed, on random models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minisafe.checkpoint import load_model
from minisafe.convert import convert, plan_conversion
from minisafe.convert.container import read_container
from minisafe.tokenizer import load_tokenizer
from tests.support.gguf_files import Kind, Words, byte_level, gguf, sentencepiece, write_model
from tests.support.peers_gguf import chat_ids, logits_of, tokenizer_of
from tests.support.texts import texts
from tests.support.tiny import random_ids, random_model, tensors_of, tiny_config

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.live

# rows of 256 values, so that every type has whole blocks; grouped heads; llama is tied
SHAPE = {"hidden": 256, "intermediate": 256, "n_heads": 8, "n_kv_heads": 4, "head_dim": 32,
         "max_positions": 512}  # fmt: skip
WRITTEN = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")
# the library writes no K-quants, so these are random blocks: bytes of the scales, by type
K_QUANTS = {
    "Q2_K": (80, 84),
    "Q3_K": (108, 110),
    "Q4_K": (0, 4),
    "Q5_K": (0, 4),
    "Q6_K": (208, 210),
}


def written(path: Path, family: str, words: Words, kind: str = "F32") -> Path:
    bias, normed = family == "qwen2", family == "qwen3"
    # transformers does not read the head size from the file: it takes the default of the class
    shape = SHAPE | ({"n_heads": 2, "n_kv_heads": 1, "head_dim": 128} if normed else {})
    config = tiny_config(
        **shape, family=family, qkv_bias=bias, qk_norm=normed, tied=not bias,
        vocab_size=len(words.tokens),
    )  # fmt: skip
    return write_model(path / "m.gguf", config, tensors_of(random_model(config)), words, kind)


def converted(path: Path) -> Path:
    out = path.parent / "out"
    convert(plan_conversion(path), out, "float32", lambda done, total: None)
    return out


def same_logits(path: Path) -> None:
    model = load_model(converted(path))
    ids = random_ids(model, 2, 24)
    expected = logits_of(path, ids)
    assert expected.std() > 0.01
    torch.testing.assert_close(model(ids), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *(("llama", kind) for kind in WRITTEN),
        *((family, kind) for family in ("qwen2", "qwen3") for kind in ("F32", "Q8_0")),
    ],
)
def test_logits(tmp_path: Path, family: str, kind: str) -> None:
    same_logits(written(tmp_path, family, byte_level("qwen2"), kind))


def test_logits_of_k_quants(tmp_path: Path) -> None:
    """A file as llama.cpp mixes them: another type for each projection."""
    path = written(tmp_path, "llama", byte_level("qwen2"))
    projections = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up")
    for projection, kind in zip(projections, K_QUANTS, strict=True):
        retype(path, projection, Kind[kind], K_QUANTS[kind])
    assert set(K_QUANTS) < set(plan_conversion(path).types)
    same_logits(path)


def retype(path: Path, projection: str, kind: Any, scales: tuple[int, int]) -> None:
    """Put random blocks of `kind` in place of a projection's F32, which takes more room. The scales
    of a block become small numbers."""
    content, draw = bytearray(path.read_bytes()), np.random.default_rng(0)
    _, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    for tensor in read_container(path).tensors.values():
        if tensor.name.endswith(f".{projection}.weight"):
            n_blocks = tensor.shape[0] * tensor.shape[1] // 256
            blocks = draw.integers(0, 256, (n_blocks, n_bytes), np.uint8)
            size = (scales[1] - scales[0]) // 2
            small = draw.normal(0, 2e-4, (n_blocks, size)).astype("<f2")
            blocks[:, scales[0] : scales[1]] = small.view(np.uint8)
            content[tensor.start : tensor.start + blocks.size] = blocks.tobytes()
            stated = content.index(tensor.name.encode()) + len(tensor.name)
            at = stated + 4 + 8 * len(tensor.shape)
            content[at : at + 4] = int(kind).to_bytes(4, "little")
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("llama", byte_level("smollm")),
        ("llama", byte_level("llama-bpe")),
        ("llama", byte_level("gpt-2")),
        ("llama", sentencepiece()),
        ("qwen2", byte_level("qwen2", padding=5)),
    ],
    ids=["smollm", "llama-bpe", "gpt-2", "sentencepiece", "qwen2"],
)  # fmt: skip
def test_ids_of_200_texts(tmp_path: Path, family: str, words: Words) -> None:
    """Chats and plain texts. Where transformers' rules are not the original's, the original's."""
    path = written(tmp_path, family, words)
    ours, theirs = load_tokenizer(converted(path)), tokenizer_of(path, words)
    asked = texts()
    found = [list(ours.encode_chat([{"role": "user", "content": text}]).ids) for text in asked]
    assert found == chat_ids(theirs, asked)
    assert [ours.encode(text) for text in asked] == [list(theirs.encode(text)) for text in asked]
    again = transformers.AutoTokenizer.from_pretrained(path.parent / "out")
    assert chat_ids(again, asked) == found, "transformers reads the directory alike"
