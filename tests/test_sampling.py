"""From log-probabilities to a token: every filter against an obvious one, and the draws."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from minisafe.errors import SettingError
from minisafe.sampling import Sampling, filtered, penalised, row_generator, sample

INF = float("inf")
# Where a float32 sum stands within this of a threshold, either side of it is right.
NEAR = 1e-4

temperatures = st.floats(0.1, 3)
top_ks = st.integers(0, 14)
top_ps = st.one_of(st.just(1.0), st.floats(0.01, 1))
min_ps = st.one_of(st.just(0.0), st.floats(0.001, 0.999))
penalties = st.floats(-2, 2)


@st.composite
def distributions(draw: st.DrawFn) -> torch.Tensor:
    """(vocab,) float32 log-probabilities of 2 to 12 ids, no two alike, perhaps some forbidden."""
    n = draw(st.integers(2, 12))
    ranks = draw(st.permutations(range(n)))
    gaps = draw(st.lists(st.floats(0.01, 2), min_size=n, max_size=n))
    heights = np.cumsum(gaps)
    values = torch.tensor([heights[rank] for rank in ranks])
    for place in draw(st.lists(st.integers(0, n - 1), max_size=n - 1, unique=True)):
        if draw(st.booleans()):
            values[place] = -INF
    return torch.log_softmax(values.float(), dim=-1)


def normal(p: np.ndarray) -> np.ndarray:
    return p / p.sum()


def obvious(log_probs: torch.Tensor, settings: Sampling, counts: dict[int, int]) -> np.ndarray:
    """The stated order, one filter after another, on probabilities in float64."""
    p = np.exp(log_probs.double().numpy())
    for token, times in counts.items():  # penalties
        p[token] *= math.exp(-settings.presence_penalty - settings.frequency_penalty * times)
    p = normal(p)
    with np.errstate(divide="ignore"):
        scores = np.log(p) / settings.temperature  # temperature
    p = normal(np.exp(scores - scores.max()))
    order = sorted(range(len(p)), key=lambda token: -p[token])
    if settings.top_k:  # top-k
        for token in order[settings.top_k :]:
            p[token] = 0.0
        p = normal(p)
    kept, total = set(), 0.0  # top-p
    for token in order:
        if total < settings.top_p or settings.top_p == 1:
            kept.add(token)
        total += p[token]
    p = normal(np.array([p[token] if token in kept else 0.0 for token in range(len(p))]))
    p[p < settings.min_p * p.max()] = 0.0  # min-p
    return normal(p)


def near_a_threshold(log_probs: torch.Tensor, settings: Sampling, counts: dict[int, int]) -> bool:
    """Whether a rounding could move a token across a filter's threshold."""
    loose = Sampling(settings.temperature, settings.top_k, 1.0, 0.0)
    p = np.sort(obvious(penalised(log_probs, settings, counts), loose, {}))[::-1]
    sums = np.cumsum(p)
    kept = p[: int(np.argmax(sums >= settings.top_p)) + 1]
    return bool(
        (settings.top_p < 1 and (np.abs(sums - settings.top_p) < NEAR).any())
        or (np.abs(kept / kept[0] - settings.min_p) < NEAR * max(settings.min_p, 0.01)).any()
        or (settings.top_k > 0 and (np.abs(np.diff(p)) < 1e-9).any())
    )  # fmt: skip


@given(
    distributions(), temperatures, top_ks, top_ps, min_ps, penalties, penalties,
    st.dictionaries(st.integers(0, 11), st.integers(1, 5), max_size=4),
)  # fmt: skip
def test_all_filters_in_the_stated_order(
    log_probs: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float,
    presence: float, frequency: float, counts: dict[int, int],
) -> None:  # fmt: skip
    counts = {token: times for token, times in counts.items() if token < len(log_probs)}
    settings = Sampling(temperature, top_k, top_p, min_p, presence, frequency)
    assume(not near_a_threshold(log_probs, settings, counts))
    found = filtered(log_probs, settings, counts)
    expected = obvious(log_probs, settings, counts)
    np.testing.assert_allclose(found.exp().numpy(), expected, atol=1e-4)
    assert (found.isfinite().numpy() == (expected > 0)).all()


@given(distributions(), st.integers(1, 12))
def test_top_k_keeps_k(log_probs: torch.Tensor, k: int) -> None:
    found = filtered(log_probs, Sampling(1.0, top_k=k), {})
    possible = int(log_probs.isfinite().sum())
    assert int(found.isfinite().sum()) == min(k, possible)
    worst_kept = log_probs[found.isfinite()].min()
    assert (log_probs[~found.isfinite()] <= worst_kept).all()


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.01, 1), (0.49, 1), (0.51, 2), (0.74, 2), (0.76, 3), (0.9, 4), (1.0, 4)]
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: int) -> None:
    log_probs = torch.tensor([0.125, 0.5, 0.125, 0.25]).log()
    found = filtered(log_probs, Sampling(1.0, top_p=top_p), {})
    assert int(found.isfinite().sum()) == kept
    order = [1, 3, 0, 2]  # the likeliest first; of equals the first
    assert found.isfinite().nonzero().flatten().tolist() == sorted(order[:kept])
    assert found.exp().sum().item() == pytest.approx(1)


