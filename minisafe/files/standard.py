"""Standard input, output and error as they may be: closed, full, or left by their reader."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TextIO

LOADING = "loading ..."


def open_closed() -> None:
    """Put the null device where a standard stream is closed.

    Else the next file that is opened takes its number, and messages go into that file.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


class Forgiving:
    """A stream for messages: where they cannot be written, they are lost, and nothing else is."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except (OSError, ValueError):
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        """Send what is still held back, and all that follows, to the null device."""
        with suppress(OSError, ValueError):
            handle = os.open(os.devnull, os.O_WRONLY)
            os.dup2(handle, self.stream.fileno())
            os.close(handle)

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


@contextmanager
def forgiving() -> Iterator[None]:
    """Within it, a standard error that is full or has no reader takes no answer away."""
    before = sys.stderr
    sys.stderr = Forgiving(before)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stderr = before


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Within it, Ctrl-C ends the process in one line: half an import cannot be unwound."""

    def leave(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):
            os.write(2, b"minisafe: stopped\n")
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not where it is ignored, as in the background
        signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)


def show_loading() -> None:
    """Say at a terminal that something is loading; what is written next stands in its place."""
    if sys.stderr.isatty():
        print(LOADING, end="\r", file=sys.stderr, flush=True)


def erase_loading() -> None:
    """Take that line away."""
    if sys.stderr.isatty():
        print(" " * len(LOADING), end="\r", file=sys.stderr, flush=True)
