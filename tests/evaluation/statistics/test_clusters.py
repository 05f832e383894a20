"""The cluster bootstrap against a slow one that draws cluster by cluster, and in known cases."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisafe.evaluation.statistics import cluster_interval, cluster_sums, wilson

ANSWERS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), min_size=2, max_size=60)


def slow(values: list[float], clusters: list[int], draws: int) -> tuple[float, float]:
    """Draw clusters with replacement, one at a time, and take every value of each."""
    members: dict[int, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        members.setdefault(cluster, []).append(value)
    rng, means = random.Random(7), []
    for _ in range(draws):
        chosen = rng.choices(list(members.values()), k=len(members))
        means.append(statistics.fmean(value for part in chosen for value in part))
    cuts = statistics.quantiles(means, n=40, method="inclusive")
    return cuts[0], cuts[-1]


def test_it_is_the_slow_bootstrap() -> None:
    rng = random.Random(1)
    clusters = [rng.randrange(12) for _ in range(300)]  # of different sizes
    values = [float(rng.random() < (cluster + 1) / 14) for cluster in clusters]
    fast = cluster_interval(values, clusters, draws=20_000)
    assert fast == pytest.approx(slow(values, clusters, 20_000), abs=0.012)


def test_clusters_that_are_all_alike_inside_are_far_wider_than_wilson() -> None:
    """Of 11 categories of 50 questions, 7 always comply: as good as 11 questions, not 550."""
    values = [float(n // 50 < 7) for n in range(550)]
    low, high = cluster_interval(values, [n // 50 for n in range(550)])
    plain_low, plain_high = wilson(350, 550)
    assert high - low > 6 * (plain_high - plain_low)
    eleven_low, eleven_high = wilson(7, 11)
    assert high - low == pytest.approx(eleven_high - eleven_low, abs=0.1)


def test_clusters_of_one_are_the_ordinary_bootstrap() -> None:
    """Close to the normal interval, and so to Wilson's, for 200 of 500."""
    values = [float(n < 200) for n in range(500)]
    half = 1.96 * math.sqrt(0.4 * 0.6 / 500)
    found = cluster_interval(values, range(500))
    assert found == pytest.approx((0.4 - half, 0.4 + half), abs=0.006)
    assert found == pytest.approx(wilson(200, 500), abs=0.006)


def test_it_covers_about_what_it_says_and_wilson_does_not() -> None:
    """40 clusters of 10 with shares of their own around 1/2: the true mean is in 95 % or so."""
    rng, within, plain = random.Random(3), 0, 0
    for _ in range(200):
        shares = [rng.choice((0.1, 0.9)) for _ in range(40)]
        values = [float(rng.random() < share) for share in shares for _ in range(10)]
        low, high = cluster_interval(values, [n // 10 for n in range(400)], draws=400)
        within += low <= 0.5 <= high
        low, high = wilson(int(sum(values)), 400)
        plain += low <= 0.5 <= high
    assert 178 <= within <= 200
    assert plain < 140


@given(ANSWERS)
@settings(max_examples=50)
def test_it_is_deterministic_and_holds_possible_means(answers: list[tuple[int, int]]) -> None:
    values, clusters = [float(v) for v, _ in answers], [c for _, c in answers]
    found = cluster_interval(values, clusters, draws=100)
    again = cluster_interval(values, clusters, draws=100)
    if math.isnan(found[0]):
        assert all(map(math.isnan, again + found))
        return
    assert found == again
    assert 0 <= found[0] <= found[1] <= 1


@pytest.mark.parametrize(
    ("values", "clusters"),
    [([], []), ([1.0, 0.0], ["a", "a"]), ([0.0] * 9, list(range(9))), ([1.0, 0.0] * 2, "aabb")],
    ids=str,
)
def test_where_draws_cannot_vary_there_is_no_interval(values: list[float], clusters: str) -> None:
    assert all(map(math.isnan, cluster_interval(values, clusters)))


def test_sums_by_first_appearance() -> None:
    sums, sizes = cluster_sums([1, 0, 1, 1], ["b", "a", "b", "c"])
    assert (sums.tolist(), sizes.tolist()) == ([2, 0, 1], [2, 1, 1])
    with pytest.raises(ValueError, match="2 values and 1 clusters"):
        cluster_sums([1, 0], ["a"])


def test_many_prompts_are_few_kinds() -> None:
    """A million clusters of one: quick, because they are two kinds."""
    values = [float(n % 4 == 0) for n in range(1_000_000)]
    low, high = cluster_interval(values, range(1_000_000))
    assert low == pytest.approx(0.25, abs=0.002)
    assert high == pytest.approx(0.25, abs=0.002)
