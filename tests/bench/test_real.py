"""The bench of a real model's cost: its cases, turns, rows, and the systems' own tokens."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from minisafe.session.named import shipped
from tests.support.tiny import load_bench

TINY = shipped("tiny")
if TINY is None:
    pytest.skip("the shipped model is not here", allow_module_level=True)


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_bench("real")


@pytest.fixture(scope="module")
def probe() -> ModuleType:
    return load_bench("real_probe")


@pytest.fixture
def quiet(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No process is started: each turn takes as long as the case's place, and is noted."""
    seen: list[str] = []

    def turn(case: Any, args: Any) -> dict[str, Any] | str:
        seen.append(case.name)
        if case.system == "profile":
            return "minisafe: not calibrated"
        ms = {"plain": 10.0, "safe": 12.0}[case.system] * (2 if case.dtype == "float32" else 1)
        return {"peak": ms * 2**20, "first_ms": ms, "token_ms": ms, "ids": [1, 2, len(case.dtype)]}

    @contextmanager
    def cases(args: Any) -> Iterator[list[Any]]:
        yield [bench.Case(system, dtype) for dtype in args.dtypes for system in args.systems]

    monkeypatch.setattr(bench, "turn", turn)
    monkeypatch.setattr(bench, "cases_of", cases)
    monkeypatch.setattr(bench.torch, "set_num_threads", lambda n: None)
    return seen


def options(path: Path, *more: str) -> list[str]:
    return ["some/profile", "--systems", "plain", "safe", "profile", "--new", "2", "--runs", "2",
            "--json", str(path), *more]  # fmt: skip


def test_a_run_takes_turns_and_writes_ratios(
    bench: ModuleType, quiet: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "rows.json"
    bench.main(options(path))
    result = json.loads(path.read_text(encoding="utf-8"))
    rows = {row["name"]: row["value"] for row in result["rows"]}
    assert rows["plain, float32"] == 50  # tokens per second, of 20 ms
    assert rows["safe, bfloat16, peak memory"] == 12
    assert rows["bfloat16: safe over plain, time"] == pytest.approx(1.2)
    assert rows["plain: float32 over bfloat16, time"] == 2
    assert rows["plain, bfloat16: first tokens equal to plain float32's, of 3"] == 2
    assert quiet[0] == "plain, float32"
    assert quiet[6] != "plain, float32"
    assert quiet.count("profile, float32") == 1  # it failed, so it has no more turns
    assert result["left_out"]["profile, float32"] == "minisafe: not calibrated"


def test_answers_and_directories_are_not_kept(
    bench: ModuleType, quiet: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "rows.json"
    bench.main(options(path))
    result = json.loads(path.read_text(encoding="utf-8"))
    assert all("ids" not in each for turns in result["samples"].values() for each in turns)
    assert result["settings"]["profile"] == "profile"
    assert str(tmp_path) not in path.read_text(encoding="utf-8")


def test_a_stopped_run_goes_on(
    bench: ModuleType, quiet: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.json"
    bench.main(options(path, "--runs", "1"))
    before = len(quiet)
    bench.main(options(path, "--runs", "3", "--resume"))
    samples = json.loads(path.read_text(encoding="utf-8"))["samples"]
    assert before == 6
    assert len(samples["plain, float32"]) == 3
    with pytest.raises(SystemExit) as stopped:
        bench.main(options(path, "--new", "3", "--resume"))
    assert stopped.value.code == 2
    assert "other systems or settings" in capsys.readouterr().err


def test_a_missing_gguf_is_said_at_once(
    bench: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.parse_args(["p", "--gguf", "nowhere.gguf"])
    assert stopped.value.code == 2
    assert "no such file" in capsys.readouterr().err


def test_a_quantised_file_is_read_token_by_token(bench: ModuleType) -> None:
    case = bench.Case("llama.cpp", "float32", Path("x.gguf"), quantised=True)
    assert case.name == "llama.cpp, as in --gguf"
    assert case.flags()[-4:] == ["--gguf", "x.gguf", "--block", "1"]
    assert "--block" not in bench.Case("llama.cpp", "bfloat16", Path("x.gguf")).flags()


def test_a_process_that_fails_gives_its_last_line(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = Namespace(returncode=2, stderr="a warning\nminisafe: no such profile\n", stdout="")
    monkeypatch.setattr(bench.subprocess, "run", lambda *_, **__: failed)
    args = bench.parse_args(["p"])
    assert bench.turn(bench.Case("plain", "float32"), args) == "minisafe: no such profile"


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped parts under the anchored rule, without a vector, which no peer has."""
    path = tmp_path_factory.mktemp("anchored") / "profile.json"
    assert TINY is not None
    parts = {
        name: os.path.relpath(TINY / name, path.parent) for name in ("base", "expert", "anchor")
    }
    settings = {"minisafe_profile": 1, "rule": "anchored", "sa_scale": 0, "sgds_lambda": 0.9}
    path.write_text(json.dumps(settings | parts))
    return path


def tokens(probe: ModuleType, profile: Path, system: str, n: int = 40) -> list[int]:
    words = [str(profile), "--system", system, "--prompt", "How do I clean a shelf?"]
    args = probe.parse_args([*words, "--new", str(n)])
    return list(islice(probe.system_of(args)(), n))


def test_an_answer_does_not_end(probe: ModuleType, profile: Path) -> None:
    assert len(tokens(probe, profile, "plain", 60)) == 60


@pytest.mark.live
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("plain", "transformers"), ("safe", "transformers-two"), ("anchored", "transformers-three")],
)
def test_the_peer_computes_the_same(
    probe: ModuleType, profile: Path, ours: str, theirs: str
) -> None:
    pytest.importorskip("transformers")
    assert tokens(probe, profile, ours, 12) == tokens(probe, profile, theirs, 12)


def test_three_streams_need_an_anchor(probe: ModuleType) -> None:
    assert TINY is not None
    with pytest.raises(SystemExit, match="names no anchor"):
        tokens(probe, TINY / "profile.json", "anchored")


def test_one_process_prints_its_numbers(
    probe: ModuleType,
    profile: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(probe.torch, "set_num_threads", lambda n: None)
    probe.main([str(profile), "--system", "anchored", "--new", "3"])
    found = json.loads(capsys.readouterr().out)
    assert len(found["ids"]) == 4
    assert found["first_ms"] > 0
    assert found["token_ms"] > 0
