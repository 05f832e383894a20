"""Standard streams that are closed, full, or no longer read."""

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
    """Open the null device in place of a closed standard stream.

    Otherwise the next opened file takes its number, and messages go into that file.
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
    """A stream for messages that loses messages it cannot write, instead of raising an error."""

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
        """Send buffered and later messages to the null device."""
        with suppress(OSError, ValueError):
            handle = os.open(os.devnull, os.O_WRONLY)
            os.dup2(handle, self.stream.fileno())
            os.close(handle)

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


@contextmanager
def forgiving() -> Iterator[None]:
    """Within it, a standard error that is full or has no reader does not stop an answer."""
    before = sys.stderr
    sys.stderr = Forgiving(before)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stderr = before


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Within it, Ctrl-C ends the process with one line: a partial import cannot be undone."""

    def leave(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):
            os.write(2, b"minisafe: stopped\n")
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not if it is ignored, as in the background
        signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)


NO_ROOM = ("failed to map segment", "cannot allocate memory", "cannot create shared object")


def end_without_room(error: BaseException) -> None:
    """If a library could not be loaded for want of memory, end the process with one line."""
    said = " ".join(str(error).split())
    if isinstance(error, MemoryError) or any(each in said.lower() for each in NO_ROOM):
        print(
            f"minisafe: too little memory to load the libraries ({said or 'no memory'}); they take "
            "about 0.7 GB of address space without CUDA (see `ulimit -v`)",
            file=sys.stderr,
        )
        sys.exit(2)


def show_loading() -> None:
    """Say at a terminal that something is loading; the next output overwrites the line."""
    if sys.stderr.isatty():
        print(LOADING, end="\r", file=sys.stderr, flush=True)


def erase_loading() -> None:
    """Erase that line."""
    if sys.stderr.isatty():
        print(" " * len(LOADING), end="\r", file=sys.stderr, flush=True)
