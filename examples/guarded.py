"""An answer within a budget of time, tokens and memory, which another thread may cancel.

    python examples/guarded.py

`load` keeps the process below a memory limit, or refuses before it reads the weights. `guarded`
always gives a result; its finish_reason says why it ended: "stop", "length" (the budget of tokens),
"time", "context" (what the memory leaves) or "cancelled" (someone called `session.cancel`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import minisafe
from minisafe import Result, Session


@dataclass(frozen=True)
class Budget:
    """What one answer may take."""

    seconds: float = 60.0
    tokens: int = 60


def guarded(
    session: Session, question: str, budget: Budget, show: Callable[[str], object] = print
) -> Result:
    """The answer, as far as the budget goes; `show` gets each piece."""
    limited = session.with_settings(
        {"max_seconds": budget.seconds, "max_new_tokens": budget.tokens}
    )
    for _, piece in limited.run([question], chat=True):
        if isinstance(piece, Result):
            return piece
        show(piece)
    raise AssertionError("an answer ends with a result")


def main() -> None:
    question = "How do I clean a shelf?"
    with minisafe.load(None, {"memory_limit": "2GB"}) as session:
        for budget in (Budget(), Budget(tokens=5), Budget(seconds=1e-6)):
            result = guarded(session, question, budget, lambda piece: None)
            print(f"{budget} -> {len(result.tokens)} tokens, {result.finish_reason}")
        begun, left = threading.Event(), threading.Event()

        def leave() -> None:  # another thread: the reader goes away after the first words
            begun.wait()
            session.cancel()
            left.set()

        def show(piece: str) -> None:
            begun.set()
            left.wait()

        threading.Thread(target=leave).start()
        result = guarded(session, question, Budget(), show)
        print(f"{result.text!r} -> {result.finish_reason}")


if __name__ == "__main__":
    main()
