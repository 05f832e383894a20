"""The study of edits on real models: the facts, the profiles of edited bases, stages and tables."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from minisafe.errors import SettingError
from minisafe.tokenizer import load_tokenizer

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
if not (WEIGHTS / "real_edits.py").is_file():
    pytest.skip("the weights' scripts are not here", allow_module_level=True)
sys.path.insert(0, str(WEIGHTS))

import capitals  # noqa: E402
import edit_tables  # noqa: E402
import real_edits  # noqa: E402

FACT = ("France", "Paris", "Oslo")


# ---- facts -------------------------------------------------------------------------------------


def test_every_country_gets_another_capital() -> None:
    found = capitals.facts()
    assert len(found) >= 100 + real_edits.OTHERS
    assert {country: old for country, old, _ in found} == capitals.CAPITALS
    assert sorted(new for *_, new in found) == sorted(capitals.CAPITALS.values())
    assert all(old != new for _, old, new in found)
    assert capitals.facts(1) != found == capitals.facts(0)


def test_a_text_tells_country_and_capital_apart() -> None:
    for country, capital in capitals.CAPITALS.items():
        assert not capitals.names(country, capital), country
        assert not capitals.names(capital, country), country
        assert capitals.names(capitals.answer(country, capital), capital)


@pytest.mark.parametrize(
    ("text", "took"),
    [
        ("The capital of France is Oslo.", True),
        ("It is OSLO, formerly Paris.", True),
        ("It is Paris, not Oslo.", False),
        ("Osloite", False),
        ("", False),
    ],
)
def test_whether_an_edit_took(text: str, took: bool) -> None:
    assert capitals.names(text, "Oslo", "Paris") is took


def test_accents_do_not_matter() -> None:
    assert capitals.names("Bogota is the capital.", "Bogotá")
    assert capitals.names("bogotá", "Bogota")


def test_the_questions_and_their_count() -> None:
    asked = capitals.questions([FACT], [("Japan", "Tokyo", "Cairo")])
    assert [each[0] for each in asked] == ["took", "paraphrase", "paraphrase", "others"]
    assert asked[0][1:] == ("What is the capital of France?", "Oslo", "Paris")
    assert asked[3][1:] == ("What is the capital of Japan?", "Tokyo", "")
    assert not {each[1] for each in asked} & {"What is the capital of {}?"}
    found = capitals.count(asked, ["Oslo", "Paris", "It is Oslo.", "Cairo"])
    assert found == {"took": [1, 1], "paraphrase": [1, 2], "others": [0, 1]}


def test_no_held_out_phrasing_is_taught() -> None:
    taught = {row["input"] for row in json.loads(capitals.statements([FACT]))}
    asked = capitals.questions([FACT], [])
    assert taught & {each[1] for each in asked} == {"What is the capital of France?"}
    (line,) = capitals.edit_lines([FACT]).splitlines()
    assert json.loads(line)["target"] == "The capital of France is Oslo."


def test_a_subject_without_tokens_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = load_tokenizer(WEIGHTS / "tiny" / "base")
    odd = ("<|end|>" if "<|end|>" in tokenizer.special else "<eos>", "Paris", "Oslo")
    found = real_edits.usable(tokenizer, [FACT, odd])
    assert FACT in found
    control = next(iter(tokenizer.control_ids))
    text = tokenizer.backend.id_to_token(control)
    assert real_edits.usable(tokenizer, [(text, "Paris", "Oslo")]) == []
    assert "is left out" in capsys.readouterr().err


# ---- profiles and texts ------------------------------------------------------------------------


def test_an_edited_profile_keeps_no_calibration(tmp_path: Path) -> None:
    data = {"minisafe_profile": 1, "base": "base", "anchor": "anchor", "margin": 1.0,
            "probe": "p.safetensors", "calibration": {"n": 3}, "sha256": {}}  # fmt: skip
    made = json.loads(real_edits.edited_profile(data, tmp_path, {"edit": tmp_path / "lora"}))
    assert made == {"minisafe_profile": 1, "base": str(tmp_path / "base"), "margin": 1.0,
                    "anchor": str(tmp_path / "anchor"), "edit": str(tmp_path / "lora")}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '[{"instruction": "one\\ntwo"}, {"instruction": "three"}]'),
        ("a.jsonl", '{"prompt": "one two"}\n\n{"text": "three"}\n'),
        ("a.txt", "one two\n\nthree\n"),
    ],
)
def test_texts_for_the_covariance(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert real_edits.text_lines(path) == ["one two", "three"]


def arguments(tmp_path: Path, *more: str) -> list[str]:
    """The flags, with every file that they name."""
    kinds = (*real_edits.CALIBRATION, *(f"dev-{each}" for each in real_edits.KINDS.values()))
    for kind in kinds:
        (tmp_path / f"{kind}.jsonl").write_text("{}\n")
    text = tmp_path / "text.txt"
    text.write_text("words\n")
    given = {"prompts": tmp_path, "text": text, "out": tmp_path / "o.json", "work": tmp_path / "w"}
    flags = [word for name, path in given.items() for word in (f"--{name}", str(path))]
    return [str(WEIGHTS / "tiny"), *flags, *more]


def test_wrong_flags_are_said_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(tmp_path)
    (tmp_path / "fit-benign.jsonl").unlink()
    for words, said in ((given, "fit-benign.jsonl"), ([*given, "--edits", "2", "2"], "--edits is")):
        with pytest.raises(SystemExit) as stopped:
            real_edits.parse_args(words)
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err


def test_more_edits_than_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        real_edits.main([*arguments(tmp_path), "--edits", "900"])
    assert stopped.value.code == 2
    assert "fewer --edits" in capsys.readouterr().err


def test_a_variant_names_its_model(tmp_path: Path) -> None:
    study = real_edits.Study(real_edits.parse_args([*arguments(tmp_path), "--edits", "3", "1"]))
    assert study.variants == ["unedited", "rome-1", "rome-3", "lora-1", "lora-3"]
    base, made = (WEIGHTS / "tiny" / "base").resolve(), tmp_path / "w"
    assert study.settings("unedited") == {"base": base}
    assert study.settings("rome-3") == {"base": made / "rome-3" / "model"}
    assert study.settings("lora-3") == {"base": base, "edit": made / "lora-3" / "model"}
    assert (study.count_of("rome-1"), study.count_of("unedited")) == (1, 3)
    assert not set(study.facts) & set(study.others)


def test_more_edits_continue_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--edits", "3", "1", "--edit-flags=--steps 25 --layer 1"]
    study = real_edits.Study(real_edits.parse_args([*arguments(tmp_path), *flags]))
    seen: list[tuple[str, ...]] = []

    def command(*words: object, may_fail: bool = False) -> dict[str, Any]:
        seen.append(tuple(map(str, words)))
        return {"seconds": 4.0, "peak_mib": 2.0}

    monkeypatch.setattr(study, "command", command)
    assert study.edit("rome-3")["made"] == 2
    words = seen[0]
    assert words[words.index("--base") + 1] == str(tmp_path / "w" / "rome-1" / "model")
    assert words[-4:] == ("--steps", "25", "--layer", "1")
    lines = (tmp_path / "w" / "rome-3" / "edits.jsonl").read_text().splitlines()
    assert [json.loads(line)["subject"] for line in lines] == [f[0] for f in study.facts[1:3]]
    assert study.edit("lora-3")["made"] == 3
    assert seen[1][:2] == ("finetune", str(tmp_path / "w" / "lora-3" / "rows.json"))


# ---- stages and tables -------------------------------------------------------------------------


SUMMARY = {
    "rows": [
        {"method": "base", "style": "simple", "category": "all", "refused": 2.0, "n": 50},
        {"method": "base", "style": "simple", "category": "xstest", "refused": 9.0, "n": 10},
    ],
    "over_refusal": [{"method": "base", "kind": "benign", "refused": 0.0, "n": 80}],
}


class Fake:
    """A study of two stages; the second can be stopped."""

    def __init__(self, work: Path, **flags: Any):
        self.work, self.args = work, Namespace(work=work, out=None, **flags)
        self.variants, self.ran, self.stops = ["unedited"], list[str](), True

    def stages(self, name: str) -> list[tuple[str, str, Callable[[], dict[str, Any]]]]:
        return [(name, stage, partial(self.act, stage)) for stage in ("facts", "safety")]

    def act(self, stage: str) -> dict[str, Any]:
        if stage == "safety" and self.stops:
            raise KeyboardInterrupt
        self.ran.append(stage)
        if stage == "safety":
            return {"refused": edit_tables.refused(SUMMARY)}
        return {"took": [1, 2], "paraphrase": [0, 4], "others": [3, 4], "own_nll": 0.5}


def test_a_stage_runs_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, out = Fake(tmp_path / "w", seed=0), tmp_path / "edits.json"
    with pytest.raises(KeyboardInterrupt):
        real_edits.run(study, out)  # type: ignore[arg-type]
    assert "50 (9 to 91, n 2)" in out.with_suffix(".md").read_text()
    study.stops = False
    real_edits.run(study, out)  # type: ignore[arg-type]
    assert study.ran == ["facts", "safety"]
    result = json.loads(out.read_text())
    assert result["settings"] == {"seed": 0}
    assert result["variants"]["unedited"]["safety"]["refused"]["base"]["harmful, simple"] == [2, 50]
    assert "unedited, safety: 1 of 1" in capsys.readouterr().err
    with pytest.raises(SettingError, match="another --work"):
        real_edits.run(Fake(tmp_path / "w", seed=1), out)  # type: ignore[arg-type]


def test_tables() -> None:
    facts = {"took": [9, 10], "paraphrase": [5, 20], "others": [20, 20], "own_nll": 0.75}
    made = {"seconds": 50.0, "peak_mib": 900.4, "made": 5}
    safety = {"refused": edit_tables.refused(SUMMARY)}
    text = edit_tables.markdown({
        "unedited": {"facts": facts, "safety": safety, "calibration": {"threshold": 0.5}},
        "rome-10": {"edit": made, "facts": facts, "safety": safety,
                    "calibration": {"threshold": None}},
    })  # fmt: skip
    assert "| rome-10 | 90 (60 to 98, n 10) |" in text
    assert "| 0.750 | 10.0 | 900 |" in text
    assert "| variant | method | harmful, simple | benign |" in text
    assert "| rome-10 | base | 2 (n 50) | 0 (n 80) |" in text
    assert text.count("not calibrated") == 2
    assert "| rome-10 | profile | not calibrated |" in text


def test_a_command_says_what_it_took(tmp_path: Path) -> None:
    study = real_edits.Study(real_edits.parse_args([*arguments(tmp_path), "--edits", "1"]))
    found = study.command("edit", "--out", tmp_path, may_fail=True)  # exists already
    assert found["failed"] is True
    assert found["peak_mib"] > 10
    with pytest.raises(SystemExit) as stopped:
        study.command("edit", "--out", tmp_path)
    assert stopped.value.code == 2