@pytest.mark.parametrize(("min_p", "kept"), [(0.0, 4), (0.2, 4), (0.3, 2), (0.6, 1), (0.999, 1)])
def test_min_p_is_relative_to_the_likeliest(min_p: float, kept: int) -> None:
    log_probs = torch.tensor([0.125, 0.5, 0.125, 0.25]).log()
    found = filtered(log_probs, Sampling(1.0, min_p=min_p), {})
    assert int(found.isfinite().sum()) == kept


@pytest.mark.parametrize("n", [2, 4, 8, 64])
def test_top_p_stops_where_the_sum_is_exactly_reached(n: int) -> None:
    """Equal tokens, 1 / n each: their sums are exact, so a sum can be the threshold itself."""
    log_probs = torch.full((n,), 1 / n).log()
    for kept in range(1, n):
        found = filtered(log_probs, Sampling(1.0, top_p=kept / n), {})
        assert found.isfinite().nonzero().flatten().tolist() == list(range(kept))
        assert found[:kept].exp().tolist() == pytest.approx([1 / kept] * kept)


def test_min_p_keeps_what_stands_on_its_threshold() -> None:
    """Of the largest value below 1 float32 leaves nothing: the threshold is the likeliest token."""
    log_probs = torch.tensor([0.3, 0.1, 0.3, 0.3]).log()
    found = filtered(log_probs, Sampling(1.0, min_p=math.nextafter(1, 0)), {})
    assert found.exp().tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_keeps_k_of_equals(k: int) -> None:
    found = filtered(torch.full((4,), 0.25).log(), Sampling(1.0, top_k=k), {})
    assert int(found.isfinite().sum()) == k


def test_top_p_counts_what_top_k_left() -> None:
    log_probs = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    found = filtered(log_probs, Sampling(1.0, top_k=2, top_p=0.5), {})
    # of the two that top-k leaves the first has 0.57, which reaches 0.5 alone
    assert found.exp().tolist() == pytest.approx([1, 0, 0, 0])


def test_temperature_comes_before_top_p() -> None:
    log_probs = torch.tensor([0.5, 0.3, 0.2]).log()
    assert filtered(log_probs, Sampling(1.0, top_p=0.6), {}).isfinite().tolist() == [1, 1, 0]
    assert filtered(log_probs, Sampling(0.5, top_p=0.6), {}).isfinite().tolist() == [1, 0, 0]
    assert filtered(log_probs, Sampling(9.0, top_p=0.7), {}).isfinite().tolist() == [1, 1, 1]


def test_penalties_come_first() -> None:
    log_probs = torch.tensor([0.5, 0.3, 0.2]).log()
    settings = Sampling(1.0, top_k=1, presence_penalty=0.3, frequency_penalty=0.3)
    assert filtered(log_probs, settings, {}).argmax() == 0
    assert filtered(log_probs, settings, {0: 1}).argmax() == 1  # 0.5 exp(-0.6) is 0.27


def test_the_penalties_by_hand() -> None:
    log_probs = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    settings = Sampling(presence_penalty=1.5, frequency_penalty=-0.25)
    found = penalised(log_probs, settings, {3: 1, 0: 4, 1: 0}) - log_probs
    assert found.tolist() == pytest.approx([-1.5 + 4 * 0.25, -1.5, 0, -1.5 + 0.25], abs=1e-6)
    assert penalised(log_probs, settings, {}) is log_probs
    assert penalised(log_probs, Sampling(), {0: 1}) is log_probs


@given(distributions(), st.integers(0, 5))
def test_temperature_0_takes_the_likeliest(log_probs: torch.Tensor, seed: int) -> None:
    generator = row_generator(seed, 0)
    settings = Sampling(0.0, top_k=3, top_p=0.1, min_p=0.5, seed=seed)
    assert sample(log_probs, settings, {}, generator) == int(log_probs.argmax())
    best = filtered(log_probs, settings, {}).exp()
    assert best.sum() == 1
    assert int(best.argmax()) == int(log_probs.argmax())
    assert torch.equal(generator.get_state(), row_generator(seed, 0).get_state())  # not drawn


@given(distributions(), st.integers(0, 11))
def test_temperature_0_heeds_penalties(log_probs: torch.Tensor, token: int) -> None:
    assume(int(log_probs.isfinite().sum()) > 1)
    best = int(log_probs.argmax())
    settings = Sampling(0.0, frequency_penalty=500.0)
    assert sample(log_probs, settings, {best: 1}, row_generator(0, 0)) != best


