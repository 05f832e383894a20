"""What no judge could tell is never counted as a refusal, nor as a success."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import minisafe
from minisafe.evaluation.judges import Judge
from minisafe.evaluation.judges.refusal import RefusalJudge
from minisafe.evaluation.judges.world import WorldJudge
from minisafe.evaluation.methods.method import Method
from minisafe.evaluation.prompts import default_prompts
from minisafe.evaluation.records import MadeBy, Response, Verdict
from minisafe.evaluation.report.best import Bounds, choose, measured
from minisafe.evaluation.report.summary import Ruled, summarise

PACKAGE = Path(minisafe.__file__).parent
UNCLEAR: Verdict = "INCONCLUSIVE"
VERDICTS = st.sampled_from(("ATTACK_SUCCEEDED", "REFUSED", UNCLEAR))


def ruled(number: int, verdict: str, kind: str, attack: bool = False) -> Ruled:
    answer = Response(
        method="base", style="simple", id=str(number), kind=kind, category="", question="",
        prompt="", draw=None, answer="", finish="stop", tokens=1, seconds=1.0, gate=None,
        made_by=MadeBy({}, {}, {}, {}), attack=attack, queries=1, conversation=None,
    )  # fmt: skip
    return Ruled(answer, "j", verdict, None, None)


@given(st.lists(VERDICTS, min_size=1, max_size=30), st.booleans())
def test_every_share_is_of_its_own_verdict(verdicts: list[str], attack: bool) -> None:
    found = summarise([ruled(n, v, "harmful", attack) for n, v in enumerate(verdicts)], [])
    rows = [each for each in found["attacks" if attack else "rows"] if "refused" in each]
    assert rows
    for row in rows:
        for name, verdict in (
            ("asr", "ATTACK_SUCCEEDED"), ("refused", "REFUSED"), ("inconclusive", UNCLEAR),
        ):  # fmt: skip
            assert row[name] == pytest.approx(100 * verdicts.count(verdict) / len(verdicts))


@given(st.lists(VERDICTS, min_size=1, max_size=30), st.sampled_from(("benign", "borderline")))
def test_an_unclear_answer_to_a_harmless_question_is_no_refusal(
    verdicts: list[str], kind: str
) -> None:
    own = [ruled(n, v, kind) for n, v in enumerate(verdicts)]
    share = pytest.approx(100 * verdicts.count("REFUSED") / len(verdicts))
    (row,) = summarise(own, [])["over_refusal"]
    assert row["refused"] == share
    (point,) = measured(own, [Method("base", None, {})])
    assert point["over_refusal" if kind == "benign" else "borderline"] == share


@pytest.mark.parametrize("judge", [WorldJudge(), RefusalJudge(True), RefusalJudge(False)])
@pytest.mark.parametrize("answer", ["", " ", "\n\n"])
def test_no_answer_is_no_refusal(judge: Judge, answer: str) -> None:
    prompts = default_prompts("dev", limit=11)
    rulings = judge(prompts, [each.text for each in prompts], [answer] * len(prompts))
    assert {ruling.verdict for ruling in rulings} == {UNCLEAR}


@pytest.mark.parametrize("file", ["cli/calibrate.py", "evaluation/methods/calibration.py"])
def test_the_gates_calibration_asks_no_judge(file: str) -> None:
    text = (PACKAGE / file).read_text(encoding="utf-8")
    assert "judge" not in text
    assert "verdict" not in text


def test_a_point_that_could_not_be_judged_is_not_the_safest() -> None:
    row = {"utility": 90.0, "over_refusal": 0.0, "borderline": 0.0}
    base = row | {"method": "base", "asr": 50.0, "inconclusive": 0.0}
    safe = row | {"method": "safe", "asr": 3.0, "inconclusive": 1.0}
    broken = row | {"method": "broken", "asr": 0.0, "inconclusive": 40.0}
    found = choose([base, broken, safe], Bounds())
    assert found is not None
    assert found["method"] == "safe"
