"""Answers in progress: any thread may end them, and a closed session begins no more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from minisafe.engine import Generation
from minisafe.errors import SettingError


class Running:
    """Generations in progress, which any thread may cancel, and whether new ones may begin."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.generations: set[Generation] = set()
        self.closed = False

    @contextmanager
    def during(self, generation: Generation) -> Iterator[Generation]:
        """Inside the block, `cancel` ends this generation too."""
        with self.lock:
            self.check_open()
            self.generations.add(generation)
        try:
            yield generation
        finally:
            with self.lock:
                self.generations.discard(generation)

    def cancel(self) -> None:
        """End all answers in progress before their next token."""
        with self.lock:
            for generation in self.generations:
                for number in range(len(generation.requests)):
                    generation.cancel(number)

    def close(self) -> None:
        self.closed = True
        self.cancel()

    def check_open(self) -> None:
        """Raise `SettingError` after `close` was called."""
        if self.closed:
            raise SettingError("the session is closed; load another")
