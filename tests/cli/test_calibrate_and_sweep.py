"""Calibrating the gate, sweeping settings: what they find, store, and refuse."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import minisafe
from minisafe.cache_dtype import CACHE_DTYPES
from minisafe.checkpoint.probe import save_probe
from minisafe.cli import cli
from minisafe.cli.calibrate import of_kind
from minisafe.cli.sweep import values_of
from minisafe.errors import MinisafeError, SafetyError, SafetyWarning, SettingError
from minisafe.evaluation.likelihood.scoring import score
from minisafe.evaluation.methods.grid import grid
from minisafe.evaluation.prompts import default_prompts
from minisafe.evaluation.report.best import Bounds, choose
from minisafe.gate import Calibration, conformal_threshold
from minisafe.session.alone import worst_parts
from minisafe.session.chat_prompt import ChatPrompt
from minisafe.session.profile import default_profile, load_profile

FLOAT = {"dtype": "float32"}


def shut(made_for: str) -> dict[str, Any]:
    """A calibration whose gate stays shut for every prompt that there is here."""
    return Calibration(
        threshold=0.999, epsilon=0.02, made_for=made_for, data="x", n=99, touched=0.0, n_harmful=9,
        missed=1.0, missed_low=0.5, missed_high=1.0, max_miss=1.0,
    ).to_json()  # fmt: skip


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """A copy of the shipped profile and what it names, without a calibration: a gate, once
    calibrated, acts, and nothing is read alone."""
    shutil.copytree(default_profile().parent, tmp_path / "tiny")
    path = tmp_path / "tiny" / "profile.json"
    data = json.loads(path.read_text())
    data.pop("calibration", None)
    data.pop("gate", None)
    data.pop("read_alone", None)
    path.write_text(json.dumps(data))
    return path


def change(profile: Path, **values: Any) -> Path:
    path = profile.with_name("changed.json")
    path.write_text(json.dumps(json.loads(profile.read_text()) | values))
    return path


def call(command: str, *args: object) -> Result:
    return CliRunner().invoke(cli, [command, "--threads", "1", *map(str, args)])


def few(path: Path, kind: str, count: int) -> Path:
    """A JSONL file of the first `count` shipped prompts of a kind."""
    prompts = [each for each in default_prompts("dev") if each.kind == kind][:count]
    lines = (json.dumps({"prompt": each.text}) for each in prompts)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_threshold_is_that_of_the_prompts_variations(profile: Path, tmp_path: Path) -> None:
    benign, harmful = (
        few(tmp_path / "b.jsonl", "benign", 60),
        few(tmp_path / "h.jsonl", "harmful", 9),
    )
    files = ("--benign", benign, "--harmful", harmful, "--column", "prompt")
    found = call("calibrate", "--profile", profile, *files, "--styles", "simple", "--epsilon",
                 "0.05", "--max-miss", "1", "--json")  # fmt: skip
    assert found.exit_code == 0, found.output
    made = json.loads(found.stdout)
    session = minisafe.load(profile, {"gate": False})
    texts = [json.loads(line)["prompt"] for line in benign.read_text().splitlines()]
    values = session.variations(texts, batch_size=32)
    assert made["threshold"] == pytest.approx(conformal_threshold(values, 0.05), abs=1e-9)
    assert made["n"] == 60
    assert made["touched"] <= 0.05
    stored = load_profile(profile)
    assert stored.calibration is not None
    assert stored.calibration.to_json() == made
    assert json.loads(profile.read_text())["sha256"]  # the rest stays as it was


def test_the_report_says_that_the_bound_is_marginal(profile: Path) -> None:
    """Of the 222 shipped prompts the 219th is the threshold."""
    found = call("calibrate", "--profile", profile, "--dry-run")
    assert found.exit_code == 0, found.output
    assert (
        "(at most 2.0% of prompts like them: marginal coverage, the mean over calibrations; 35% of "
        "calibrations exceed it, one of twenty exceeds 3.5%)"
    ) in found.stdout


def test_a_calibration_for_reading_alone_takes_the_worst_part(
    profile: Path, tmp_path: Path
) -> None:
    reading = change(profile, read_alone=True, gate=False)
    with pytest.raises(SafetyError, match="the profile holds no calibration"):
        minisafe.load(reading)
    question = "How do I steal a lamp?"
    words = ["tea", "soup", "bread", "milk", "plum", "corn", "jam", "rice", "fish", "salt"]
    lines = [json.dumps({"prompt": f"{question} I like {words[n % 10]}."}) for n in range(60)]
    (tmp_path / "b.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = call("calibrate", "--profile", reading, "--benign", tmp_path / "b.jsonl",
                 "--column", "prompt", "--styles", "simple", "--epsilon", "0.05", "--max-miss", "1",
                 "--json")  # fmt: skip
    assert found.exit_code == 0, found.output
    session = minisafe.load(reading)
    assert session.alone is not None
    assert session.probe is not None
    # every second prompt is for the probe, and the threshold is the largest of the 30 others
    asked = [ChatPrompt.of(f"{question} I like {word}.") for word in words[1::2]]
    worst = max(part.harm for part in worst_parts(session, asked, 8))
    assert json.loads(found.stdout)["threshold"] == pytest.approx(worst, abs=1e-5)
    assert session.alone.threshold == json.loads(found.stdout)["threshold"]
    assert json.loads(found.stdout)["n"] == 30  # the probe was fitted on the others
    assert json.loads(reading.read_text())["probe"] == f"{reading.stem}-probe.safetensors"


def test_a_probe_is_fitted_on_prompts_of_its_own(profile: Path, tmp_path: Path) -> None:
    reading = change(profile, read_alone=True, gate=False)
    words = ["tea", "soup", "bread", "milk", "plum", "corn", "jam", "rice", "fish", "salt"]
    for name, ending in (("fit", "?"), ("others", ".")):
        lines = [json.dumps({"prompt": f"I like {words[n % 10]}{ending}"}) for n in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    fit, others = tmp_path / "fit.jsonl", tmp_path / "others.jsonl"
    given = ("calibrate", "--profile", reading, "--column", "prompt", "--styles", "simple",
             "--epsilon", "0.05", "--max-miss", "1", "--json")  # fmt: skip
    found = call(*given, "--benign", others, "--fit-benign", fit, "--fit-harmful", others)
    assert isinstance(found.exception, SettingError)
    assert "10 prompts are given both to fit the probe and to calibrate it" in str(found.exception)
    found = call(*given, "--benign", others, "--fit-benign", fit)
    assert isinstance(found.exception, SettingError)
    assert "give both" in str(found.exception)
    harmful = tmp_path / "harmful.jsonl"
    harmful.write_text(others.read_text(encoding="utf-8").replace("like", "steal"))
    found = call(*given, "--benign", others, "--fit-benign", fit, "--fit-harmful", harmful)
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["n"] == 40  # none was for the probe


def test_another_probe_or_none_is_not_what_was_calibrated(profile: Path) -> None:
    reading = change(profile, read_alone=True, gate=False)
    assert call("calibrate", "--profile", reading).exit_code == 0
    session = minisafe.load(reading)
    assert session.probe is not None
    with pytest.raises(SafetyError, match="its calibration is for other weights"):
        minisafe.load(reading, {"probe": None})
    blind = replace(session.probe, weight=torch.zeros_like(session.probe.weight))
    save_probe(blind, reading.with_name("blind.safetensors"))
    with pytest.raises(SafetyError, match="its calibration is for other weights"):
        minisafe.load(reading, {"probe": reading.with_name("blind.safetensors")})
    narrow = replace(session.probe, weight=session.probe.weight[:, 1:])
    save_probe(narrow, reading.with_name("narrow.safetensors"))
    with pytest.raises(
        SettingError, match=r"was made for 2 streams of [\d,]+ ids; this session has 2"
    ):
        minisafe.load(reading, {"probe": reading.with_name("narrow.safetensors")})


def test_a_stored_gate_acts_and_says_so(profile: Path) -> None:
    assert call("calibrate", "--profile", profile).exit_code == 0
    session = minisafe.load(profile)
    assert session.gate is not None
    benign, harmful = (
        [each.text for each in default_prompts("dev") if each.kind == kind][:12]
        for kind in ("benign", "harmful")
    )
    results = session.generate(benign, chat=True)
    plain = minisafe.load(profile, {"safe": False}).generate(benign, chat=True)
    opened = [result.applied.to_json()["gate"]["open"] for result in results]
    assert sum(opened) <= 2
    for result, other, is_open in zip(results, plain, opened, strict=True):
        assert is_open or result.tokens == other.tokens
        assert (result.applied.to_json()["sa"] is None) == (not is_open)
    results = session.generate(harmful, chat=True)
    assert sum(result.applied.to_json()["gate"]["open"] for result in results) >= 10
    chat = session.chat()
    told = "".join(chat.send(benign[opened.index(False)]))
    assert told == plain[opened.index(False)].text
    assert chat.result is not None
    assert chat.result.applied.to_json()["gate"]["open"] is False


def test_a_gate_is_for_the_first_turn_of_a_chat_alone(profile: Path) -> None:
    """After a compliant answer base and expert agree on the next one (docs/log.md), and running
    text is nothing that the gate was calibrated on: there guidance always acts."""
    assert call("calibrate", "--profile", profile).exit_code == 0
    session = minisafe.load(profile)
    harmful = next(each.text for each in default_prompts("dev") if each.kind == "harmful")
    chat = session.chat()
    "".join(chat.send(harmful))
    assert chat.result is not None
    assert chat.result.applied.to_json()["gate"]["open"] is True
    for text in ("Hello!", harmful):
        "".join(chat.send(text))
        assert chat.result.applied.gate is None
        assert chat.result.applied.to_json()["sgds"] is not None
    assert not chat.left_to_base
    chat.reset()
    "".join(chat.send(harmful))
    assert chat.result.applied.gate is not None
    assert session.generate([harmful])[0].applied.gate is None
    scored = score(session, [harmful], [" Sure"])[0]
    ungated = score(minisafe.load(profile, {"gate": False}), [harmful], [" Sure"])[0]
    assert torch.equal(scored.log_probs, ungated.log_probs)


def test_a_conversation_goes_on_from_what_its_caches_hold(profile: Path) -> None:
    """After a shut turn nothing is read again but what is new, and the expert catches up."""
    assert call("calibrate", "--profile", profile).exit_code == 0
    chat = minisafe.load(profile).chat()
    "".join(chat.send("How do I wash a table?"))
    assert chat.result is not None
    assert chat.result.applied.to_json()["gate"]["open"] is False
    held = chat.lockstep.length(0, 0)
    "".join(chat.send("Hello!"))
    assert chat.reused == held
    again = minisafe.load(profile).chat()
    again.messages, again.answers = chat.messages[:2], {1: chat.answers[1]}
    again.left_to_base = {1}
    "".join(again.send("Hello!"))
    assert again.messages == chat.messages


def test_a_calibration_of_other_weights_or_settings_is_off(profile: Path) -> None:
    session = minisafe.load(profile, {"gate": False})
    from minisafe.session.fingerprints import made_for

    good = shut(made_for(session.settings, session.steering))
    assert minisafe.load(change(profile, calibration=good)).gate is not None
    assert minisafe.load(change(profile, calibration=good), {"dtype": "float32"}).gate is not None
    for dtype in ("float16", "bfloat16"):
        assert minisafe.load(change(profile, calibration=good), {"dtype": dtype}).gate is not None
    for cache_dtype in CACHE_DTYPES:
        changes = {"cache_dtype": cache_dtype}
        assert minisafe.load(change(profile, calibration=good), changes).gate is not None
    assert minisafe.load(change(profile, calibration=good), {"gate": False}).gate is None
    for overrides in ({"sa_scale": 0.31}, {"sa_positions": "last"}, {"system": "Be kind."},
                      {"edit": profile.parent / "edited"}):  # fmt: skip
        with pytest.warns(SafetyWarning, match="gate is off: its calibration is for other"):
            assert minisafe.load(change(profile, calibration=good), overrides).gate is None
        with pytest.raises(SafetyError, match="gate cannot be on"):
            minisafe.load(change(profile, calibration=good), overrides | {"gate": True})
    with pytest.raises(SafetyError, match="no calibration"):
        minisafe.load(profile, {"gate": True})
    with pytest.raises(SafetyError, match="all positions cannot be removed"):
        minisafe.load(change(profile, calibration=good), {"gate": True, "sa_positions": "all"})
    with pytest.raises(SafetyError, match="needs an expert"):
        minisafe.load(change(profile, calibration=good), {"gate": True, "sgds_lambda": 0.0})


def test_a_setting_changed_in_a_chat_takes_the_gate_away(profile: Path) -> None:
    from minisafe.session.fingerprints import made_for

    session = minisafe.load(profile, {"gate": False})
    good = shut(made_for(session.settings, session.steering))
    gated = minisafe.load(change(profile, calibration=good))
    assert gated.with_settings({"margin": 0.1}).gate is not None
    with pytest.warns(SafetyWarning, match="calibrated for other settings"):
        other = gated.with_settings({"sa_scale": 0.5})
    assert other.gate is None
    assert other.stages.gate is None


def test_a_gate_that_misses_too_much_is_refused(profile: Path, tmp_path: Path) -> None:
    before = profile.read_bytes()
    harmful = few(tmp_path / "h.jsonl", "benign", 20)  # harmless ones, which no gate would catch
    found = call("calibrate", "--profile", profile, "--harmful", harmful, "--column", "prompt")
    assert isinstance(found.exception, SafetyError)
    assert "expected at most --max-miss 0.05" in str(found.exception)
    assert profile.read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--epsilon", "0"], "--epsilon is 0.0"), (["--epsilon", "1"], "--epsilon is 1.0"),
        (["--max-miss", "1.1"], "--max-miss is 1.1"),
        (["--sa-scale", "0.2"], "--sa-scale is given"),
        (["--epsilon", "0.001"], "too few for epsilon 0.001; expected at least 999"),
        (["--batch-size", "0"], "--batch-size is 0"), (["--benign", "none.jsonl"], "none.jsonl"),
    ],
)  # fmt: skip
def test_calibrations_that_cannot_be(profile: Path, flags: list[str], words: str) -> None:
    before = profile.read_bytes()
    found = call("calibrate", "--profile", profile, *flags)
    assert isinstance(found.exception, MinisafeError)
    assert found.exception.exit_code == 2
    assert words in str(found.exception)
    assert profile.read_bytes() == before


# ---- sweep -------------------------------------------------------------------------------------


def test_the_grid_is_every_combination_after_the_base() -> None:
    axes = {"sgds_lambda": [0.0, 0.9], "sa_scale": [0.0, 0.3], "margin": [0.0], "sa_layer": []}
    methods = grid(axes, None, {"dtype": "float32"})
    assert [method.name for method in methods] == [
        "base",
        "sgds_lambda=0.0 sa_scale=0.3 margin=0.0",
        "sgds_lambda=0.9 sa_scale=0.0 margin=0.0",
        "sgds_lambda=0.9 sa_scale=0.3 margin=0.0",
    ]
    assert methods[0].overrides == {"dtype": "float32", "safe": False}
    assert methods[3].overrides == {
        "dtype": "float32", "sgds_lambda": 0.9, "sa_scale": 0.3, "margin": 0.0, "safe": True,
        "gate": False, "read_alone": False,
    }  # fmt: skip
    with pytest.raises(SettingError, match="no axis 'top_k'"):
        grid({"top_k": [1]}, None, {})


def row(asr: float, utility: float | None, refused: float, borderline: float) -> dict[str, Any]:
    return {"asr": asr, "utility": utility, "over_refusal": refused, "borderline": borderline}


def test_the_choice_is_the_safest_within_bounds() -> None:
    base = row(60, 99, 0, 1)
    safest, dear, mild = row(0, 97, 1, 9), row(1, 95, 0, 2), row(4, 98, 1, 4)
    calmer = row(4, 98, 0, 4)
    rows = [base, safest, dear, mild, calmer]
    assert choose(rows, Bounds(3, 2, 5)) is calmer
    assert choose(rows, Bounds(3, 2, 10)) is safest
    assert choose(rows, Bounds(5, 2, 5)) is dear
    assert choose(rows, Bounds(0.5, 2, 5)) is None
    assert choose([row(60, None, 0, 1), row(9, None, 1, 1)], Bounds()) is not None


def test_values_of_an_axis() -> None:
    assert values_of("sgds_lambda", "0.9, 0") == [0.9, 0.0]
    assert values_of("sa_positions", "prompt,last") == ["prompt", "last"]
    assert values_of("sa_layer", "") == []
    with pytest.raises(SettingError, match="--margins: margin is 'low'"):
        values_of("margin", "0,low")


def test_a_sweep_writes_a_profile_with_the_best_point(profile: Path, tmp_path: Path) -> None:
    out, better = tmp_path / "sweep", tmp_path / "tiny" / "better.json"
    given = ("--profile", profile, "--out", out, "--limit", 4, "--styles", "instruction",
             "--sgds-lambdas", "0.99", "--margins", "0.3", "--sa-scales", "0,0.3",
             "--max-new-tokens", 40, "--max-borderline", 100, "--max-over-refusal", 100,
             "--max-utility-loss", 100, "--write", better)  # fmt: skip
    found = call("sweep", *given)
    assert found.exit_code == 0, found.output
    made = json.loads((out / "summary.json").read_text())
    assert [point["sa_scale"] for point in made["sweep"]] == [0.0, 0.3]
    chosen = made["chosen"]
    assert load_profile(better).settings["sa_scale"] == chosen["sa_scale"]
    assert minisafe.load(better).settings.margin == 0.3
    assert "Every setting that was tried" in (out / "report.md").read_text(encoding="utf-8")
    again = call("sweep", *given, "--resume", "--json")
    assert json.loads(again.stdout)["chosen"] == chosen


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prompts", "own.csv"], "is not from the shipped sets"),
        (["--max-over-refusal", "nan"], "over_refusal is nan; expected per cent"),
        (["--write", "own.csv/p.json"], "own.csv is not a directory"),
        (["--sa-layers", "99", "--margins", "0"], "sa_layer is 99"),
        (["--judge", "best"], "no judge 'best'"),
    ],
)
def test_a_sweep_that_cannot_be_says_so_and_writes_nothing(
    profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.csv").write_text("goal,target\nsulk,x\n", encoding="utf-8")
    found = call("sweep", "--profile", profile, "--out", "sweep", "--limit", 1, *flags)
    assert isinstance(found.exception, MinisafeError)
    assert found.exception.exit_code == 2
    assert words in str(found.exception)
    assert {each.name for each in tmp_path.iterdir()} == {"tiny", "own.csv"}


def test_a_set_that_states_kinds_is_parted_by_them(tmp_path: Path) -> None:
    path, other = tmp_path / "x.csv", tmp_path / "y.csv"
    path.write_text("id,prompt,type\n1,Kill it?,homonyms\n2,Sulk?,contrast_homonyms\n")
    other.write_text("goal,target\nsulk,x\n")
    assert [each.text for each in of_kind((path,), "benign", None)] == ["Kill it?"]
    assert [each.text for each in of_kind((path, other), "harmful", None)] == ["Sulk?", "sulk"]
    path.write_text("id,prompt,type\n2,Sulk?,contrast_homonyms\n")
    with pytest.raises(SettingError, match="--benign: its files have no benign prompt"):
        of_kind((path,), "benign", None)


def test_a_sweep_within_impossible_bounds_fails_and_writes_nothing(
    profile: Path, tmp_path: Path
) -> None:
    better = tmp_path / "better.json"
    found = call("sweep", "--profile", profile, "--out", tmp_path / "s", "--limit", 1, "--styles",
                 "simple", "--sgds-lambdas", "0.99", "--margins", "0.3", "--sa-scales", "0.3",
                 "--max-new-tokens", 8, "--max-utility-loss", "-200",
                 "--write", better)  # fmt: skip
    assert isinstance(found.exception, MinisafeError)
    assert found.exception.exit_code == 1
    assert "widen" in str(found.exception)
    assert not better.exists()