@pytest.mark.parametrize("temperature", [1e-3, 1e-20, 1e-38, 1e-45, 1e-300])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    log_probs = torch.tensor([0.2, 0.5, 0.3, 0.0]).log()
    settings = Sampling(temperature)
    assert filtered(log_probs, settings, {}).exp().tolist() == pytest.approx([0, 1, 0, 0])
    assert {sample(log_probs, settings, {}, row_generator(s, 0)) for s in range(5)} == {1}


def test_a_huge_temperature_is_uniform_on_the_support() -> None:
    log_probs = torch.tensor([0.9, 0.1, 0.0]).log()
    found = filtered(log_probs, Sampling(1e30), {}).exp()
    assert found.tolist() == pytest.approx([0.5, 0.5, 0])


# ---- draws -------------------------------------------------------------------------------------

# What chi-square exceeds once in a thousand times, by degrees of freedom. The seeds are fixed.
CRITICAL = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 6: 22.46, 7: 24.32}
PROBABILITIES = [0.30, 0.22, 0.16, 0.12, 0.08, 0.06, 0.04, 0.02]


@pytest.mark.parametrize(
    "settings",
    [
        Sampling(1.0),
        Sampling(1.7),
        Sampling(0.7, top_k=5),
        Sampling(1.0, top_p=0.8),
        Sampling(1.2, min_p=0.2, presence_penalty=0.5, frequency_penalty=0.1),
    ],
    ids=str,
)
def test_draws_follow_the_distribution(settings: Sampling) -> None:
    log_probs, counts, n = torch.tensor(PROBABILITIES).log(), {1: 1, 3: 2}, 3000
    generator = row_generator(7, 0)
    drawn = Counter(sample(log_probs, settings, counts, generator) for _ in range(n))
    expected = n * obvious(log_probs, settings, counts)
    assert set(drawn) <= set(np.flatnonzero(expected))
    chi_square = sum((drawn[t] - expected[t]) ** 2 / expected[t] for t in np.flatnonzero(expected))
    assert chi_square < CRITICAL[np.count_nonzero(expected) - 1]


def test_another_distribution_is_told_apart() -> None:
    """The chi-square test above can fail: 2 % moved from one token to another are seen."""
    generator, n = row_generator(7, 0), 3000
    log_probs = torch.tensor(PROBABILITIES).log()
    drawn = Counter(sample(log_probs, Sampling(1.0), {}, generator) for _ in range(n))
    wrong = n * np.add(PROBABILITIES, [0.02, 0, 0, 0, 0, 0, -0.02, 0])
    assert sum((drawn[t] - wrong[t]) ** 2 / wrong[t] for t in range(8)) > CRITICAL[7]


@pytest.mark.parametrize(
    ("draw", "token"),
    [(0.0, 1), (0.25, 1), (0.4999999, 1), (0.5, 3), (0.75, 3), (1 - 2**-53, 3), (1.0, 3)],
)
def test_the_inverse_cdf(monkeypatch: pytest.MonkeyPatch, draw: float, token: int) -> None:
    """A token of no probability is never drawn, not even at the very ends."""
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([draw]).double())
    log_probs = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]).log()
    assert sample(log_probs, Sampling(1.0), {}, torch.Generator()) == token


@given(distributions(), st.integers(0, 1000), top_ps)
def test_one_draw_a_token_whatever_the_filters(
    log_probs: torch.Tensor, seed: int, top_p: float
) -> None:
    generator, other = row_generator(seed, 0), row_generator(seed, 0)
    for _ in range(3):
        token = sample(log_probs, Sampling(0.9, top_p=top_p, top_k=3), {}, generator)
        assert log_probs[token] > -INF
        torch.rand(1, generator=other, dtype=torch.float64)
    assert torch.equal(generator.get_state(), other.get_state())


def test_a_row_draws_by_seed_and_index() -> None:
    def draws(seed: int, index: int) -> list[float]:
        return torch.rand(4, generator=row_generator(seed, index)).tolist()

    assert draws(3, 5) == draws(3, 5)
    different = [(0, 0), (0, 1), (1, 0), (1, 1), (2**64, 0), (2**64 + 1, 0)]
    assert len({tuple(draws(*each)) for each in different}) == len(different)


# ---- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", (-0.1, INF, math.nan)),
        ("top_k", (-1,)),
        ("top_p", (0.0, -0.5, 1.01, math.nan)),
        ("min_p", (-0.1, 1.0, math.nan)),
        ("presence_penalty", (INF, -INF, math.nan)),
        ("frequency_penalty", (INF, -INF, math.nan)),
        ("seed", (-1,)),
    ],
)
def test_settings_out_of_range(name: str, values: tuple[float, ...]) -> None:
    for value in values:
        with pytest.raises(SettingError, match=f"{name} is {value}; expected"):
            Sampling(**{name: value})
