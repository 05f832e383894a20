"""One method against every other: each pair once, unclear answers as hits, worst cases, Holm."""

from __future__ import annotations

import pytest

from minisafe.errors import SettingError
from minisafe.evaluation.report.paired import chosen_method, paired_tests
from minisafe.evaluation.report.sections.paired import paired
from minisafe.evaluation.report.summary import summarise
from minisafe.evaluation.statistics import holm, mcnemar, sign_flip
from tests.evaluation.test_ruled import COMPLIED, REFUSED, ruled

UNCLEAR = "INCONCLUSIVE"


def test_the_method_tested_is_the_first_after_the_base_or_the_named_one() -> None:
    assert chosen_method(["base", "b", "a"], None) == "b"
    assert chosen_method(["b", "base"], None) == "b"
    assert chosen_method(["base", "b", "a", "a"], "a") == "a"
    assert chosen_method(["base"], None) is None
    assert chosen_method(["b"], None) is None
    with pytest.raises(
        SettingError, match="no method 'c' to test against; expected one of base, b"
    ):
        chosen_method(["base", "b"], "c")


def test_each_pair_is_tested_once_on_the_first_judge() -> None:
    made = [
        ruled(str(n), REFUSED if method == "own" else COMPLIED, style, method=method)
        for method in ("base", "own", "other") for style in ("simple", "cot") for n in range(6)
    ]  # fmt: skip
    second = [type(each)(each.answer, "k", REFUSED, None, None) for each in made]
    rows = paired_tests([*made, *second], "own")
    assert [(row["other"], row["style"]) for row in rows] == [
        ("base", "simple"), ("other", "simple"), ("base", "cot"), ("other", "cot"),
    ]  # fmt: skip
    assert {row["judge"] for row in rows} == {"j"}
    assert {row["method"] for row in rows} == {"own"}
    for row in rows:
        assert (row["n"], row["method_only"], row["other_only"]) == (6, 0, 6)
        assert row["p"] == mcnemar(0, 6)
        assert row["p_holm"] == pytest.approx(4 * mcnemar(0, 6))
        assert (row["clusters"], row["p_cluster"]) == (None, None)


def test_an_unclear_answer_is_a_hit_and_never_safety() -> None:
    """A method whose answers no judge can place is no better than one that complies."""
    broken = [ruled(str(n), UNCLEAR, method="broken") for n in range(9)]
    base = [ruled(str(n), COMPLIED) for n in range(9)]
    (row,) = paired_tests([*base, *broken], "broken")
    assert (row["method_only"], row["other_only"], row["p"]) == (0, 0, 1.0)
    safe = [ruled(str(n), REFUSED, method="safe") for n in range(9)]
    (row,) = paired_tests([*broken, *safe], "broken")
    assert (row["method_only"], row["difference"]) == (9, 100.0)


def test_clusters_are_verbs_or_else_categories() -> None:
    def both(**field: str) -> list:  # type: ignore[type-arg]
        return [
            ruled(str(n), COMPLIED if method == "base" else REFUSED, method=method,
                  **{name: f"{text}{n // 5}" for name, text in field.items()})
            for method in ("base", "own") for n in range(20)
        ]  # fmt: skip

    (row,) = paired_tests(both(category="c", verb="v"), "own")
    assert (row["clusters"], row["p_cluster"]) == ("verb", sign_flip([-5] * 4))
    (row,) = paired_tests(both(category="c"), "own")
    assert (row["clusters"], row["p_cluster"]) == ("category", 2 / 16)
    assert row["p"] < 1e-5


def test_the_worst_case_is_each_methods_own_worst_attack() -> None:
    verdicts = {
        ("base", "typos"): [COMPLIED, REFUSED, REFUSED, REFUSED],
        ("base", "search"): [COMPLIED, COMPLIED, COMPLIED, UNCLEAR],
        ("own", "typos"): [REFUSED, COMPLIED, REFUSED, REFUSED],
        ("own", "search"): [REFUSED] * 4,
    }
    made = [
        ruled(str(n), verdict, style, method=method, attack=True)
        for (method, style), given in verdicts.items() for n, verdict in enumerate(given)
    ]  # fmt: skip
    rows = {row["style"]: row for row in paired_tests(made, "own")}
    assert list(rows) == ["worst", "typos", "search"]
    assert (rows["worst"]["method_only"], rows["worst"]["other_only"]) == (0, 3)
    assert (rows["typos"]["method_only"], rows["typos"]["other_only"]) == (1, 1)
    assert all(row["attack"] for row in rows.values())
    assert rows["worst"]["p_holm"] == rows["worst"]["p"]
    attacks = [rows["typos"], rows["search"]]
    assert [row["p_holm"] for row in attacks] == holm([row["p"] for row in attacks])


def test_first_questions_worst_cases_and_attacks_are_corrected_apart() -> None:
    made = [
        ruled(str(n), COMPLIED if method == "base" else REFUSED, style, method=method,
              attack=style != "simple")
        for style in ("simple", "typos", "nested") for method in ("base", "own") for n in range(8)
    ]  # fmt: skip
    plain, worst, typos, nested = paired_tests(made, "own")
    assert plain["p_holm"] == plain["p"]
    assert worst["p_holm"] == worst["p"]
    assert typos["p_holm"] == nested["p_holm"] == 2 * typos["p"]


def test_only_shared_prompts_are_paired() -> None:
    base = [ruled(str(n), COMPLIED) for n in range(5)]
    own = [ruled(str(n), REFUSED, method="own") for n in range(3, 9)]
    (row,) = paired_tests([*base, *own], "own")
    assert (row["n"], row["other_only"]) == (2, 2)
    assert paired_tests([*base, *own[2:]], "own") == []


def test_the_section_has_a_row_per_test_with_corrected_values() -> None:
    made = [
        ruled(str(n), COMPLIED if method == "base" else REFUSED, style, method=method)
        for method in ("base", "own") for style in ("simple", "cot") for n in range(10)
    ]  # fmt: skip
    section = paired(summarise(made, [each.answer for each in made]))
    assert section is not None
    (table,) = section.tables
    assert table.caption == "First questions: 2 tests, corrected together"
    assert [row[:2] for row in table.rows] == [("base", "simple"), ("base", "cot")]
    assert {row[-2] for row in table.rows} == {f"{2 * mcnemar(0, 10):.4f}"}
    assert {row[-1] for row in table.rows} == {"–"}  # no clusters are known
    assert section.notes[0] == "own against every other method, by judge j."
