"""The user's messages, from typed, pasted or piped lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from minisafe.cli.options import decode_text
from minisafe.errors import PromptError

LIMIT = 1 << 20  # bytes of a message; encoding ten times as much takes 30 s
FENCE = '"""'
PROMPT, MORE = "> ", "... "
Read = Callable[[str], str]  # a line for a prompt; raises EOFError at the end


def message(read: Read, joins: bool = True) -> str:
    r"""The next message: one line or several.

    Several lines are one message if they were pasted together, are between two `\"""`, or (with
    `joins`) if each line except the last ends in a backslash. Raises `PromptError` for a message
    that is too long or has no end, and EOFError if there is none.
    """
    line = check_length(read(PROMPT))
    if line.startswith(FENCE) and "\n" not in line:
        return block(line.removeprefix(FENCE), read)
    while joins and line.endswith("\\") and not line.startswith("/"):
        line = check_length(line[:-1] + "\n" + read(MORE))
    return line


def block(first: str, read: Read) -> str:
    """The lines up to the one that ends in three quotes; `first` follows the first three."""
    text = first
    while not text.rstrip().endswith(FENCE):
        try:
            text = check_length(text + "\n" + read(MORE))
        except EOFError:
            raise PromptError(
                f"the block has no end; expected a line that ends in {FENCE}"
            ) from None
    return text.rstrip().removesuffix(FENCE).strip("\n")


def check_length(text: str) -> str:
    """The text; raises `PromptError` if it is too long or not valid Unicode."""
    if len(text) > LIMIT or len(text.encode("utf-8", "replace")) > LIMIT:
        raise PromptError(f"the message is longer than {LIMIT:,} bytes; expected a shorter one")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptError("the message is not valid UTF-8; expected UTF-8 text") from None
    return text


class Piped:
    """Reads standard input line by line, and of each line no more than a message may hold."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, prompt: str) -> str:
        line = sys.stdin.buffer.readline(LIMIT + 2)
        if not line:
            raise EOFError
        self.number += 1
        name = f"standard input, line {self.number}"
        if len(line.rstrip(b"\r\n")) > LIMIT:
            raise PromptError(f"{name}: longer than {LIMIT:,} bytes; expected a shorter message")
        return decode_text(line, name).rstrip("\r\n")


def piped() -> Iterator[str]:
    """The messages from standard input. Raises `PromptError`."""
    read = Piped()
    while True:
        try:
            text = message(read, joins=False)
        except EOFError:
            return
        yield text
