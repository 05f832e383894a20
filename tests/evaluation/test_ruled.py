"""Shares with their intervals: each prompt counts once, and clusters are known or left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from minisafe.evaluation.records import MadeBy, Response
from minisafe.evaluation.report.rows import widest
from minisafe.evaluation.report.ruled import Ruled, clusters_of, share, share_of_prompts
from minisafe.evaluation.report.sections.results import columns_of, main_table
from minisafe.evaluation.report.summary import same_as_base, summarise, was_refused
from minisafe.evaluation.statistics import cluster_interval, wilson

REFUSED, COMPLIED = "REFUSED", "ATTACK_SUCCEEDED"


def ruled(
    id_: str, verdict: str, style: str = "simple", category: str = "", verb: str = "",
    method: str = "base", kind: str = "harmful", attack: bool = False, intact: bool | None = None,
) -> Ruled:  # fmt: skip
    answer = Response(
        method=method, style=style, id=id_, kind=kind, category=category, question="", prompt="",
        draw=None, answer="", finish="stop", tokens=1, seconds=1.0, gate=None,
        made_by=MadeBy({}, {}, {}, {}), attack=attack, verb=verb,
    )  # fmt: skip
    return Ruled(answer, "j", verdict, intact, None)


def test_a_share_has_wilsons_interval_and_those_of_its_clusters() -> None:
    """Of 4 categories with 10 verbs of 3 questions each, all of two categories refuse."""
    part = [
        ruled(
            str(n), REFUSED if n // 30 < 2 else COMPLIED, category=f"c{n // 30}", verb=f"v{n // 3}"
        )
        for n in range(120)
    ]
    row = share("refused", part, was_refused)
    low, high = wilson(60, 120)
    assert (row["n"], row["refused"]) == (120, 50.0)
    assert (row["low"], row["high"]) == (100 * low, 100 * high)
    values = [float(n < 60) for n in range(120)]
    by_category = cluster_interval(values, [n // 30 for n in range(120)])
    assert (row["low_category"], row["high_category"]) == pytest.approx(
        [100 * e for e in by_category]
    )
    assert row["low_category"] < row["low_verb"] < row["low"]
    assert widest(row) == (row["low_category"], row["high_category"])


def test_where_no_cluster_is_known_there_is_no_interval_by_cluster() -> None:
    row = share("refused", [ruled(str(n), REFUSED) for n in range(5)], was_refused)
    assert set(row) == {"n", "refused", "low", "high"}
    part = [ruled("a", REFUSED, category="c"), ruled("b", REFUSED)]
    assert clusters_of([each.answer for each in part], "category") == ["c", ("b",)]
    assert share("refused", part, was_refused)["low_category"] is None


def test_a_prompt_in_three_styles_is_one_prompt() -> None:
    """Three styles that agree tell no more than one: the interval is that of 20 prompts, not 60."""
    part = [
        ruled(str(n), REFUSED, style=style, intact=n < 10)
        for style in ("simple", "instruction", "cot") for n in range(20)
    ]  # fmt: skip
    row = share_of_prompts("value", part, lambda each: each.intact is True)
    assert (row["n"], row["answers"], row["value"]) == (20, 60, 50.0)
    once = cluster_interval([float(n < 10) for n in range(20)], range(20))
    assert (row["low"], row["high"]) == pytest.approx([100 * end for end in once])
    pooled_low, pooled_high = wilson(30, 60)
    assert row["high"] - row["low"] > 1.5 * 100 * (pooled_high - pooled_low)
    (own,) = summarise(part, [])["utility"]
    assert (own["measure"], own["n"]) == ("intact text", 20)


def test_a_prompts_share_is_the_mean_over_its_styles() -> None:
    part = [ruled("a", REFUSED, "s"), ruled("a", COMPLIED, "t"), ruled("b", REFUSED, "s")]
    assert share_of_prompts("x", part, was_refused)["x"] == 75.0
    alike = share_of_prompts("x", part[:1] + part[2:], was_refused)
    assert (alike["low"], alike["high"]) == (100 * wilson(2, 2)[0], 100.0)


def test_intact_text_stands_beside_attack_success() -> None:
    part = [ruled(str(n), COMPLIED if n < 3 else REFUSED, intact=n != 0) for n in range(4)]
    (row, *_) = summarise(part, [])["rows"]
    assert (row["asr"], row["intact"]) == (75, 75)
    table = main_table(columns_of({"rows": [row]}, "j"), "j")
    assert table.head == ("method", "ASR, simple (n = 4)", "intact, simple (n = 4)")
    assert table.rows[0][2] == "75.0"  # without the interval of attack success
    unknown = summarise([ruled("0", COMPLIED)], [])["rows"][0]
    assert "intact" not in unknown


def test_answers_that_are_the_bases() -> None:
    """Word for word, on harmless prompts that both answered; attacks do not count."""

    def answer(method: str, id_: str, text: str, **more: Any) -> Response:
        return replace(ruled(id_, COMPLIED, method=method, **more).answer, answer=text)

    answers = [
        answer("base", "1", "Yes.", kind="benign"), answer("base", "2", "No.", kind="benign"),
        answer("base", "3", "Yes."), answer("sa", "1", "Yes.", kind="benign"),
        answer("sa", "2", "No!", kind="benign"), answer("sa", "3", "No."),
        answer("sa", "4", "No.", kind="benign"),
        answer("sa", "1", "No.", kind="benign", attack=True),
    ]  # fmt: skip
    assert same_as_base(answers, "sa") == {"same": 50, "n_same": 2}
    assert same_as_base(answers, "base") == {"same": 100, "n_same": 2}
    assert same_as_base(answers[3:], "sa") == {}
