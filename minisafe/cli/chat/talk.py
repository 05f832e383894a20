"""The terminal's side of a conversation: messages to the user, and streaming answers."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TextIO

import click

from minisafe.checkpoint import first_line, is_out_of_memory
from minisafe.cli.chat.interrupts import Interrupts
from minisafe.cli.chat.wrap import Wrap
from minisafe.errors import MinisafeError
from minisafe.files.display import harmless, one_line
from minisafe.session.chat import Chat

SHOWN = 10_000  # characters of one message to the user


def tell(text: str) -> None:
    """A message to the user, without terminal commands, which names in it may contain."""
    wrap = Wrap(width(sys.stderr))
    click.echo(wrap.push(harmless(text, SHOWN)) + wrap.finish(), err=True)


def complain(error: Exception | str) -> None:
    """An error, in one line."""
    click.echo(one_line(f"minisafe: {error}"), err=True)


@dataclass
class Talk:
    """A chat and its display.

    terminal: whether a person types.
    """

    chat: Chat
    interrupts: Interrupts
    as_json: bool = False
    terminal: bool = False

    def answer(self, pieces: Iterator[str]) -> None:
        """Show an answer. At a terminal, report an error; otherwise raise it."""
        try:
            self._show(pieces)
        except (MinisafeError, RuntimeError, MemoryError) as error:
            known = isinstance(error, MinisafeError)
            if not self.terminal or not (known or is_out_of_memory(error)):
                raise
            complain(error if known else f"out of memory: {first_line(error)}")
            return
        if self.interrupts.count:
            tell("(stopped)")

    def _show(self, pieces: Iterator[str]) -> None:
        wrap, shown = Wrap(None if self.as_json else width(sys.stdout)), False
        try:
            for piece in pieces:
                if not self.as_json:
                    click.echo(wrap.push(harmless(piece)), nl=False)
                    shown = True
                if self.interrupts.count:
                    break
        finally:
            with suppress(AttributeError):
                pieces.close()  # type: ignore[attr-defined]
            if shown:
                click.echo(wrap.finish())
        if self.as_json and self.chat.result is not None:
            click.echo(json.dumps(self.chat.result.to_json()))
        elif not shown and not self.as_json:
            click.echo()


def width(stream: TextIO) -> int | None:
    """A terminal's columns; None for a stream that is not a terminal."""
    return shutil.get_terminal_size().columns if stream.isatty() else None
