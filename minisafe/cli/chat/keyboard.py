"""Lines from a terminal, with editing, bracketed paste, history and Tab where available."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from minisafe.cli.chat.history import History
from minisafe.cli.chat.typed import MORE
from minisafe.errors import PromptError

Complete = Callable[[str], Sequence[str]]  # typed text -> completions of its last word
AT_ONCE = 0.02  # the most seconds between two pasted lines


class Keyboard:
    """Reads lines with readline if Python has it, otherwise with plain `input`.

    GNU readline returns a paste as one line with newlines. libedit, which replaces it on some
    systems, and a plain terminal do not recognise a paste. There, lines that are already waiting
    when a line has been read belong to the same paste.
    """

    def __init__(self, history: History, complete: Complete):
        self.history, self.complete = history, complete
        self.readline: Any = find_readline()
        self.knows_pastes = False
        self.found: list[str] = []
        if self.readline is not None:
            self._set_up()

    def _set_up(self) -> None:
        readline = self.readline
        libedit = "libedit" in (readline.__doc__ or "")
        self.knows_pastes = not libedit
        if libedit:
            readline.parse_and_bind("bind ^I rl_complete")
        else:
            readline.parse_and_bind("set enable-bracketed-paste on")  # Python turns it off
            readline.parse_and_bind("tab: complete")
        readline.set_completer_delims(" \t\n")
        readline.set_completer(self._completion)
        readline.set_auto_history(False)  # a message may have several lines
        for text in self.history.messages:
            readline.add_history(text)

    def remember(self, text: str) -> None:
        """Put a message into the history, here and across runs."""
        self.history.add(text)
        if self.readline is not None and text.strip():
            self.readline.add_history(text)

    def _completion(self, word: str, state: int) -> str | None:
        if state == 0:
            line = self.readline.get_line_buffer()[: self.readline.get_endidx()]
            self.found = list(self.complete(line))
        return self.found[state] if state < len(self.found) else None

    def __call__(self, prompt: str) -> str:
        """A line, or the lines of a paste. Raises EOFError, KeyboardInterrupt, and `PromptError`
        for bytes that are not UTF-8."""
        try:
            text = input(prompt)
            if not self.knows_pastes and more_waits():
                text = rest_of_paste(text)
        except UnicodeDecodeError:
            raise PromptError(
                "the message is not valid UTF-8, so it was not sent; expected UTF-8 text"
            ) from None
        return text


def rest_of_paste(first: str) -> str:
    """A pasted text whose first line has been read. Enter ends it: its last line may be incomplete,
    and there is no way to know."""
    lines = [first]
    while more_waits():
        lines.append(input())
    last = input(MORE)
    return "\n".join([*lines, last] if last else lines)


def find_readline() -> ModuleType | None:
    """Python's readline, or None if Python was built without it."""
    try:
        import readline
    except ImportError:
        return None
    return readline


def more_waits() -> bool:
    """Whether another line can be read immediately."""
    try:
        return bool(select.select([sys.stdin], [], [], AT_ONCE)[0])
    except (OSError, ValueError):
        return False
