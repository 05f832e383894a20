"""Intervals by cluster bootstrap, for answers that are alike within a category, verb or seed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

DRAWS = 2000
SEED = 0


def cluster_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    draws: int = DRAWS,
    seed: int = SEED,
) -> tuple[float, float]:
    """95 % interval of the mean of `values`, in their unit, if whole clusters are drawn.

    clusters: the cluster of each value. Each draw takes as many clusters as there are, with
    replacement, and all values of each; the ends are the 2.5th and 97.5th percentile of the means

    (A. C. Davison and D. V. Hinkley, Bootstrap Methods and their Application, 1997).
    The same input gives the same interval. Both ends are nan where the draws cannot vary: fewer
    than two clusters, or the same mean in each. Few clusters (below about 20) make it too narrow.
    Raises `ValueError` if the lengths differ.
    """
    sums, sizes = cluster_sums(values, clusters)
    means = sums / sizes
    if len(means) < 2 or np.ptp(means) == 0:
        return math.nan, math.nan
    found = bootstrap(sums, sizes, draws, seed)
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def cluster_sums(
    values: Sequence[float], clusters: Sequence[Hashable]
) -> tuple[np.ndarray, np.ndarray]:
    """The sum of each cluster's values and their number, (C,) each, by first appearance."""
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values and {len(clusters)} clusters; expected as many")
    places = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    number = np.array([places[name] for name in clusters], dtype=np.int64)
    given = np.array(values, dtype=float)
    return np.bincount(number, given, len(places)), np.bincount(number, minlength=len(places))


def bootstrap(sums: np.ndarray, sizes: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """The means of `draws` draws of clusters, (draws,).

    Clusters with the same sum and size are one kind, drawn together: the distribution is the same,
    and thousands of prompts with a value of 0 or 1 are only two kinds.
    """
    kinds = Counter(zip(sums.tolist(), sizes.tolist(), strict=True))
    total = len(sums)
    weights = np.random.default_rng(seed).multinomial(
        total, [count / total for count in kinds.values()], size=draws
    )  # (draws, kinds)
    parts = np.array(list(kinds), dtype=float)  # (kinds, 2)
    drawn = weights @ parts  # (draws, 2)
    means: np.ndarray = drawn[:, 0] / drawn[:, 1]
    return means
