"""Races: a kernel is out only where it is wrong, does not run, or is slow by a wide margin."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from minisafe.fast import race as module
from minisafe.fast.race import (
    CHECKED,
    FLOOR_MS,
    HOPELESS,
    LONG_MS,
    SLOW,
    Lap,
    border,
    make_trials,
    race,
)

(TRIAL,) = make_trials((128, 32), torch.float32, (2,))


def product() -> Tensor:
    return TRIAL.x @ TRIAL.weight.T


def timed(monkeypatch: pytest.MonkeyPatch, times: Iterator[list[float]]) -> Callable[..., Lap]:
    """Races whose turns take these ms: [kernel, F.linear, ...]."""
    monkeypatch.setattr(module, "took_ms", lambda acts: next(times)[: len(acts)])
    return race


def always(*ms: float) -> Iterator[list[float]]:
    while True:
        yield list(ms)


@pytest.mark.parametrize(("ms", "fits"), [(0.5, True), (2.9, True), (3.0, False), (300.0, False)])
def test_a_kernel_is_out_from_a_wide_margin_on(
    monkeypatch: pytest.MonkeyPatch, ms: float, fits: bool
) -> None:
    lap = timed(monkeypatch, always(ms, 1.0))("k", TRIAL, product, product)
    assert lap == Lap("k", 2, ms, 1.0, lap.error, fits)
    assert SLOW >= 2


def test_a_burst_of_noise_that_leaves_a_kernel_below_the_floor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = iter([[FLOOR_MS * 2, 0.001]] * 5 + [[FLOOR_MS * 0.9, 0.001]])
    assert timed(monkeypatch, times)("k", TRIAL, product, product).fits


def test_noise_puts_no_kernel_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """All turns but the last are disturbed; short ones, however much."""
    disturbed = [[8.0, 1.0], [LONG_MS * 0.9, 0.001]]
    for each, clear in zip(disturbed, ([1.0, 1.0], [FLOOR_MS / 2, 0.001]), strict=True):
        times = iter([each] * (module.MORE_TURNS - 1) + [clear])
        assert timed(monkeypatch, times)("k", TRIAL, product, product).fits


def test_a_hopeless_kernel_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([[HOPELESS, 1.0]] * module.TURNS)
    assert not timed(monkeypatch, times)("k", TRIAL, product, product).fits


def test_what_takes_its_place_may_be_slower_still(monkeypatch: pytest.MonkeyPatch) -> None:
    lap = timed(monkeypatch, always(5.0, 1.0, 4.0))("k", TRIAL, product, product, product)
    assert lap.fits
    assert lap.linear_ms == 1.0


def test_a_kernel_below_the_floor_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    times = always(FLOOR_MS * 0.99, FLOOR_MS / 100)
    assert timed(monkeypatch, times)("k", TRIAL, product, product).fits


def test_a_wrong_product_is_out_however_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong() -> Tensor:
        y = product()
        y[1, 5] += 1e-3 * y.abs().max()
        return y

    quick = timed(monkeypatch, always(0.001, 1.0))
    assert not quick("k", TRIAL, wrong, product).fits
    assert quick("k", TRIAL, product, product).fits
    assert not quick("k", TRIAL, product, product, result=wrong).fits
    assert not quick("k", TRIAL, lambda: product() * torch.nan, product).fits


def test_a_kernel_that_does_not_run_is_out() -> None:
    def missing() -> Tensor:
        raise RuntimeError("needs the cpu support avx512")

    lap = race("k", TRIAL, missing, product)
    assert (lap.fits, lap.ms, lap.error) == (False, None, None)


def test_a_border_is_before_the_first_that_is_out() -> None:
    def laps(*fits: bool) -> list[Lap]:
        rows = (1, 2, 16)
        return [Lap("k", n, 1.0, 1.0, 0.0, fit) for n, fit in zip(rows, fits, strict=False)]

    assert [border(laps(*fits)) for fits in [(), (False, True), (True, False, True)]] == [0, 0, 1]
    assert border(laps(True, True, True)) == 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trials_are_of_the_shape_and_short(dtype: torch.dtype) -> None:
    small = make_trials((10, 48), dtype, (1, 16))
    assert [(each.x.shape, each.weight.shape) for each in small] == [
        ((1, 48), (10, 48)), ((16, 48), (10, 48))
    ]  # fmt: skip
    for each in (*small, *make_trials((32000, 4096), dtype, (1, 64))):
        channels = len(each.weight)
        assert channels <= max(CHECKED, module.WORK // each.x.numel())
        assert each.q.shape == each.weight.shape
        assert torch.equal(each.q.to(dtype) * each.scales[:, None], each.weight)
        assert each.weight.is_contiguous()
        assert each.expected().shape == (len(each.x), min(CHECKED, channels))
    again = make_trials((10, 48), dtype, (1, 16))
    assert torch.equal(again[1].weight, small[1].weight)


def test_races_leave_torchs_own_generator_alone() -> None:
    before = torch.get_rng_state()
    race("k", make_trials((8, 32), torch.float32, (1,))[0], product, product)
    assert torch.equal(torch.get_rng_state(), before)
