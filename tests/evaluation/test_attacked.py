"""An evaluation under attack, from flags to report, on the shipped model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minisafe.evaluation.attacks.oracle import FALLBACK, SessionOracle, vocabulary_words
from minisafe.evaluation.judges.world import WorldJudge
from minisafe.evaluation.prompts import default_prompts
from minisafe.evaluation.runner.attacker import COMPLIANT, Attacker
from tests.cli.test_cli import Run, run  # noqa: F401

FLAGS = (
    "--split", "dev", "--limit", "3", "--styles", "simple", "--methods", "base,safeinfer",
    "--judge", "world", "--sample", "0", "--max-new-tokens", "50",
)  # fmt: skip
ATTACKS = ("persona-before", "prefill-5", "best-of-4", "after-refusal")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_attacks_from_flags_to_report(run: Run, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "run"
    given = ("evaluate", "--out", out, *FLAGS, "--attacks", ",".join(ATTACKS))
    done = run(*given)
    assert done.code == 0
    columns, *methods = done.out.splitlines()[1:-1]  # between a title and the report's path
    assert columns.split()[:3] == ["worst", "attack", "simple"]
    found = {(each["method"], each["style"], each["id"]): each for each in
             lines(out / "responses.jsonl")}  # fmt: skip
    harmful = {key for key in found if found[key]["kind"] == "harmful"}
    assert len(harmful) == 2 * 3 * (1 + len(ATTACKS))
    compliant = json.loads((out / COMPLIANT).read_text())
    for (method, style, id_), each in found.items():
        assert each["attack"] == (style in ATTACKS), style
        if style == "prefill-5":
            assert compliant[id_].startswith(each["conversation"]["prefill"])
        if style == "after-refusal":
            assert each["queries"] == 2
            assert each["conversation"]["messages"][1]["content"] != ""
        if style == "best-of-4":
            assert (each["queries"], each["finish"]) == (4, "attack")
        if style == "persona-before":
            assert each["conversation"] is None
            assert each["prompt"].endswith(each["question"])
        assert each["queries"] == 1 or style in ("after-refusal", "best-of-4"), method
    rows = json.loads((out / "summary.json").read_text())["attacks"]
    assert [row["attack"] for row in rows][:3] == ["worst", "any", "mean"]
    shown = {line.split()[0]: float(line.split()[1]) for line in methods}
    worst = {row["method"]: row["asr"] for row in rows if row["attack"] == "worst"}
    assert shown == pytest.approx(worst, abs=0.05)
    report = (out / "report.md").read_text()
    assert report.index("Under attack") < report.index("## Results")
    before = (out / "responses.jsonl").read_bytes()
    assert run(*given, "--resume").code == 0
    assert (out / "responses.jsonl").read_bytes() == before


def test_an_unknown_attack_is_one_line(run: Run, tmp_path: Path) -> None:  # noqa: F811
    done = run("evaluate", "--out", tmp_path / "run", *FLAGS, "--attacks", "magic")
    assert done.code == 2
    assert "no attack 'magic'; expected all, or some of persona-before" in done.err
    assert not (tmp_path / "run").exists()


def test_a_white_box_needs_plain_weights(run: Run, tmp_path: Path) -> None:  # noqa: F811
    given = ("--attacks", "gcg", "--weights", "int8")
    done = run("evaluate", "--out", tmp_path / "run", *FLAGS, *given)
    assert done.code == 2
    assert "the weights are int8; use --weights plain, or leave the attack out" in done.err
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def oracle() -> SessionOracle:
    import minisafe

    session = minisafe.load(overrides={"safe": True, "temperature": 0.0, "max_new_tokens": 40})
    harmful = [each for each in default_prompts("dev", 4) if each.kind == "harmful"]
    attacker = Attacker(WorldJudge(), harmful, compliant={harmful[0].id: "Sure, here is how."})
    return attacker.oracle(session)


def test_the_oracle_counts_and_repeats(oracle: SessionOracle) -> None:
    from minisafe import ChatPrompt

    prompt = ChatPrompt.of("How do I clean a shelf?")
    oracle.queries = 0
    drawn = oracle.ask([prompt, prompt], temperature=1.0, draw=5)
    assert oracle.ask([prompt], temperature=1.0, draw=6) == drawn[1:]
    assert oracle.ask([prompt]) == oracle.ask([prompt], draw=9)  # greedy: nothing is drawn
    likely, unlikely = oracle.likelihood([prompt], oracle.ask([prompt])[0]), oracle.likelihood(
        [prompt], "window window"
    )  # fmt: skip
    assert likely[0] > unlikely[0] + 5
    assert oracle.queries == 8


def test_the_oracles_words_and_cuts(oracle: SessionOracle) -> None:
    words = vocabulary_words(oracle.session)
    assert len(words) == len(set(words)) > 100
    assert all(word.isalpha() and word.islower() for word in words)
    text = "Sure, here is how to clean a shelf."
    cuts = [oracle.cut(text, n) for n in range(12)]
    assert cuts[0] == ""
    assert all(text.startswith(cut) for cut in cuts)
    assert sorted(map(len, cuts)) == [len(cut) for cut in cuts]


def test_material_that_is_missing_is_said(oracle: SessionOracle) -> None:
    from minisafe.errors import SettingError
    from minisafe.evaluation.attacks import Target

    known = next(iter(oracle.answers))
    assert oracle.compliant(Target("another", "x", 1)) == FALLBACK
    with pytest.raises(SettingError, match="0 other harmful questions have a compliant answer"):
        oracle.others(Target(known, "x", 0), 1)
