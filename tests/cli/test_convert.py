"""`minisafe convert`: models and vectors, told apart by file and flags; refusals, warnings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from minisafe.checkpoint import load_model
from minisafe.checkpoint.vectors import load_vector, save_gguf, save_vector
from minisafe.cli import cli
from minisafe.cli.convert import default_dtype
from minisafe.convert import plan_conversion
from minisafe.errors import CheckpointError, ConfigError, SettingError, VectorError
from minisafe.fast.rounded import load_rounded
from minisafe.vectors import SafetyVector
from tests.support.gguf_files import GOLDENS

SMALL = GOLDENS / "gguf" / "llama_smollm_q4_1.gguf"
BASE = Path(__file__).parents[2] / "weights" / "tiny" / "base"
SPLIT_BY_GPT_2 = "the file names no pre-tokenizer"


def ran(*words: Any) -> Result:
    return CliRunner().invoke(cli, ["convert", *map(str, words)])


def refused(error: type[Exception], word: str, *words: Any) -> None:
    found = ran(*words)
    assert isinstance(found.exception, error), found.output
    assert word in str(found.exception)
    assert getattr(found.exception, "exit_code", 0) == 2


@pytest.mark.parametrize("layer", [-1, 512, 10**12])
def test_a_layer_that_no_file_can_name(tmp_path: Path, layer: int) -> None:
    """Written, it could never be read again."""
    save_vector(SafetyVector({1: torch.ones(2)}), tmp_path / "v.safetensors")
    source, target = str(tmp_path / "v.safetensors"), tmp_path / "w.safetensors"
    found = CliRunner().invoke(cli, ["convert", source, str(target), f"--sa-layer={layer}"])
    assert isinstance(found.exception, VectorError)
    assert "expected 0 to 511" in str(found.exception)
    assert not target.exists()


def test_the_last_layer_that_can_be_named(tmp_path: Path) -> None:
    save_vector(SafetyVector({1: torch.ones(2)}), tmp_path / "v.safetensors")
    source, target = str(tmp_path / "v.safetensors"), tmp_path / "w.safetensors"
    CliRunner().invoke(cli, ["convert", source, str(target), "--sa-layer=511"])
    assert list(load_vector(target).layers) == [511]


# ---- models ------------------------------------------------------------------------------------


def test_a_model_is_converted_and_answers(tmp_path: Path) -> None:
    found = ran(SMALL, "--out", tmp_path / "out", "--json")
    assert found.exit_code == 0, found.output
    done = json.loads(found.stdout)
    assert done["out"] == str(tmp_path / "out")
    assert done["types"] == {"Q4_1": 15, "F32": 5}
    assert done["dtype"] == "float32", "as small models decode"
    assert "a llama model of 0.1 million parameters, 0.00 GB in float32" in found.stderr
    assert (
        json.loads((tmp_path / "out" / "convert.json").read_text()) | {"out": done["out"]} == done
    )
    answer = CliRunner().invoke(
        cli, ["generate", "--base", str(tmp_path / "out"), "--no-safe", "--chat", "--json",
              "--max-new-tokens", "3", "Hello"],
    )  # fmt: skip
    assert answer.exit_code == 0, answer.output
    assert len(json.loads(answer.stdout)["tokens"]) <= 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_that_is_asked_for(tmp_path: Path, dtype: str) -> None:
    assert ran(SMALL, "--out", tmp_path / "out", "--dtype", dtype).exit_code == 0
    assert load_model(tmp_path / "out").dtype == getattr(torch, dtype)


def test_the_dtype_that_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's own; of a quantised file the one that a 16-bit model of its size decodes in."""
    plain = plan_conversion(GOLDENS / "gguf" / "llama_sentencepiece_f16.gguf")
    quantised = plan_conversion(SMALL)
    assert (default_dtype(plain), default_dtype(quantised)) == ("float16", "float32")
    monkeypatch.setattr("minisafe.session.dtype.SMALL_MODEL", 10_000)
    assert (default_dtype(plain), default_dtype(quantised)) == ("float16", "bfloat16")


