"""How far the coverage of a conformal bound varies from calibration to calibration.

With n calibration values and the k-th smallest as the threshold, the share of new values at or
below it has the distribution Beta(k, n + 1 - k) over calibrations, if values are continuous; ties
only raise it (V. Vovk, Conditional validity of inductive conformal predictors, 2012, arXiv
1209.2673; Angelopoulos and Bates, 2021, arXiv 2107.07511).
"""

from __future__ import annotations

import math


def exceedance(n: int, place: int, share: float) -> float:
    """The probability, 0 to 1, that more than `share` of new values exceed the `place`-th smallest
    of n calibration values.

    P(Beta(k, n + 1 - k) < 1 - share) is P(Binomial(n, share) <= n - k), a finite sum. Raises
    `ValueError` unless 1 <= place <= n and 0 < share < 1.
    """
    if not 1 <= place <= n or not 0 < share < 1:
        raise ValueError(f"place {place} of {n}, share {share}; expected 1 to n, and 0 to 1")
    inside, outside = math.log(share), math.log1p(-share)
    terms = (
        math.exp(log_choose(n, i) + i * inside + (n - i) * outside) for i in range(n - place + 1)
    )
    return min(1.0, math.fsum(terms))


def log_choose(n: int, k: int) -> float:
    """The logarithm of the number of ways to choose k of n."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def share_exceeded(n: int, place: int, chance: float = 0.05) -> float:
    """The share, 0 to 1, that new values exceed with no more than this chance over calibrations.

    With the default, 95 % of calibrations have a lower share above their threshold. Found by
    bisection, to 1e-9.
    """
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if exceedance(n, place, middle) > chance else (low, middle)
    return high
