"""Timing of alternating calls, and ratios of the results."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")


def seconds(act: Callable[[], object]) -> float:
    """The time of one call, after collecting the garbage of earlier calls."""
    gc.collect()
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def answer_ms(system: Callable[[], Iterator[int]], new: int) -> tuple[float, float]:
    """(ms to the first token, ms per token for the `new` tokens after it) of one answer."""
    gc.collect()
    started = time.perf_counter()
    tokens = system()
    next(tokens)
    first = time.perf_counter()
    for _ in range(new):
        next(tokens)
    return (first - started) * 1e3, (time.perf_counter() - first) * 1e3 / new


def read_bandwidth(buffers: Sequence[Tensor]) -> float:
    """GB/s of a sum over buffers that are too large for a cache."""
    started = time.perf_counter()
    for buffer in buffers:
        buffer.sum()
    return sum(buffer.nbytes for buffer in buffers) / (time.perf_counter() - started) / 1e9


def turns(runs: int, n: int) -> Iterator[int]:
    """The number of the next of n calls, in each of `runs` rounds. Each round begins with another
    call, so that noise and cache effects are the same for all."""
    for number in range(runs):
        for place in range(n):
            yield (number + place) % n


def by_turns(runs: int, *acts: Callable[[], T]) -> list[list[T]]:
    """The results of every call in each of `runs` rounds."""
    found: list[list[T]] = [[] for _ in acts]
    for which in turns(runs, len(acts)):
        found[which].append(acts[which]())
    return found


def seconds_by_turns(runs: int, *acts: Callable[[], object]) -> list[list[float]]:
    """Seconds of every call in each of `runs` rounds."""
    return by_turns(runs, *(partial(seconds, act) for act in acts))


def ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """The median of the ratios of the rounds that both finished."""
    return median(a / b for a, b in zip(one, other, strict=False))
