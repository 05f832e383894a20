"""Paired tests against scipy, against slow enumerations, and in cases worked by hand."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisafe.evaluation.statistics import holm, mcnemar, sign_flip

# ---- McNemar -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (3, 3, 1.0),
        (0, 5, 2 / 32),
        (1, 5, 2 * 7 / 64),
        (2, 8, 2 * 56 / 1024),  # 1 + 10 + 45
        (8, 2, 2 * 56 / 1024),
    ],
)
def test_mcnemar_by_hand(b: int, c: int, p: float) -> None:
    assert mcnemar(b, c) == p


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_scipys_binomial_test(b: int, c: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9)


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_mcnemar_is_a_probability_and_symmetric(b: int, c: int) -> None:
    assert 0 <= mcnemar(b, c) <= 1
    assert mcnemar(b, c) == mcnemar(c, b)


def test_mcnemar_refuses_negative_counts() -> None:
    with pytest.raises(ValueError, match="-1"):
        mcnemar(3, -1)


# ---- sign flips --------------------------------------------------------------------------------


def enumerated(differences: list[int]) -> float:
    """The share of all choices of signs, one by one."""
    far = abs(sum(differences))
    signs = list(itertools.product((-1, 1), repeat=len(differences)))
    sums = [abs(sum(s * d for s, d in zip(each, differences, strict=True))) for each in signs]
    return sum(each >= far for each in sums) / len(signs)


@given(st.lists(st.integers(-9, 9), max_size=9))
def test_sign_flips_are_the_enumeration(differences: list[int]) -> None:
    assert sign_flip(differences) == pytest.approx(enumerated(differences), abs=1e-12)


@given(st.integers(0, 60), st.integers(0, 60))
def test_with_one_prompt_per_cluster_it_is_mcnemars_test(b: int, c: int) -> None:
    assert sign_flip([1] * b + [-1] * c) == pytest.approx(mcnemar(b, c), rel=1e-9)


def test_eleven_categories_cannot_say_more_than_two_in_two_thousand() -> None:
    assert sign_flip([50] * 11) == pytest.approx(2 / 2**11)
    assert mcnemar(550, 0) < 1e-100  # as if the prompts were independent


def test_a_difference_in_one_cluster_alone_proves_nothing() -> None:
    assert sign_flip([40, 0, 0, 0, 0, 0]) == 1.0
    assert mcnemar(40, 0) < 1e-11


def test_a_part_of_a_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="whole number"):
        sign_flip([0.5])


# ---- Holm --------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.03, 0.2: times 4, 3, 2, 1, and never below the one before."""
    found = holm([0.03, 0.01, 0.2, 0.02])
    assert found == pytest.approx([0.06, 0.04, 0.2, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(P_VALUES, st.floats(0.001, 0.2))
def test_holm_is_the_step_down_procedure(ps: list[float], level: float) -> None:
    """Reject the smallest while p <= level / (number left); stop at the first that fails."""
    rejected = set()
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        if (len(ps) - rank) * ps[place] > level:
            break
        rejected.add(place)
    assert {place for place, p in enumerate(holm(ps)) if p <= level} == rejected


@given(P_VALUES)
def test_holm_lies_between_the_values_and_bonferroni(ps: list[float]) -> None:
    for p, adjusted in zip(ps, holm(ps), strict=True):
        assert p <= adjusted <= min(1.0, len(ps) * p + 1e-12)
    assert min(holm(ps)) == pytest.approx(min(1.0, len(ps) * min(ps)))
