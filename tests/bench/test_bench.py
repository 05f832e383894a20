"""The benches run, write their rows, and their systems compute the same answers."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from minisafe.errors import OutputError
from tests.support.tiny import load_bench

ROW = ["name", "value", "unit", "target", "holds"]
PROMPT = tuple(range(3, 20))


@pytest.fixture(scope="module")
def speed() -> ModuleType:
    return load_bench("speed")


@pytest.fixture(scope="module")
def systems() -> ModuleType:
    return load_bench("systems")


@pytest.fixture(scope="module")
def subject() -> Any:
    subjects = load_bench("subjects")
    return subjects.random_subject(subjects.SHAPES["tiny"])


@pytest.fixture(scope="module")
def memory() -> ModuleType:
    return load_bench("memory")


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
def test_targets(target: str | None, value: float, holds: bool | None) -> None:
    assert load_bench("report").make_row("x", value, "x", target)["holds"] is holds


def test_import_time_is_measured(speed: ModuleType) -> None:
    assert 0 < speed.import_seconds(1) < 60


def test_a_run_cut_short_keeps_what_it_has(
    speed: ModuleType,
    subject: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Within a shape: every system that had its turn, and in the file already at that time."""

    def stop(system: Any, new: int) -> tuple[float, float]:
        if len(taken) == 9:
            on_disk.append(json.loads(path.read_text(encoding="utf-8")))
            raise KeyboardInterrupt
        taken.append(system)
        return 8.0, 4.0 if system == "a" else 2.0

    taken: list[str] = []
    on_disk: list[Any] = []
    monkeypatch.setattr(speed, "import_seconds", lambda runs: 0.1)
    monkeypatch.setattr(speed.torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(speed, "answer_ms", stop)
    monkeypatch.setattr(speed, "read_bandwidth", lambda buffers: 2.0)
    systems = {"plain": "a", "plain, packed": "b", "llama.cpp Q8_0, plain": "c"}
    monkeypatch.setattr(speed, "all_systems", lambda *_: systems)
    monkeypatch.setattr(speed, "find_subject", lambda label: subject)
    path = tmp_path / "rows.json"
    options = ["--shape", "tiny", "100m", "--runs", "1", "--buffer-mib", "1"]
    with pytest.raises(SystemExit) as stopped:
        speed.main([*options, "--json", str(path)])
    assert stopped.value.code == 130
    assert taken == list("abcabcabc")  # a warm-up and a turn of each, and the warm-up of 100m
    result = json.loads(path.read_text(encoding="utf-8"))
    assert list(result["samples"]) == ["tiny", "100m"]
    rows = {row["name"]: row["value"] for row in result["rows"]}
    assert (rows["tiny: plain"], rows["tiny: plain, first token"]) == (250.0, 8.0)
    said = capsys.readouterr()
    assert "tiny: plain, packed" in said.out  # the table
    assert f"stopped; the finished rows are in {path}" in said.err
    assert "tiny: 5 of 8, " in said.err
    assert [each.name for each in tmp_path.iterdir()] == ["rows.json"]
    assert on_disk[0]["samples"]["tiny"]["plain"] == [4.0]


@pytest.mark.parametrize("turns", [1, 2, 5])
def test_a_shape_cut_short_keeps_its_finished_turns(
    speed: ModuleType, subject: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    """Also where some systems have had more turns than others, or none."""

    def measure(subject: Any, args: Any, samples: Any, label: str) -> Any:
        for n in range(turns):
            name = ("read bandwidth", "plain", "plain, packed")[n % 3]
            samples.setdefault(name, []).append(4.0 + n)
            if n % 3:
                samples.setdefault(f"{name}, first token", []).append(9.0)
            yield name
            seen.append(json.loads(path.read_text(encoding="utf-8"))["samples"]["tiny"])
        raise KeyboardInterrupt

    seen: list[Any] = []
    path = tmp_path / "rows.json"
    monkeypatch.setattr(speed, "import_seconds", lambda runs: 0.1)
    monkeypatch.setattr(speed.torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(speed, "measure", measure)
    monkeypatch.setattr(speed, "find_subject", lambda label: subject)
    with pytest.raises(SystemExit):
        speed.main(["--shape", "tiny", "--json", str(path)])
    result = json.loads(path.read_text(encoding="utf-8"))
    rows = {row["name"]: row["value"] for row in result["rows"]}
    assert seen[-1] == result["samples"]["tiny"]
    assert rows["tiny: read bandwidth"] == (4.0 if turns < 4 else 5.5)
    assert ("tiny: plain" in rows) == (turns > 1)
    assert ("tiny: packed over plain weights, plain, speed" in rows) == (turns > 2)


def test_progress_has_an_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    report = load_bench("report")
    progress = report.Progress("100m", 4)
    progress.started -= 60
    progress.say("plain")
    assert "100m: 1 of 4, plain; about 3 min left here" in capsys.readouterr().err
    assert report.in_minutes(20.4) == "about 20 s"


def test_dtypes_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes = load_bench("dtypes")
    monkeypatch.setattr(dtypes.torch, "set_num_threads", lambda n: None)
    path = tmp_path / "rows.json"
    options = ["--shape", "tiny", "--prompt", "9", "--new", "3", "--runs", "2"]
    dtypes.main([*options, "--json", str(path)])
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    names = {row["name"] for row in rows}
    assert {"tiny: plain, float32", "tiny: plain, float32 over bfloat16, a token, time"} <= names
    monkeypatch.setattr(dtypes, "turns", lambda runs, n: iter([0, 2]))  # stopped before the others
    dtypes.main([*options, "--json", str(path)])
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 4 + 2


def test_an_instruction_set_has_its_rows(tmp_path: Path) -> None:
    isa = load_bench("isa")
    assert isa.instruction_sets()[-1] == "own"
    path = tmp_path / "rows.json"
    options = ["--shape", "tiny", "--prompt", "9", "--new", "2", "--runs", "1", "--threads", "1"]
    isa.main([*options, "--isa", "AVX2", "--json", str(path)])
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 3 * 2 * 2
    assert rows[1]["name"] == "tiny, AVX2: plain, float32 plain"
    assert all(row["value"] > 0 for row in rows)


def test_a_stopped_instruction_set_keeps_its_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], env: dict[str, str], check: bool) -> Any:
        asked.append(env.get("ONEDNN_MAX_CPU_ISA"))
        load_bench("report").write_json(Path(command[-1]), {"rows": [row]})
        if len(asked) == 2:
            raise KeyboardInterrupt
        return SimpleNamespace(returncode=0)

    asked: list[str | None] = []
    isa = load_bench("isa")
    row = load_bench("report").make_row("plain", 1.0, "tokens/s")
    monkeypatch.setattr(isa.torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(isa.subprocess, "run", run)
    path = tmp_path / "rows.json"
    with pytest.raises(SystemExit):
        isa.main(["--isa", "own", "AVX2", "AVX512_CORE", "--json", str(path)])
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert asked == [None, "AVX2"]
    assert [row["name"] for row in rows] == ["100m, own: plain", "100m, AVX2: plain"]


def test_a_result_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = load_bench("report")
    path = tmp_path / "rows.json"
    report.write_json(path, {"rows": [1]})

    def half(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:3])
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        with pytest.raises(OutputError, match="disk is full"):
            report.write_json(path, {"rows": [2]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"rows": [1]}


def test_a_directory_is_no_place_for_rows(
    speed: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        speed.parse_args(["--json", str(tmp_path)])
    assert "is a directory" in capsys.readouterr().err


def test_every_act_has_its_turn_in_every_round() -> None:
    turns: list[str] = []

    def act(name: str) -> int:
        turns.append(name)
        return len(turns)

    timing = load_bench("timing")
    found = timing.by_turns(2, *(partial(act, name) for name in "abc"))
    assert "".join(turns) == "abcbca"
    assert found == [[1, 6], [2, 4], [3, 5]]
    assert timing.ratio([6.0, 4.0, 9.0], [2.0, 4.0, 1.0]) == 3.0


def test_a_token_reads_the_weights_and_the_cache(subject: Any) -> None:
    # tied: 256 x 64 once; a layer 64 x (64 + 32 + 32 + 64) + 3 x 64 x 96 and two norms; the last
    values = 256 * 64 + 2 * (64 * 192 + 3 * 64 * 96 + 2 * 64) + 64
    cached = 2 * 2 * 2 * 16  # layers, keys and values, heads, their width
    found = load_bench("subjects").bytes_per_token(subject.model, 10.0)
    assert found == 4 * (values + 10 * cached)


def test_fused_and_separate_give_the_same_tokens(systems: ModuleType, subject: Any) -> None:
    found = answers(systems.minisafe_systems(subject, PROMPT, 12))
    assert found[systems.SAFE] == found[systems.SEPARATE]
    assert found[systems.SAFE] != found[systems.PLAIN]


def test_only_the_safe_step_is_compiled_with_an_adapter(
    systems: ModuleType, subject: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_step(model: Any, adapters: Any, rows: int) -> Any:
        asked.append((adapters, rows))
        return model

    asked: list[Any] = []
    monkeypatch.setattr(systems, "compile_step", compile_step)
    found = answers(systems.compiled_systems(subject, PROMPT, 12))
    assert asked == [((), 1), ((subject.adapter,), 2)]
    plain = answers(systems.minisafe_systems(subject, PROMPT, 12))
    assert found == {f"{name}, compiled": plain[name] for name in (systems.PLAIN, systems.SAFE)}


def test_a_missing_peer_is_skipped_aloud(
    systems: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(systems.util, "find_spec", lambda name: None)
    assert systems.transformers_systems(None, PROMPT) == {}
    assert systems.llamacpp_systems(None, PROMPT, 12) == {}
    said = capsys.readouterr().out
    assert "transformers is not installed here" in said
    assert "llama_cpp is not installed here" in said


@pytest.mark.live
def test_transformers_gives_the_same_tokens(systems: ModuleType, subject: Any) -> None:
    pytest.importorskip("transformers")
    unsteered = replace(subject, steering=replace(subject.steering, scale=0.0))
    ours = answers(systems.minisafe_systems(unsteered, PROMPT, 12))
    theirs = answers(systems.transformers_systems(unsteered, PROMPT))
    assert theirs[systems.PEER] == ours[systems.PLAIN]
    assert theirs[systems.PEERS] == ours[systems.SAFE]


def test_the_shipped_subject_is_decoded_in_every_way(systems: ModuleType) -> None:
    shipped = load_bench("subjects").shipped_subject()
    found = answers(systems.minisafe_systems(shipped, PROMPT, 4), 4)
    assert set(map(len, found.values())) == {4}


# ---- limits ------------------------------------------------------------------------------------


def test_limits_of_a_tiny_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = load_bench("limits")
    monkeypatch.setattr(limits.torch, "set_num_threads", lambda n: None)
    util = load_bench("huggingface").util
    find = util.find_spec  # transformers takes seconds to import
    monkeypatch.setattr(
        util, "find_spec", lambda name: None if name == "transformers" else find(name)
    )
    path = tmp_path / "deep" / "rows.json"
    parts = ["--part", "batch", "effects", "context", "alone", "prefill", "load"]
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
    assert found["shipped: message of 6 sentences, first token, read alone"]["value"] > 0


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
    monkeypatch.setattr(memory, "round_to", lambda form, whole, out: out)
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
def test_a_fresh_process_is_probed(memory: ModuleType, subject: Any) -> None:
    config = subject.model.config
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
