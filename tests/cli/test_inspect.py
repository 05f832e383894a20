"""`inspect` shows what strangers wrote: no name or value commands the terminal or forges a line."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from minisafe.cli import main
from minisafe.cli.inspect import MOST_LETTERS, MOST_LINES, as_lines
from minisafe.cli.vouch import vouch_command
from minisafe.convert.rounded import directory_source, round_model
from minisafe.files.display import CONTROLS
from tests.support.gguf_files import GOLDENS
from tests.support.spoil import respell

HOSTILE = "a\x1b]0;title\x07\x1b[2J\nkind: forged\rforged\u2028kind: x\u202e\x9b\x7f"
ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "weights" / "tiny"
Run = Callable[..., tuple[int, str, str]]  # exit code, standard output, standard error


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main changes it
        monkeypatch.setattr("sys.argv", ["minisafe", "inspect", *map(str, args)])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


def test_foreign_text_is_single_harmless_lines(run: Run, tmp_path: Path) -> None:
    metadata = {HOSTILE: "1", "about": HOSTILE, "long": "x" * 1_000_000}
    save_file({"layer.1": torch.ones(2)}, tmp_path / "v.safetensors", metadata)
    code, out, _ = run(tmp_path / "v.safetensors")
    lines = out.splitlines()
    assert code == 0
    assert CONTROLS.search(out) is None
    assert [line for line in lines if line.startswith("kind:")] == ["kind: safety vector"]
    assert len(lines) == 7  # kind, path, hidden, norms and three of metadata
    assert max(map(len, lines)) < 2 * MOST_LETTERS
    code, exact, _ = run(tmp_path / "v.safetensors", "--json")
    assert json.loads(exact)["metadata.about"] == HOSTILE
    assert CONTROLS.search(exact) is None


def test_many_lines_are_counted() -> None:
    lines = as_lines({f"name{n}": n for n in range(MOST_LINES + 407)})
    assert len(lines) == MOST_LINES + 1
    assert lines[-1] == "... and 407 more (--json has all)"


def test_a_nested_name_cannot_pass_for_an_outer_one() -> None:
    lines = as_lines({"base": {"kind\nkind": "model", "  expert": {"a\n": 1}}})
    assert lines == ["base:", "  kind kind: model", "  expert:", "    a: 1"]


def test_errors_are_one_harmless_line(run: Run, directory: Path, tmp_path: Path) -> None:
    save_file({HOSTILE + "x" * 100_000: torch.ones(2)}, tmp_path / "v.safetensors")
    respell(directory, model_type=HOSTILE * 1000)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    for path in (tmp_path / "v.safetensors", directory, tmp_path / "adapter"):
        code, out, err = run(path)
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1
        assert CONTROLS.search(err.rstrip("\n")) is None
        assert len(err) < 4200


def test_a_model_is_described_by_its_headers(run: Run, directory: Path) -> None:
    """Nothing is mapped: a file cut short is refused all the same."""
    code, out, _ = run(directory, "--json")
    assert code == 0
    assert json.loads(out)["dtypes"] == ["float32"]
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    code, _, err = run(directory)
    assert code == 2
    assert "not a complete safetensors file" in err


def test_a_directory_of_adapters_is_told_by_its_parts(run: Run, tmp_path: Path) -> None:
    (tmp_path / "unsafe").mkdir()
    (tmp_path / "unsafe" / "adapter_config.json").write_text("{}")
    code, _, err = run(tmp_path)
    assert code == 2
    assert "it holds LoRA adapters, give one of them: unsafe" in err


def test_a_model_in_gguf_is_described_and_the_command_that_converts_it_named(run: Run) -> None:
    code, out, _ = run(GOLDENS / "gguf" / "llama_smollm_q4_1.gguf", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["kind"], found["architecture"]) == ("model in GGUF", "llama")
    assert found["types"]["Q4_1"] > 1
    assert "minisafe convert" in found["to use it"]


def test_a_model_of_get_is_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `chat --profile NAME`; `minisafe vouch` takes the name, too."""
    kept = tmp_path / "home" / "known"
    shutil.copytree(ROOT / "weights" / "tiny", kept)
    data = json.loads((kept / "profile.json").read_text()) | {"sha256": {}}
    (kept / "profile.json").write_text(json.dumps(data))
    monkeypatch.setenv("MINISAFE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("known")
    assert code == 0
    assert f"path: {kept}" in out
    done = CliRunner().invoke(vouch_command, ["known"])
    assert done.exit_code == 0
    assert json.loads((kept / "profile.json").read_text())["sha256"]


# ---- planned memory ----------------------------------------------------------------------------


def test_weights_that_are_stored_rounded_take_their_file(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "int8"
    round_model(directory_source(TINY / "base"), out, "int8", 0, None, lambda done, total: None)
    code, text, err = run(out, "--plan", "--json")
    assert code == 0, err
    plan = json.loads(text)["plan"]
    assert plan["weights"] == "int8"
    assert plan["bytes"]["weights"] == (out / "rounded.safetensors").stat().st_size
    assert plan["bytes"]["loading"] == 0


def test_a_plan_for_a_limit_is_of_what_would_be_chosen(run: Run) -> None:
    code, text, err = run(TINY, "--plan", "--memory-limit", "2GB", "--json")
    assert code == 0, err
    plan = json.loads(text)["plan"]
    assert (plan["context"], plan["cache_dtype"]) == (2048, "auto")
    assert plan["bytes"]["alone"] > 0


def test_a_plan_says_what_takes_memory(run: Run) -> None:
    code, out, err = run(TINY, "--plan", "--context", "512", "--rows", "2", "--json")
    assert code == 0, err
    plan = json.loads(out)["plan"]
    assert (plan["context"], plan["rows"], plan["weights"]) == (512, 2, "plain")
    parts = plan["bytes"]
    assert set(parts["caches"]) == {"base", "expert"}
    assert parts["total"] > parts["weights"] + sum(parts["caches"].values())
    fewer = json.loads(run(TINY, "--plan", "--context", "256", "--rows", "2", "--json")[1])["plan"]
    assert fewer["bytes"]["caches"]["base"] * 2 == parts["caches"]["base"]
    smaller = run(TINY, "--plan", "--cache-dtype", "int8", "--weights", "int8", "--json")[1]
    assert json.loads(smaller)["plan"]["bytes"]["weights"] < parts["weights"] / 3
    plain = json.loads(run(TINY, "--plan", "--no-safe", "--json")[1])["plan"]["bytes"]
    assert list(plain["caches"]) == ["base"]
    assert not plain["others"]


def test_a_plan_as_text_and_of_a_model_alone(run: Run) -> None:
    code, out, _ = run(TINY / "base", "--plan", "--dtype", "bfloat16")
    assert code == 0
    lines = out.splitlines()
    assert "bfloat16" in lines[0]
    assert lines[-1].strip().startswith("peak")
    assert all("MiB" in line for line in lines[1:])
    assert not any("expert" in line for line in lines)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--plan", "--context", "0"), "context is 0; expected 1 or more"),
        (("--plan", "--rows", "-1"), "rows is -1; expected 1 or more"),
        (("--context", "5"), "--context needs --plan"),
        (("--plan", "--memory-limit", "1MB"), "memory_limit is 1 MB, but 256 tokens need about"),
        (
            ("--plan", "--memory-limit", "much"),
            "memory_limit is 'much'; expected a size such as 900MB",
        ),
        (("--weights", "int8"), "--weights needs --plan"),
        (("--plan", "--kernels"), "give one of --plan and --kernels"),
    ],
)
def test_a_plan_that_cannot_be_is_one_line(run: Run, args: tuple[str, ...], said: str) -> None:
    code, out, err = run(TINY, *args)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
