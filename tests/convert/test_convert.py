"""Models of transformers, written as GGUF and converted back: the same bits, the same logits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from minisafe.checkpoint import load_model
from minisafe.checkpoint.config import load_config
from minisafe.convert import RECORD, convert, plan_conversion
from minisafe.errors import CheckpointError, MinisafeError, OutputError
from minisafe.model import Llama
from minisafe.tokenizer import load_tokenizer
from tests.support.gguf_files import GOLDENS, bf16, byte_level, letters, write_model
from tests.support.spoil import refuses
from tests.support.tiny import random_ids, random_model, tensors_of, tiny_config


def converted(path: Path, out: Path, dtype: str = "float32") -> Path:
    """The directory made of a file."""
    convert(plan_conversion(path), out, dtype, lambda done, total: None)
    return out


def file_of(model: Llama, directory: Path, **how: Any) -> Path:
    """A model's file, with tokens that matter to nobody."""
    words = letters(model.config.vocab_size)
    return write_model(directory / "m.gguf", model.config, tensors_of(model), words, **how)


@pytest.mark.parametrize(
    "name", ["llama2", "llama3", "llama3_sharded", "llama_bias", "qwen2", "qwen3"]
)
def test_what_transformers_computed(tmp_path: Path, name: str) -> None:
    """Every family and feature of the goldens: grouped heads, tied and untied heads, biases, an
    explicit head size, Llama 3's scaling."""
    original = load_model(GOLDENS / name, "float32")
    found = load_model(converted(file_of(original, tmp_path), tmp_path / "out"))
    expected = replace(original.config, dtype="float32")
    assert found.config == expected
    ours, theirs = tensors_of(found), tensors_of(original)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    golden = load_file(GOLDENS / name / "golden.safetensors")
    torch.testing.assert_close(found(golden["ids"].long()), golden["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes(tmp_path: Path, kind: str, dtype: str) -> None:
    """What is written is what float32 rounds to, and only a plain file has a dtype of its own."""
    model = random_model(tiny_config(hidden=32, intermediate=64))
    plain = bf16(tensors_of(model))
    write_model(tmp_path / "m.gguf", model.config, plain, letters(67), kind)
    plan = plan_conversion(tmp_path / "m.gguf")
    owns = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    assert plan.plain_dtype == owns.get(kind)
    found = load_file(converted(tmp_path / "m.gguf", tmp_path / "out", dtype) / "model.safetensors")
    exact = load_file(converted(tmp_path / "m.gguf", tmp_path / "exact") / "model.safetensors")
    for name, tensor in exact.items():
        assert torch.equal(found[name], tensor.to(getattr(torch, dtype)))
    if kind in ("F32", "BF16"):
        assert all(torch.equal(exact[name], plain[name]) for name in plain)
    assert load_config(tmp_path / "out").dtype == dtype


def test_nothing_depends_on_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads are put in order block by block: with one head in a block, and with all."""
    model = random_model(
        tiny_config(n_heads=6, n_kv_heads=3, head_dim=8, qkv_bias=True, o_bias=True)
    )
    path = file_of(model, tmp_path)
    whole = converted(path, tmp_path / "whole")
    monkeypatch.setattr("minisafe.convert.values.AT_ONCE", 40)
    parts = converted(path, tmp_path / "parts")
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_the_directory_chats(tmp_path: Path) -> None:
    """Config, sampling, special tokens and template: all that a session needs."""
    words = byte_level("smollm")
    model = random_model(tiny_config(vocab_size=len(words.tokens), tied=True))
    write_model(
        tmp_path / "m.gguf", model.config, tensors_of(model), words,
        general__name="A name", general__license="mit", tokenizer__ggml__eot_token_id=0,
        general__sampling__temp=0.7, general__sampling__top_k=40,
    )  # fmt: skip
    out = converted(tmp_path / "m.gguf", tmp_path / "out")
    sampling = json.loads((out / "generation_config.json").read_text())
    assert sampling == {
        "bos_token_id": 1, "eos_token_id": [2, 0], "do_sample": True, "temperature": 0.7,
        "top_k": 40,
    }  # fmt: skip
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == [2, 0]
    tokenizer = load_tokenizer(out)
    assert tokenizer.special == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert set(tokenizer.control) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    ids = tokenizer.encode_chat([{"role": "user", "content": "Hello <|im_end|> 12"}]).ids
    assert tokenizer.decode_all(ids).startswith("<|im_start|>user\nHello <|im_end|> 12<|im_end|>")
    assert ids.count(2) == 1, "what a user types stays text"
    record = json.loads((out / RECORD).read_text())
    assert record["general"]["license"] == "mit"
    assert record["types"] == {"F32": len(tensors_of(model))}
    assert record["lost"] == []
    logits = load_model(out)(random_ids(model, 1, 5))
    assert bool(logits.isfinite().all())


def test_several_templates(tmp_path: Path) -> None:
    """Named ones come along, and the default is the one that is used."""
    words = byte_level("qwen2")
    model = random_model(tiny_config(family="qwen2", qkv_bias=True, vocab_size=len(words.tokens)))
    path = tmp_path / "m.gguf"
    write_model(path, model.config, tensors_of(model), words, tokenizer__chat_template__rag="R")
    out = converted(path, tmp_path / "out")
    data = json.loads((out / "tokenizer_config.json").read_text())
    assert {each["name"] for each in data["chat_template"]} == {"default", "rag"}
    assert load_tokenizer(out).render([{"role": "user", "content": "x"}]).startswith("<|im_start|>")


# ---- what goes wrong ---------------------------------------------------------------------------


def left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_is_left_of_a_stopped_conversion(
    tmp_path: Path, error: type[BaseException]
) -> None:
    plan = plan_conversion(file_of(random_model(tiny_config()), tmp_path))

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise error

    with pytest.raises(error):
        convert(plan, tmp_path / "out", "float32", stop)
    assert left_in(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
def test_values_that_are_not_finite(tmp_path: Path, value: float, word: str) -> None:
    model = random_model(tiny_config())
    tensors = tensors_of(model) | {"model.norm.weight": torch.full((32,), value)}
    write_model(tmp_path / "m.gguf", model.config, tensors, letters(67))
    plan = plan_conversion(tmp_path / "m.gguf")
    call = lambda: convert(plan, tmp_path / "out", "float32", lambda done, total: None)  # noqa: E731
    refuses(CheckpointError, call, "m.gguf: model.norm.weight has NaN or infinite", word)
    assert left_in(tmp_path) == ["m.gguf"]


def test_values_beyond_a_dtype(tmp_path: Path) -> None:
    model = random_model(tiny_config())
    tensors = tensors_of(model) | {"model.norm.weight": torch.full((32,), 1e5)}
    write_model(tmp_path / "m.gguf", model.config, tensors, letters(67))
    plan = plan_conversion(tmp_path / "m.gguf")
    call = lambda: convert(plan, tmp_path / "out", "float16", lambda done, total: None)  # noqa: E731
    refuses(CheckpointError, call, "model.norm.weight", "beyond the range of float16")


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a byte is written, with the size that is needed."""
    plan = plan_conversion(file_of(random_model(tiny_config()), tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(OutputError, match=r"needs 0\.0 GB.*--dtype bfloat16"):
        convert(plan, tmp_path / "out", "float32", lambda done, total: None)
    assert left_in(tmp_path) == ["m.gguf"]


def test_every_beginning_of_a_file_is_refused(tmp_path: Path) -> None:
    """A download that stopped, wherever."""
    content = file_of(random_model(tiny_config(n_layers=1)), tmp_path).read_bytes()
    for length in range(0, len(content), 1 + len(content) // 60):
        (tmp_path / "m.gguf").write_bytes(content[:length])
        with pytest.raises(MinisafeError) as raised:
            plan_conversion(tmp_path / "m.gguf")
        assert raised.value.exit_code == 2
        assert "GGUF" in str(raised.value)
