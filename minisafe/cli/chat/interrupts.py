"""Ctrl-C in a chat: it ends an answer, and never the conversation."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from minisafe.session.chat import Chat

WAITING = b"(stopping at the next token)\n"


class Interrupts:
    """Within it, Ctrl-C ends the current answer, and `count` counts it.

    Ctrl-C never interrupts a running forward: the answer ends before its next token, even after
    several Ctrl-C, so that the conversation stays consistent. Without a terminal, nobody can
    continue the conversation, and a second Ctrl-C ends the program.
    """

    def __init__(self, chat: Chat, terminal: bool):
        self.chat, self.terminal = chat, terminal
        self.count, self.reading = 0, False
        self.before: Any = None

    def __enter__(self) -> Interrupts:
        with suppress(ValueError):  # only the main thread can handle signals
            self.before = signal.signal(signal.SIGINT, self.note)
        return self

    def __exit__(self, *error: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle Ctrl-C."""
        if self.reading:
            raise KeyboardInterrupt
        self.count += 1
        self.chat.interrupt()
        if self.count == 2 and not self.terminal:
            raise KeyboardInterrupt
        if self.count == 2:
            with suppress(OSError):
                os.write(2, WAITING)

    @contextmanager
    def waiting_for_input(self) -> Iterator[None]:
        """Within it, Ctrl-C raises KeyboardInterrupt."""
        self.count, self.reading = 0, True
        try:
            yield
        finally:
            self.reading = False
