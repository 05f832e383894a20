"""Tests of two methods on the same prompts, and the correction for many of them. All exact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def mcnemar(b: int, c: int) -> float:
    """Two-sided p-value of McNemar's test, from 0 to 1, for two methods on the same questions.

    b, c: the number of questions with a hit by only the first, and by only the second, method;
    questions on which both agree do not count. Exact: with n = b + c, twice the probability of at
    most min(b, c) heads in n throws of a fair coin, at most 1; 1 if n is 0. Raises `ValueError`
    for a negative count. Source: Q. McNemar, Psychometrika 12 (1947), 153-157, in its exact
    binomial form.
    """
    if b < 0 or c < 0:
        raise ValueError(f"discordant pairs {b} and {c}; expected counts of 0 or more")
    n, term, tail = b + c, 1, 0
    for i in range(min(b, c) + 1):
        tail += term  # whole numbers, so that nothing underflows for a large n
        term = term * (n - i) // (i + 1)  # C(n, i + 1)
    p: float = 2 * tail / 2**n
    return min(1.0, p)


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p-value of a difference between two methods, from 0 to 1, by clusters of prompts.

    differences: for each cluster, the number of prompts with a hit by only the first method, less
    those with a hit by only the second; whole numbers. If the methods are alike, each cluster's
    difference is as likely to have the other sign. p is the share of all 2^C choices of signs whose
    sum is at least as far from 0. It is exact: the distribution of the sum is built cluster by
    cluster. The smallest possible p is 2 / 2^C. With one prompt per cluster it is McNemar's test.
    Raises `ValueError` unless all are whole numbers. Source: R. A. Fisher, The Design of
    Experiments (1935), section 21, with clusters in place of plants.
    """
    sizes = [abs(int(each)) for each in differences if each]
    if any(each != int(each) for each in differences):
        raise ValueError("a cluster's difference is not a whole number")
    reach, far = sum(sizes), abs(int(sum(differences)))
    chances = np.zeros(2 * reach + 1)  # of each sum, from -reach to reach
    chances[reach] = 1.0
    for size in sizes:  # a sum never leaves the array, so rolling wraps only zeros
        chances = (np.roll(chances, size) + np.roll(chances, -size)) / 2
    sums = np.abs(np.arange(-reach, reach + 1))
    return min(1.0, float(chances[sums >= far].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number, in the same order.

    If all values up to 0.05 are called differences, the chance of even one false call is at most
    5 %, whatever the tests have in common. Source: S. Holm, Scandinavian Journal of Statistics 6
    (1979), 65-70.
    """
    made, largest = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        made[place] = largest
    return made
