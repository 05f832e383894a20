"""Answers in progress: any thread may end them, and a closed session begins no more."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from minisafe.engine import Generation
from minisafe.errors import SettingError


class Running:
    """Generations in progress, which any thread may cancel, and whether new ones may begin.

    cancels: how often `cancel` was called, so that a call is not lost on an answer whose question
    is still being read. process: the one that loaded the session.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.generations: set[Generation] = set()
        self.closed = False
        self.cancels = 0
        self.process = os.getpid()

    @contextmanager
    def during(self, generation: Generation, since: int | None = None) -> Iterator[Generation]:
        """Inside the block, `cancel` ends this generation too. since: `cancels` when its prompts
        began to be read; if it has grown, the generation is cancelled at once."""
        with self.lock:
            self.check_open()
            self.generations.add(generation)
            if since is not None and self.cancels != since:
                cancel_all(generation)
        try:
            yield generation
        finally:
            with self.lock:
                self.generations.discard(generation)

    def cancel(self) -> None:
        """End all answers in progress before their next token."""
        with self.lock:
            self.cancels += 1
            for generation in self.generations:
                cancel_all(generation)

    def close(self) -> None:
        self.closed = True
        self.cancel()

    def check_open(self) -> None:
        """Raise `SettingError` after `close` was called, and in a forked child that would hang."""
        if self.closed:
            raise SettingError("the session is closed; load another")
        if os.getpid() != self.process and torch.get_num_threads() > 1:
            raise SettingError(
                f"the session was loaded before this process was forked, and torch's "
                f"{torch.get_num_threads()} threads do not survive that; call "
                "torch.set_num_threads(1) here first"
            )


def cancel_all(generation: Generation) -> None:
    """Cancel every request of a generation."""
    for number in range(len(generation.requests)):
        generation.cancel(number)
