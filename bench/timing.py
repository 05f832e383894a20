"""Timing of things by turns, and ratios of what came out."""

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
    """How long one call takes; garbage of the calls before it is collected first."""
    gc.collect()
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def answer_ms(system: Callable[[], Iterator[int]], new: int) -> tuple[float, float]:
    """(ms to the first token, ms a token of the `new` after it) of one answer."""
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
    """Which of n acts comes next, in each of `runs` rounds; a round begins with another one each
    time, so that noise and what an act leaves in the caches hit all alike."""
    for number in range(runs):
        for place in range(n):
            yield (number + place) % n


def by_turns(runs: int, *acts: Callable[[], T]) -> list[list[T]]:
    """What every act gives in each of `runs` rounds."""
    found: list[list[T]] = [[] for _ in acts]
    for which in turns(runs, len(acts)):
        found[which].append(acts[which]())
    return found


def seconds_by_turns(runs: int, *acts: Callable[[], object]) -> list[list[float]]:
    """Seconds of every act in each of `runs` rounds."""
    return by_turns(runs, *(partial(seconds, act) for act in acts))


def ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """The median of the ratios of the rounds that both have finished."""
    return median(a / b for a, b in zip(one, other, strict=False))
