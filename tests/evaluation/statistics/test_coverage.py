"""What share of calibrations a conformal bound fails for: against scipy and against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisafe.evaluation.statistics import exceedance, share_exceeded

PLACES = st.integers(1, 400).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


@given(PLACES, st.floats(0.001, 0.999))
def test_it_is_scipys_beta_distribution(place: tuple[int, int], share: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    n, k = place
    expected = stats.beta.cdf(1 - share, k, n + 1 - k)
    assert exceedance(n, k, share) == pytest.approx(expected, abs=1e-9)


@given(PLACES)
def test_the_percentile_is_its_inverse(place: tuple[int, int]) -> None:
    n, k = place
    share = share_exceeded(n, k)
    assert exceedance(n, k, share) <= 0.05
    if share > 1e-6:
        assert exceedance(n, k, share - 1e-6) > 0.05 - 1e-4


def test_two_hundred_prompts_and_two_per_cent() -> None:
    """The 197th of 200: over 2 % in 43 % of calibrations, and 3.8 % in one of twenty."""
    assert exceedance(200, 197, 0.02) == pytest.approx(0.43, abs=0.005)
    assert share_exceeded(200, 197) == pytest.approx(0.038, abs=0.0005)


def test_simulated_calibrations_exceed_as_often() -> None:
    """20,000 calibrations of 50 uniform values: above the k-th lies a share of 1 - value."""
    values = np.sort(np.random.default_rng(0).random((20_000, 50)), axis=1)
    for k, share in ((50, 0.02), (48, 0.05), (46, 0.1)):
        realised = 1 - values[:, k - 1]
        assert exceedance(50, k, share) == pytest.approx((realised > share).mean(), abs=0.012)
        assert share_exceeded(50, k) == pytest.approx(np.quantile(realised, 0.95), abs=0.004)


@pytest.mark.parametrize(("n", "k", "share"), [(5, 0, 0.1), (5, 6, 0.1), (5, 1, 0), (5, 1, 1)])
def test_what_cannot_be_is_refused(n: int, k: int, share: float) -> None:
    with pytest.raises(ValueError, match=f"place {k} of {n}"):
        exceedance(n, k, share)
