"""Interval and agreement against scipy, hand-computed values and their own laws."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisafe.evaluation.statistics import cohen_kappa, wilson

COUNTS = st.integers(0, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
VERDICTS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), max_size=30)


# ---- Wilson ------------------------------------------------------------------------------------


def test_wilson_by_hand() -> None:
    """z = 1: of 1 in 2, (1/2 + 1/4) / (3/2) -+ sqrt(1/8 + 1/16) / (3/2); of 0 in 3, 0 to 1/4."""
    half = math.sqrt(3 / 16) / 1.5
    assert wilson(1, 2, 1.0) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-15)
    assert wilson(0, 3, 1.0) == pytest.approx((0.0, 0.25), abs=1e-15)
    assert wilson(3, 3, 1.0) == pytest.approx((0.75, 1.0), abs=1e-15)


def test_wilson_of_ten_questions() -> None:
    """0 of 10 at 95 %: 3.84146 / 13.84146 = 0.27753."""
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775328), abs=1e-6)


def test_wilson_ends_exactly_at_none_and_all() -> None:
    for n in range(1, 300):
        assert wilson(0, n)[0] == 0
        assert wilson(n, n)[1] == 1


def test_wilson_of_nothing_is_nan() -> None:
    assert all(math.isnan(end) for end in wilson(0, 0))


@pytest.mark.parametrize(("hits", "n", "z"), [(-1, 3, 1), (4, 3, 1), (1, 3, -1), (1, 3, math.nan)])
def test_wilson_refuses_impossible_counts(hits: int, n: int, z: float) -> None:
    with pytest.raises(ValueError, match=f"hits {hits} of {n}"):
        wilson(hits, n, z)


@given(COUNTS)
def test_wilson_is_scipys(counts: tuple[int, int]) -> None:
    stats = pytest.importorskip("scipy.stats")
    hits, n = counts
    if n == 0:
        return
    theirs = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert wilson(hits, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@given(COUNTS, st.floats(0, 10))
def test_wilson_holds_the_share_and_mirrors(counts: tuple[int, int], z: float) -> None:
    hits, n = counts
    if n == 0:
        return
    low, high = wilson(hits, n, z)
    assert 0 <= low <= hits / n + 1e-12
    assert hits / n - 1e-12 <= high <= 1
    assert wilson(n - hits, n, z) == pytest.approx((1 - high, 1 - low), abs=1e-12)


# ---- Cohen's kappa -----------------------------------------------------------------------------


def table(yes_yes: int, yes_no: int, no_yes: int, no_no: int) -> list[tuple[str, str]]:
    cells = {("y", "y"): yes_yes, ("y", "n"): yes_no, ("n", "y"): no_yes, ("n", "n"): no_no}
    return [pair for pair, times in cells.items() for _ in range(times)]


def test_kappa_by_hand() -> None:
    """Agreement 35/50, chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5, so kappa is 0.2 / 0.5."""
    assert cohen_kappa(table(20, 5, 10, 15)) == pytest.approx(0.4, abs=1e-15)


def test_kappa_of_three_verdicts_by_hand() -> None:
    """5 of 6 agree; chance (2 * 2 + 2 * 1 + 2 * 3) / 36 = 1/3; kappa (5/6 - 1/3) / (2/3)."""
    pairs = [("a", "a"), ("a", "a"), ("b", "b"), ("b", "c"), ("c", "c"), ("c", "c")]
    assert cohen_kappa(pairs) == pytest.approx(0.75, abs=1e-15)


@pytest.mark.parametrize(
    ("pairs", "kappa"),
    [
        (table(3, 0, 0, 2), 1.0),
        (table(0, 1, 1, 0), -1.0),
        (table(1, 1, 1, 1), 0.0),
        ([("a", "b")], 0.0),
    ],
)
def test_kappa_of_plain_cases(pairs: list[tuple[str, str]], kappa: float) -> None:
    assert cohen_kappa(pairs) == kappa


@pytest.mark.parametrize("pairs", [[], [("a", "a")], [("a", "a")] * 9])
def test_kappa_is_undefined_where_chance_alone_agrees(pairs: list[tuple[str, str]]) -> None:
    assert math.isnan(cohen_kappa(pairs))


@given(VERDICTS)
def test_kappa_is_symmetric_and_at_most_one(pairs: list[tuple[str, str]]) -> None:
    kappa = cohen_kappa(pairs)
    mirrored = cohen_kappa([(b, a) for a, b in pairs])
    assert kappa == mirrored or (math.isnan(kappa) and math.isnan(mirrored))
    if not math.isnan(kappa):
        assert kappa <= 1
        assert (kappa == 1) == all(a == b for a, b in pairs)
