"""Directories of rounded weights: what they hold, and that they decode as int8 in memory does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minisafe.checkpoint import fingerprint, load_model, save_model
from minisafe.checkpoint.rounded import WEIGHTS, read_form
from minisafe.convert import convert, plan_conversion
from minisafe.convert.rounded import Source, directory_source, gguf_source, round_model
from minisafe.errors import CheckpointError, ConfigError, SettingError
from minisafe.fast.prepare import prepare
from minisafe.fast.rounded import load_rounded
from minisafe.model import Llama
from minisafe.rounding import dequantize, dequantize_groups
from minisafe.session.fingerprints import files_hash
from tests.support.gguf_files import GOLDENS
from tests.support.spoil import refuses
from tests.support.tiny import random_model, tensors_of, tiny_config

IDS = torch.arange(1, 23)[None]
SHAPE = {"hidden": 64, "intermediate": 128, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16}


def silent(done: int, total: int) -> None:
    """No progress."""


def rounded(source: Path | Source, out: Path, form: str = "int8", dtype: str | None = None) -> Path:
    made = directory_source(source) if isinstance(source, Path) else source
    round_model(made, out, form, 32 if form == "int4" else 0, dtype, silent)
    return out


def wide(path: Path, dtype: str = "bfloat16", seed: int = 0, **shape: Any) -> Path:
    """A random model's directory, with a file beside it."""
    config = replace(tiny_config(**SHAPE | shape), dtype=dtype)
    save_model(random_model(config, seed).to(getattr(torch, dtype)), path)
    (path / "LICENSE").write_text("free")
    return path


@pytest.mark.parametrize("name", ["llama2", "llama3_sharded", "llama_bias", "qwen2", "qwen3",
                                  "granite", "smollm3", "phi3"])  # fmt: skip
def test_int8_decodes_as_in_memory(tmp_path: Path, name: str) -> None:
    """Bit for bit, for every family: tied and untied, biases, norms of heads, fused projections."""
    source = GOLDENS / name
    if not source.is_dir():
        pytest.skip("no such golden")
    for dtype in ("float32", "bfloat16"):
        memory = prepare(load_model(source, dtype), "int8")
        disk = load_rounded(rounded(source, tmp_path / dtype, dtype=dtype))
        assert (disk.weights, disk.dtype) == ("int8", memory.dtype)
        assert torch.equal(disk(IDS % 30), memory(IDS % 30))


def test_what_the_file_holds(tmp_path: Path) -> None:
    """The layout that docs/gguf.md states, and every weight within its bound."""
    source = wide(tmp_path / "wide", tied=False)
    plain = tensors_of(load_model(source))
    for form in ("int8", "int4"):
        found = load_file(rounded(source, tmp_path / form, form) / WEIGHTS)
        up, head = "model.layers.0.mlp.up_proj.", "lm_head."
        assert torch.equal(found["model.norm.weight"], plain["model.norm.weight"])
        assert torch.equal(found["model.embed_tokens.weight"], plain["model.embed_tokens.weight"])
        assert found[head + "weight"].dtype == torch.int8
        undo = dequantize if form == "int8" else dequantize_groups
        values = undo(found[up + "weight"], found[up + "scales"])
        error = (values - plain[up + "weight"].float()).abs().max()
        assert error < plain[up + "weight"].float().abs().max() / (200 if form == "int8" else 10)
        with safe_open(tmp_path / form / WEIGHTS, "pt") as file:
            assert (
                len(file.keys()) == len(plain) + sum(each.dim() == 2 for each in plain.values()) - 1
            )


def test_what_is_carried_over(tmp_path: Path) -> None:
    source = wide(tmp_path / "wide")
    out = rounded(source, tmp_path / "out")
    names = {path.name for path in out.iterdir()}
    assert names == {"config.json", "LICENSE", WEIGHTS}, "no plain weights"
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "minisafe"
    form = read_form(out)
    assert form is not None
    assert form.fingerprint == fingerprint(load_model(source)) == form.files == files_hash(source)
    assert read_form(source) is None


def test_the_hash_of_fused_files(tmp_path: Path) -> None:
    """Where files hold other tensors than the model, the calibration knows the files."""
    if not (GOLDENS / "phi3").is_dir():
        pytest.skip("no such golden")
    out = rounded(GOLDENS / "phi3", tmp_path / "out", dtype="float32")
    assert files_hash(out) == files_hash(GOLDENS / "phi3")
    assert fingerprint(load_rounded(out)) == fingerprint(load_model(GOLDENS / "phi3"))


def test_int4_has_an_identity_of_its_own(tmp_path: Path) -> None:
    source = wide(tmp_path / "wide")
    out = rounded(source, tmp_path / "out", "int4")
    hashes = {fingerprint(load_rounded(out)), files_hash(out)}
    assert len(hashes) == 1
    assert hashes.isdisjoint({files_hash(source)})


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_plain_model_of_the_rounded_weights(tmp_path: Path, form: str, tied: bool) -> None:
    """The slow reference: every rounded weight written out, in the plain model."""
    source = wide(tmp_path / "wide", "float32", tied=tied)
    out, model = rounded(source, tmp_path / "out", form, "float32"), load_model(source)
    found = load_file(out / WEIGHTS)
    for name in tensors_of(model):
        scales = found.get(name.removesuffix("weight") + "scales")
        if scales is not None:
            undo = dequantize if scales.dim() == 1 else dequantize_groups
            model.put(name, undo(found[name], scales))
    torch.testing.assert_close(load_rounded(out)(IDS), model(IDS), atol=1e-3, rtol=1e-4)


