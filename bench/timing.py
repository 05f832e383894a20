"""Timing of things by turns, and ratios of what came out."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from statistics import median


def seconds(act: Callable[[], object]) -> float:
    """How long one call takes; garbage of the calls before it is collected first."""
    gc.collect()
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def by_turns(runs: int, *acts: Callable[[], object]) -> list[list[float]]:
    """Seconds of every act in each of `runs` rounds; a round begins with another one each time."""
    rounds: list[list[float]] = []
    for number in range(runs):
        times = [0.0] * len(acts)
        for place in range(len(acts)):
            which = (number + place) % len(acts)
            times[which] = seconds(acts[which])
        rounds.append(times)
    return [list(times) for times in zip(*rounds, strict=True)]


def ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return median(a / b for a, b in zip(one, other, strict=True))