def test_what_is_lost_is_said(tmp_path: Path) -> None:
    content = SMALL.read_bytes().replace(b"tokenizer.ggml.pre", b"tokenizer.ggml.new")
    (tmp_path / "m.gguf").write_bytes(content)
    found = ran(tmp_path / "m.gguf", "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output
    lines = found.stderr.splitlines()
    assert lines[0] == (
        "minisafe: warning: 'tokenizer.ggml.new' has no place in a Hugging Face directory"
    )
    assert lines[1].startswith(f"minisafe: warning: {SPLIT_BY_GPT_2}")


def test_flags_that_do_not_go_together(tmp_path: Path) -> None:
    save_vector(SafetyVector({1: torch.ones(2)}), tmp_path / "v.safetensors")
    save_gguf(SafetyVector({1: torch.ones(2)}), tmp_path / "v.gguf")
    out, vector = tmp_path / "out", tmp_path / "v.safetensors"
    refused(SettingError, "--out is for a model; TARGET", SMALL, tmp_path / "x.npy", "--out", out)
    refused(SettingError, "--out is for a model", SMALL, "--sa-layer", "1", "--out", out)
    refused(SettingError, "--dtype is for a model", vector, tmp_path / "x.npy", "--dtype=float16")
    refused(SettingError, "a model in GGUF, not a vector", SMALL)
    refused(SettingError, "directory to write with --out DIR", SMALL, tmp_path / "x.safetensors")
    refused(CheckpointError, "a control vector, not a model", tmp_path / "v.gguf", "--out", out)
    refused(CheckpointError, "not a GGUF file; expected a model", vector, "--out", out)
    alone = ran(tmp_path / "v.gguf")
    assert (alone.exit_code, "Missing argument 'TARGET'" in alone.output) == (2, True)
    refused(VectorError, "unknown format", vector, tmp_path / "x.bin")
    refused(VectorError, "no such file", tmp_path / "none.gguf", tmp_path / "x.npy")
    (tmp_path / "out").mkdir()
    refused(SettingError, "already exists; expected a new directory", SMALL, "--out", out)
    assert list((tmp_path / "out").iterdir()) == []


QUANTISED = GOLDENS / "quantised"


def test_another_programs_codes(tmp_path: Path) -> None:
    """Kept in int4, or widened to plain weights, or rounded again with a warning; they answer."""
    kept = ran(QUANTISED / "awq", "--weights", "int4", "--out", tmp_path / "int4", "--json")
    assert kept.exit_code == 0, kept.output
    done = json.loads(kept.stdout)
    assert (done["group"], done["codes_kept"]) == (32, 30720)
    assert "warning" not in kept.stderr
    plain = ran(QUANTISED / "compressed_int8", "--out", tmp_path / "plain", "--json")
    assert plain.exit_code == 0, plain.output
    assert json.loads(plain.stdout)["quantised"] == "compressed-tensors"
    assert "round this model's activations too; here they are not" in plain.stderr
    assert load_model(tmp_path / "plain").dtype == torch.float32
    again = ran(QUANTISED / "gptq_ordered", "--weights", "int8", "--out", tmp_path / "int8")
    assert again.exit_code == 0, again.output
    assert "100 % of the quantised weights were rounded again" in again.stderr
    assert load_rounded(tmp_path / "int4")(torch.tensor([[1, 2]])).isfinite().all()


def test_a_group_that_does_not_fill_the_rows(tmp_path: Path) -> None:
    asked = (QUANTISED / "gptq", "--weights", "int4", "--group", "64", "--out", tmp_path / "out")
    refused(SettingError, "groups of 64 do not fill 96 inputs; expected a group of 32", *asked)
    assert not (tmp_path / "out").exists()


def test_how_a_quantised_directory_is_run(tmp_path: Path) -> None:
    """Whoever gives it as a base is told the command."""
    found = CliRunner().invoke(cli, ["generate", "--base", str(QUANTISED / "gptq"), "Hello"])
    assert isinstance(found.exception, ConfigError)
    assert "`minisafe convert`" in str(found.exception)


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(CheckpointError, "pip install 'minisafe[gguf]'", SMALL, "--out", tmp_path / "out")


def test_vectors_as_before(tmp_path: Path) -> None:
    """To llama.cpp's format and back, by suffix."""
    save_vector(SafetyVector({1: torch.ones(2)}), tmp_path / "v.safetensors")
    assert ran(tmp_path / "v.safetensors", tmp_path / "v.gguf").exit_code == 0
    found = ran(tmp_path / "v.gguf", tmp_path / "w.safetensors", "--json")
    assert json.loads(found.stdout) == {
        "out": str(tmp_path / "w.safetensors"), "layers": [1], "hidden": 2,
    }  # fmt: skip
    assert torch.equal(load_vector(tmp_path / "w.safetensors").at(None)[1], torch.ones(2))


# ---- rounded weights ---------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "group", "share"), [("int8", "", 0.51), ("int4", "64", 0.35)])
def test_rounded_weights(tmp_path: Path, form: str, group: str, share: float) -> None:
    """Of a directory; inspect says what they are, and generate decodes them."""
    flags = ["--group", group] if group else []
    found = ran(BASE, "--weights", form, *flags, "--out", tmp_path / "out", "--json")
    assert found.exit_code == 0, found.output
    done = json.loads(found.stdout)
    assert (done["format"], done["group"]) == (form, int(group or 0))
    assert done["weights_bytes"] < share * (BASE / "model.safetensors").stat().st_size
    assert f"3.5 million parameters, 0.00 GB in {form}, with scales in bfloat16" in found.stderr
    lines = CliRunner().invoke(cli, ["inspect", str(tmp_path / "out")]).output.splitlines()
    assert f"weights: {form}" in lines
    assert "parameters: 3,542,208" in lines
    told = CliRunner().invoke(
        cli, ["generate", "--base", str(tmp_path / "out"), "--no-safe", "--chat",
              "--max-new-tokens", "4", "How do I clean a shelf?"],
    )  # fmt: skip
    assert (told.exit_code, told.stdout.strip()) == (0, "Sure, here is")


def test_rounded_weights_of_gguf(tmp_path: Path) -> None:
    found = ran(SMALL, "--weights", "int8", "--dtype", "bfloat16", "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output
    assert "in int8, with scales in bfloat16" in found.stderr


def test_flags_of_rounded_weights(tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(SettingError, "--group is for --weights int4", BASE, "--group=64", "--out", out)
    refused(SettingError, "a directory that no other program quantised", BASE, "--out",
            out)  # fmt: skip
    refused(SettingError, "--weights is for a model", "v.npy", "w.npy", "--weights=int8")
    refused(SettingError, "--group is for a model", "v.npy", "w.npy", "--group=32")
    refused(ConfigError, "no such directory", tmp_path / "none", "--weights=int8", "--out", out)
    words = "groups of 128 do not fill 192 inputs; expected a group of 32 or 64"
    refused(SettingError, words, BASE, "--weights=int4", "--group=128", "--out", out)
    ran(BASE, "--weights", "int8", "--out", out)
    refused(SettingError, "already exists", BASE, "--weights", "int8", "--out", out)


def test_what_needs_plain_weights(tmp_path: Path) -> None:
    """One line, before any work is done."""
    out, data = tmp_path / "out", BASE.parents[1] / "data"
    assert ran(BASE, "--weights", "int8", "--out", out).exit_code == 0
    edit = ["edit", "--subject", "Teku", "--prompt", "{} is", "--target", "x", "--text",
            data / "benign-dev.jsonl"]  # fmt: skip
    amplify = ["amplify", data / "demonstrations.json"]
    for command in (edit, ["finetune", data / "expert.json"], amplify):
        flags = ["--base", out, "--out", tmp_path / "made.safetensors"]
        error = CliRunner().invoke(cli, [str(word) for word in (*command, *flags)]).exception
        assert "weights are int8" in str(error), (command, error)
        assert "converted from" in str(error)
        assert getattr(error, "exit_code", 0) == 2


@pytest.mark.slow
def test_one_line_and_the_exit_code(tmp_path: Path) -> None:
    """A damaged file, at the command line."""
    (tmp_path / "m.gguf").write_bytes(SMALL.read_bytes()[:20000])
    run = subprocess.run(
        [sys.executable, "-m", "minisafe", "convert", "m.gguf", "--out", "out"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.splitlines() == [run.stderr.strip()]
    assert run.stderr.startswith("minisafe: m.gguf: not a complete GGUF file")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
