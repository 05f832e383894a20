"""`bench/speed.py` runs, writes its rows, and its systems compute the same answers."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SPEED = Path(__file__).parent.parent / "bench" / "speed.py"
PROMPT = tuple(range(3, 20))


@pytest.fixture(scope="module")
def speed() -> ModuleType:
    spec = importlib.util.spec_from_file_location("speed", SPEED)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["speed"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def answers(systems: dict[str, Any], n: int = 12) -> dict[str, list[int]]:
    return {name: list(islice(system(), n)) for name, system in systems.items()}


def test_rows_are_written(
    speed: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "import_seconds", lambda runs: 0.1)  # two interpreters a run
    monkeypatch.setattr(speed.torch, "set_num_threads", lambda n: None)
    path = tmp_path / "deep" / "rows.json"
    options = ["--shape", "tiny", "--prompt", "9", "--new", "3", "--runs", "2"]
    speed.main([*options, "--buffer-mib", "1", "--json", str(path)])
    result = json.loads(path.read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in result["rows"]}
    for row in result["rows"]:
        assert list(row) == ["name", "value", "unit", "target", "holds"]
        assert row["value"] > 0
        assert (row["target"] is None) == (row["holds"] is None)
    assert rows["tiny: safe (LoRA) over plain, time"]["target"] == "<= 1.3"
    assert rows["tiny: plain"]["unit"] == "tokens/s"
    assert len(result["samples"]["tiny"]["plain"]) == 2
    assert {"date", "hardware", "versions", "settings"} <= set(result)


@pytest.mark.parametrize(
    ("target", "value", "holds"),
    [("<= 1.3", 1.3, True), ("<= 1.3", 1.31, False), ("> 1.0", 1.0, False), (None, 1.0, None)],
)
def test_targets(speed: ModuleType, target: str | None, value: float, holds: bool | None) -> None:
    assert speed.make_row("x", value, "x", target)["holds"] is holds


def test_import_time_is_measured(speed: ModuleType) -> None:
    assert 0 < speed.import_seconds(1) < 60


def test_fused_and_separate_give_the_same_tokens(speed: ModuleType) -> None:
    found = answers(speed.minisafe_systems(speed.random_subject(speed.SHAPES["tiny"]), PROMPT, 12))
    assert found[speed.SAFE] == found[speed.SEPARATE]
    assert found[speed.SAFE] != found[speed.PLAIN]


def test_a_missing_peer_is_skipped_aloud(
    speed: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed.util, "find_spec", lambda name: None)
    assert speed.transformers_systems(None, PROMPT) == {}
    assert "transformers is not installed here" in capsys.readouterr().out


@pytest.mark.live
def test_transformers_gives_the_same_tokens(speed: ModuleType) -> None:
    pytest.importorskip("transformers")
    subject = speed.random_subject(speed.SHAPES["tiny"])
    unsteered = replace(subject, steering=replace(subject.steering, scale=0.0))
    ours = answers(speed.minisafe_systems(unsteered, PROMPT, 12))
    theirs = answers(speed.transformers_systems(unsteered, PROMPT))
    assert theirs[speed.PEER] == ours[speed.PLAIN]
    assert theirs[speed.PEERS] == ours[speed.SAFE]
