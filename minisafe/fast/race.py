"""Races: whether a kernel may be used on this machine, judged by its result and its time.

The code that uses kernels prefers one; a race only rules kernels out. A kernel is out if its
product is wrong, or if it takes at least `SLOW` times as long as both `F.linear` and the kernel
that would replace it. Kernels take turns, the shortest time counts, and a kernel gets more turns
before it is out: noise only makes things slower, so a machine always makes the same choice. The
factors are random, so the choice depends on shape, dtype and machine, never on the weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_ROWS = 16  # some kernels are used for at most this many rows
FEW = (1, 2, FEW_ROWS)  # numbers of rows to race for these kernels
ROWS = (*FEW, 4 * FEW_ROWS)  # ... and for kernels that are used for any number
Shape = tuple[int, int]  # (out_features, in_features)
SLOW = 3.0  # out at this many times the others' time; useful kernels are within 2
FLOOR_MS = 0.1  # a faster kernel is never out: at such times, a call may cost more than its work
WORK = 1 << 20  # rows x weights to multiply; of a larger matrix, only the first channels are raced
CHECKED = 64  # channels whose result is checked; a race has at least as many, if the matrix does
SHARE = {torch.bfloat16: 2.0**-6, torch.float32: 5e-4}  # allowed error / the largest result
TURNS, MORE_TURNS = 3, 15  # turns of every kernel, and of one before it is out
HOPELESS, LONG_MS = 9.0, 1.0  # times the others' time, and least time, to be out without more turns


@dataclass(frozen=True)
class Lap:
    """A kernel's result in a race with `rows` rows. Times in ms; error as a share of the largest
    result. `ms` and `error` are None if the kernel does not run here."""

    kernel: str
    rows: int
    ms: float | None
    linear_ms: float
    error: float | None
    fits: bool


@dataclass(frozen=True)
class Trial:
    """The factors of a race: x (rows, in), and weight (channels, in), which is q times scales."""

    x: Tensor
    weight: Tensor
    q: Tensor
    scales: Tensor

    def expected(self) -> Tensor:
        """The product's first channels, in float32."""
        return F.linear(self.x.float(), self.weight[:CHECKED].float())


def make_trials(shape: Shape, dtype: torch.dtype, rows: Sequence[int]) -> list[Trial]:
    """Random factors for races, one per number in `rows`, which must ascend. A race has only as
    many of the matrix's channels as keep it short. The channels are repetitions of a few, since
    drawing all of them takes longer than racing.
    """
    channels, in_features = min(shape[0], max(CHECKED, WORK // (rows[0] * shape[1]))), shape[1]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows[-1], in_features, generator=generator).to(dtype)
    q = torch.randint(-127, 128, (CHECKED, in_features), generator=generator, dtype=torch.int8)
    scales = torch.linspace(0.5, 1.5, CHECKED).to(dtype)
    block = q.to(dtype) * scales[:, None]
    n = -(-channels // CHECKED)
    weight, q, scales = block.repeat(n, 1), q.repeat(n, 1), scales.repeat(n)
    found = []
    for each in rows:
        some = min(channels, max(CHECKED, WORK // (each * in_features)))
        found.append(Trial(x[:each], weight[:some], q[:some], scales[:some]))
    return found


def race(
    name: str,
    trial: Trial,
    kernel: Callable[[], Tensor],
    linear: Callable[[], Tensor],
    instead: Callable[[], Tensor] | None = None,
    result: Callable[[], Tensor] | None = None,
) -> Lap:
    """Race `kernel` to see whether it may be used for the trial's product.

    kernel: computes (rows, channels), in any dtype.
    linear: computes the same with `F.linear`.
    instead: what replaces the kernel if it is out; None: `F.linear`.
    result: computes the product to check, if that is not what `kernel` returns.
    """
    rows = len(trial.x)
    others = [linear] if instead is None else [linear, instead]
    try:
        kernel()
        error = error_of((result or kernel)(), trial.expected())
    except (AttributeError, RuntimeError, NotImplementedError):  # CPU or torch lacks it
        return Lap(name, rows, None, took_ms([linear])[0], None, False)
    right = error <= SHARE[trial.x.dtype]
    for each in others:
        each()
    best = [torch.inf] * (1 + len(others))
    for turn in range(MORE_TURNS):
        best = [min(pair) for pair in zip(best, took_ms([kernel, *others]), strict=True)]
        times = best[0] / max(best[1:])
        quick = times < SLOW or best[0] < FLOOR_MS
        hopeless = times >= HOPELESS and best[0] >= LONG_MS
        if turn + 1 >= TURNS and (quick or hopeless):
            break
    return Lap(name, rows, best[0], best[1], error, right and quick)


def error_of(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest result."""
    wrong = (found[:, : expected.shape[1]].float() - expected).abs().max()
    return float(wrong / expected.abs().max())


def took_ms(acts: Sequence[Callable[[], Tensor]]) -> list[float]:
    """How long one call of each act takes, in ms."""
    found = []
    for act in acts:
        started = time.perf_counter()
        act()
        found.append(1e3 * (time.perf_counter() - started))
    return found


def border(laps: Sequence[Lap]) -> int:
    """The most rows for which a kernel may be used. laps: by ascending rows; those from the first
    that is out do not count."""
    found = 0
    for lap in laps:
        if not lap.fits:
            break
        found = lap.rows
    return found
