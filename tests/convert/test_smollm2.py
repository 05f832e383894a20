"""A real file, where one is at hand: MINISAFE_SMOLLM2 names SmolLM2-135M-Instruct in GGUF."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from minisafe.checkpoint import load_model
from minisafe.convert import convert, plan_conversion
from minisafe.tokenizer import load_tokenizer
from tests.support.gguf_files import Words
from tests.support.peers_gguf import chat_ids, logits_of, tokenizer_of
from tests.support.texts import texts

FILE = os.environ.get("MINISAFE_SMOLLM2")
pytestmark = [
    pytest.mark.live, pytest.mark.slow,
    pytest.mark.skipif(not FILE, reason="MINISAFE_SMOLLM2 is not set"),
]  # fmt: skip
SMOLLM = Words("gpt2", (), (), {}, "smollm")
# of the original's tokenizer.json
SPLIT = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("smollm2") / "out"
    plan = plan_conversion(Path(str(FILE)))
    assert plan.lost == ()
    convert(plan, path, "float32", lambda done, total: None)
    return path


def test_ids_of_200_texts(out: Path) -> None:
    """With the original's split put in, transformers' ids; without, only texts with digits
    differ."""
    pytest.importorskip("transformers")
    ours, asked = load_tokenizer(out), texts()
    found = [list(ours.encode_chat([{"role": "user", "content": text}]).ids) for text in asked]
    assert found == chat_ids(tokenizer_of(Path(str(FILE)), SMOLLM), asked)
    plain = chat_ids(tokenizer_of(Path(str(FILE)), Words("gpt2", (), (), {}, None)), asked)
    differing = [text for text, a, b in zip(asked, found, plain, strict=True) if a != b]
    assert differing
    assert all(any(letter.isnumeric() for letter in text) for text in differing)


def test_the_split_is_the_original_s(out: Path) -> None:
    made = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))["pre_tokenizer"]
    made["pretokenizers"][1]["trim_offsets"] = True  # of offsets, which change no id
    assert made == SPLIT


def test_logits(out: Path) -> None:
    pytest.importorskip("transformers")
    model, tokenizer = load_model(out), load_tokenizer(out)
    for text in ("What is the capital of France?", texts()[150]):
        ids = torch.tensor([tokenizer.encode_chat([{"role": "user", "content": text}]).ids])
        torch.testing.assert_close(model(ids), logits_of(Path(str(FILE)), ids), atol=1e-4, rtol=0)
