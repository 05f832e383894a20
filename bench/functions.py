"""Count the package's functions that one safe chat turn enters before its first token.

    python bench/functions.py [--list]

It uses the shipped model with plain float32 weights and the first message of a chat. A function
counts once; comprehensions and generator expressions count as part of their function.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import minisafe

PACKAGE = Path(minisafe.__file__).resolve().parent
SETTINGS = {"weights": "plain", "dtype": "float32", "safe": True}


def entered(run: Callable[[], Any]) -> list[tuple[str, str]]:
    """(file, function) of the package's functions that `run` enters, by first call."""
    found: dict[tuple[str, str], None] = {}

    def note(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        ours = code.co_filename.startswith(str(PACKAGE)) and not code.co_name.startswith("<")
        if event == "call" and ours:
            file = Path(code.co_filename).relative_to(PACKAGE).as_posix()
            found.setdefault((file, f"{code.co_name}:{code.co_firstlineno}"))

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return list(found)


def first_token(read_alone: bool = True) -> list[tuple[str, str]]:
    """The functions that a chat enters from a message to its answer's first token.

    read_alone: as the shipped profile does, which reads the message's parts first.
    """
    session = minisafe.load(overrides=SETTINGS | {"read_alone": read_alone})
    session.tokenizer.template.check()  # as the chat command does when it starts
    pieces = minisafe.Chat(session).send("How do I clean a shelf?")
    return entered(lambda: next(pieces))


def main(arguments: list[str]) -> None:
    found = first_token()
    if "--list" in arguments:
        for file, name in found:
            print(f"{file}: {name}")
    files = {file for file, _ in found}
    print(f"{len(found)} functions in {len(files)} files")


if __name__ == "__main__":
    main(sys.argv[1:])
