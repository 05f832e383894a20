"""The benches run, write their rows, and their systems compute the same answers."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parent.parent / "bench"
ROW = ["name", "value", "unit", "target", "holds"]
PROMPT = tuple(range(3, 20))


def load(name: str) -> ModuleType:
    """A bench as its siblings import it, from its own directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def speed() -> ModuleType:
    return load("speed")


@pytest.fixture(scope="module")
def memory() -> ModuleType:
    return load("memory")


@pytest.fixture(scope="module")
def plot() -> ModuleType:
    return load("plot")


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
        assert list(row) == ROW
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


# ---- limits ------------------------------------------------------------------------------------


def test_limits_of_a_tiny_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = load("limits")
    monkeypatch.setattr(limits.torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(load("speed").util, "find_spec", lambda name: None)  # seconds to import
    path = tmp_path / "deep" / "rows.json"
    parts = ["--part", "batch", "effects", "context", "prefill", "load"]
    limits.main(["--quick", *parts, "--runs", "1", "--new", "2", "--json", str(path)])
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    found = {row["name"]: row for row in rows}
    assert all(list(row) == ROW and row["value"] >= 0 for row in rows)
    assert {name: found[name]["target"] for name in found if found[name]["target"]} == {
        "tiny: batch of 8, safe, tokens/s over batch 1": ">= 4",
        "tiny: effects of all heads over one by one, speed": ">= 50",
        "tiny: the same, largest difference": "<= 1e-05",
        "tiny: prefill of 32 tokens, safe (LoRA) over plain, time": "<= 2.1",
        "tiny: load, plain, over reading the file": "<= 2",
    }
    assert found["tiny: the same, largest difference"]["holds"]
    assert "tiny: safe token behind 32 tokens" in found


def probed(weights: int, caches: int, peak: int, first: float) -> dict[str, Any]:
    """What a process would say whose libraries take 50 bytes and 2 seconds."""
    now = {"peak": peak + 50, "anonymous": 30 + 2**20, "file": 20}
    libraries = {"peak": 50, "anonymous": 30, "file": 20}
    times = {"import_s": 2.0, "first_token_s": first}
    return {"weights": weights, "caches": caches, "libraries": libraries, "now": now} | times


def test_memory_counts_beyond_the_libraries(
    memory: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path)
    monkeypatch.setattr(memory, "has_transformers", lambda: False)
    monkeypatch.setattr(memory, "probe", lambda *_, **options: probed(1000, 200, 1200, 1.0))
    rows = {row["name"]: row for row in memory.memory_rows("s", tmp_path, tmp_path, [7], 1)}
    plain = rows["s: peak memory, plain, over the weights"]
    assert (plain["value"], plain["target"], plain["holds"]) == (1.2, "<= 1.15", False)
    assert rows["s: peak memory, packed, 4 shards, over the weights"]["holds"]
    safe = rows["s: peak memory, safe (LoRA), packed, 7 tokens, over weights and both caches"]
    assert (safe["value"], safe["holds"]) == (1.0, True)
    assert rows["s: peak memory, int8, anonymous pages at the end"]["value"] == 1.0
    assert rows["s: peak memory, int8, file pages at the end"]["value"] == 0.0


def test_the_way_to_a_first_token_is_compared_without_imports(
    memory: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def probe(directory: Path, **options: Any) -> dict[str, Any]:
        return probed(1, 0, 1, 4.0 if options.get("system") == "transformers" else 3.0)

    monkeypatch.setattr(memory, "has_transformers", lambda: True)
    monkeypatch.setattr(memory, "probe", probe)
    rows = {row["name"]: row for row in memory.start_rows("s", tmp_path, 2, 16, 1)}
    over = rows["s: from disk to the first token, packed over transformers, time"]
    assert (over["value"], over["target"], over["holds"]) == (0.75, "< 1", True)
    assert rows["s: from disk to the first token, with imports, packed"]["value"] == 5.0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_fresh_process_is_probed(memory: ModuleType, speed: ModuleType, tmp_path: Path) -> None:
    config = speed.SHAPES["tiny"]
    with memory.checkpoints(config) as (whole, sharded):
        found = memory.probe(sharded, system="safe", prompt=16, new=3, threads=1)
        file = (whole / "model.safetensors").stat().st_size
    assert 0.9 * file < found["weights"] < file  # the rest is the header
    assert found["caches"] == 2 * 20 * config.kv_bytes_per_token
    assert found["now"]["peak"] >= found["libraries"]["peak"] > 2**20
    assert 0 < found["first_token_s"] < 60


def test_a_failed_probe_is_told(memory: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="exit code"):
        memory.probe(tmp_path / "missing")


# ---- the plot ----------------------------------------------------------------------------------


def rows_of(**speeds: float) -> list[dict[str, Any]]:
    """Rows of shape `s`; underscores stand for ", "."""
    return [
        {"name": f"s: {name.replace('_', ', ')}", "value": value, "unit": "tokens/s"}
        for name, value in speeds.items()
    ]


def test_bars_are_grouped_and_measured_by_packed(plot: ModuleType) -> None:
    rows = rows_of(transformers_plain=5.0, plain=8.0, safe_packed=4.0, plain_packed=10.0)
    rows.append({"name": "s: plain, first token", "value": 3.0, "unit": "ms"})
    (panel,) = plot.panels_of(rows)
    assert (panel.label, panel.unit) == ("s", "plain, packed")
    found = [(bar.name, bar.ms, bar.over) for bar in panel.bars]
    assert found == [
        ("plain", 125.0, 1.25),
        ("plain, packed", 100.0, 1.0),
        ("safe, packed", 250.0, 2.5),
        ("transformers, plain", 200.0, 2.0),
    ]


def test_a_plot_is_drawn_the_same_twice(plot: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    source = tmp_path / "rows.json"
    source.write_text(json.dumps({"rows": rows_of(plain=8.0, safe_int8=4.0)}), "utf-8")
    for name in ("one.svg", "two.svg"):
        assert plot.main([str(source), "--out", str(tmp_path / name)]) == 0
    drawn = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert drawn == (tmp_path / "two.svg").read_text(encoding="utf-8")
    assert "safe, int8" in drawn
    assert "2.00 x" in drawn
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.svg", "rows.json", "two.svg"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no JSON"),
        ("[1]", "no rows"),
        (json.dumps({"rows": [{"name": 1}]}), "no rows"),
        (json.dumps({"rows": []}), "no tokens/s"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_result_is_refused(
    plot: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    text: str | None, words: str,
) -> None:  # fmt: skip
    source = tmp_path / "rows.json"
    if text is not None:
        source.write_text(text, "utf-8")
    assert plot.main([str(source), "--out", str(tmp_path / "x.svg")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(source) in said
    assert words in said


def test_without_matplotlib_the_plot_names_the_extra(
    plot: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    source = tmp_path / "rows.json"
    source.write_text(json.dumps({"rows": rows_of(plain=8.0)}), "utf-8")
    assert plot.main([str(source), "--out", str(tmp_path / "x.svg")]) == 2
    assert "pip install 'minisafe[report]'" in capsys.readouterr().err
    assert plot.main([str(source), "--out", "x.pdf"]) == 2
    assert ".svg or .png" in capsys.readouterr().err
