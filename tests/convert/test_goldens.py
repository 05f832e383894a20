"""Against transformers, from what it made of small files (tests/goldens/make_gguf_goldens.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minisafe.checkpoint import load_model
from minisafe.convert import convert, plan_conversion
from minisafe.tokenizer import load_tokenizer
from tests.support.gguf_files import GOLDENS
from tests.support.texts import some_texts

KEPT = sorted((GOLDENS / "gguf").glob("*.gguf"))


def test_the_goldens_are_all_there() -> None:
    assert {path.stem.split("_")[0] for path in KEPT} == {"llama", "qwen2", "qwen3"}
    assert len(KEPT) == 5


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_logits_and_ids(tmp_path: Path, path: Path) -> None:
    plan = plan_conversion(path)
    assert plan.lost == ()
    convert(plan, tmp_path / "out", "float32", lambda done, total: None)
    golden = load_file(path.with_suffix(".safetensors"))
    logits = load_model(tmp_path / "out")(golden["ids"].long())
    torch.testing.assert_close(logits, golden["logits"], atol=1e-4, rtol=0)
    ours = load_tokenizer(tmp_path / "out")
    expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    chats = [ours.encode_chat([{"role": "user", "content": text}]).ids for text in some_texts()]
    assert [list(ids) for ids in chats] == expected["chats"]
    assert [ours.encode(text) for text in some_texts()] == expected["plain"]