def test_of_gguf_as_of_the_directory_made_of_it(tmp_path: Path) -> None:
    plan = plan_conversion(GOLDENS / "gguf" / "llama_smollm_q4_1.gguf")
    convert(plan, tmp_path / "plain", "bfloat16", silent)
    with plan.container.path.open("rb") as file:
        direct = rounded(gguf_source(plan, "bfloat16", file), tmp_path / "direct")
    by_way = rounded(tmp_path / "plain", tmp_path / "by way")
    assert (direct / WEIGHTS).read_bytes() == (by_way / WEIGHTS).read_bytes()
    assert read_form(direct) == read_form(by_way)
    assert (direct / "tokenizer.json").is_file()


def test_bf16_scales_widen_and_nothing_else(tmp_path: Path) -> None:
    out = rounded(wide(tmp_path / "wide"), tmp_path / "out")
    assert load_rounded(out, "float32").dtype == torch.float32
    narrow = rounded(wide(tmp_path / "w32", "float32"), tmp_path / "o32")
    refuses(SettingError, lambda: load_rounded(narrow, "bfloat16"), "decode in float32, not bfl")
    refuses(SettingError, lambda: load_rounded(out, "float16"), "bfloat16 or float32, not float16")
    refuses(SettingError, lambda: load_rounded(out, device="meta"), "need a CPU")


# ---- refusals ----------------------------------------------------------------------------------


def test_what_cannot_be_rounded(tmp_path: Path) -> None:
    half = wide(tmp_path / "half", "float16")
    refuses(SettingError, lambda: rounded(half, tmp_path / "o"), "not float16; give --dtype bfloat")
    odd = wide(tmp_path / "odd", intermediate=100)
    words = ("down_proj", "groups of 32 do not fill 100 inputs", "use int8")
    refuses(SettingError, lambda: rounded(odd, tmp_path / "o", "int4"), *words)
    again = rounded(half, tmp_path / "once", dtype="bfloat16")
    refuses(CheckpointError, lambda: rounded(again, tmp_path / "o"), "int8, for decoding only")
    assert not (tmp_path / "o").exists()


def test_values_that_are_not_finite_leave_nothing(tmp_path: Path) -> None:
    source = wide(tmp_path / "wide", "float32")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = torch.nan
    save_file(tensors, source / "model.safetensors")
    words = "up_proj.weight has NaN or infinite values"
    refuses(CheckpointError, lambda: rounded(source, tmp_path / "out"), words)
    assert [path.name for path in tmp_path.iterdir()] == ["wide"]


def test_plain_weights_are_not_made_of_it(tmp_path: Path) -> None:
    out = rounded(wide(tmp_path / "wide"), tmp_path / "out")
    refuses(CheckpointError, lambda: load_model(out), "int8, for decoding only", "converted from")
    model: Llama = load_rounded(out)
    with pytest.raises(SettingError, match="for decoding only"):
        model.tensors()
    assert prepare(model, "auto") is prepare(model, "int8") is model
    with pytest.raises(SettingError, match="int8 already"):
        prepare(model, "packed")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("version", 2, "version 2; this minisafe reads version 1"), ("format", "int3", "format is"),
     ("group", 32, "group is 32; expected 0"), ("group", False, "group is False"),
     ("dtype", "float16", "bfloat16 or float32"), ("rounded", 7, "is no hash")],
)  # fmt: skip
def test_a_form_that_is_not_read(tmp_path: Path, key: str, value: object, words: str) -> None:
    out = rounded(wide(tmp_path / "wide"), tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"][key] = value
    (out / "config.json").write_text(json.dumps(config))
    refuses(ConfigError, lambda: load_rounded(out), "quantization_config", words)


def test_other_weights_than_the_config_was_written_for(tmp_path: Path) -> None:
    """The identity of the plain weights cannot be carried to others by mistake."""
    one = rounded(wide(tmp_path / "a"), tmp_path / "one")
    two = rounded(wide(tmp_path / "b", seed=1), tmp_path / "two")
    shutil.copyfile(two / WEIGHTS, one / WEIGHTS)
    refuses(CheckpointError, lambda: load_rounded(one), "not the weights that config.json was")


def test_tensors_that_are_not_as_stated(tmp_path: Path) -> None:
    out = rounded(wide(tmp_path / "wide"), tmp_path / "out")
    whole = load_file(out / WEIGHTS)
    name = "model.layers.0.self_attn.q_proj.scales"
    for change, words in (
        ({name: whole[name][:-1].clone()}, "expected bfloat16 of"),
        ({name: whole[name].float()}, "is float32"),
        ({"x": whole[name].clone()}, "unexpected tensors: x"),
        ({name: whole[name] * torch.inf}, "NaN or infinite"),
    ):
        save_file(whole | change, out / WEIGHTS)
        refuses(CheckpointError, lambda: load_rounded(out), words)
    save_file({key: each for key, each in whole.items() if key != name}, out / WEIGHTS)
    refuses(CheckpointError, lambda: load_rounded(out), "missing tensors", name)
    (out / WEIGHTS).unlink()
    refuses(CheckpointError, lambda: load_rounded(out), "no such file; int8 weights are in it")
