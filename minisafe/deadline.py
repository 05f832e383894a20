"""A time budget, as a value: when it ends, and the clock that says so."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

Clock = Callable[[], float]  # seconds since some fixed moment; never goes back


@dataclass(frozen=True)
class Deadline:
    """The moment at which a time budget is spent. at: in seconds of `clock`."""

    at: float
    clock: Clock = time.monotonic

    @classmethod
    def after(cls, seconds: float | None, clock: Clock = time.monotonic) -> Deadline | None:
        """The deadline that many seconds from now; None without a budget."""
        return None if seconds is None else cls(clock() + seconds, clock)

    @property
    def passed(self) -> bool:
        return self.clock() >= self.at
