"""Interval and agreement for shares of answers; plain arithmetic, no dependencies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

Z95 = 1.959963984540054  # standard normal quantile at 0.975: a two-sided 95 % interval


def wilson(hits: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of the share `hits / n`, as fractions from 0 to 1.

    z: normal quantile of the confidence level (no unit). Both ends are nan if n is 0. Raises
    `ValueError` unless 0 <= hits <= n and z >= 0. Source: E. B. Wilson, JASA 22 (1927), 209-212.
    """
    if not 0 <= hits <= n or not z >= 0:
        raise ValueError(f"hits {hits} of {n} at z {z}; expected 0 <= hits <= n and z >= 0")
    if n == 0:
        return math.nan, math.nan
    p, z2 = hits / n, z * z
    middle = p + z2 / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z2 / (4 * n**2))
    scale = 1 + z2 / n
    # At the ends of the scale the bound is exact; rounding would shift it slightly.
    low = 0.0 if hits == 0 else max(0.0, (middle - half) / scale)
    high = 1.0 if hits == n else min(1.0, (middle + half) / scale)
    return low, high


def cohen_kappa(pairs: Sequence[tuple[str, str]]) -> float:
    """Agreement of two judges beyond chance, at most 1, by Cohen's kappa without weights.

    pairs: the two judges' verdicts on each answer. nan if it is undefined: no pairs, or both
    judges always gave the same single verdict, so that chance explains all agreement. Source:
    J. Cohen, Educational and Psychological Measurement 20 (1960), 37-46.
    """
    n = len(pairs)
    agreed = sum(first == second for first, second in pairs)
    firsts, seconds = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = sum(firsts[verdict] * seconds[verdict] for verdict in firsts)  # times n * n
    return (n * agreed - chance) / (n * n - chance) if n * n != chance else math.nan
