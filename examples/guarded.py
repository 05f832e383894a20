"""An answer within a budget of time, tokens and memory, which another thread may cancel.

    python examples/guarded.py

`guarded` always gives a result; its finish_reason says why it ended: "stop", "length" (the budget
of tokens or memory) or "cancelled" (that of time, or someone who called `session.cancel`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import minisafe
from minisafe import MinisafeError, Result, Session


@dataclass(frozen=True)
class Budget:
    """What one answer may take. cache_mb: for keys and values of all streams, in 10^6 bytes."""

    seconds: float = 60.0
    tokens: int = 60
    cache_mb: float = 2.0


def guarded(
    session: Session, question: str, budget: Budget, show: Callable[[str], object] = print
) -> Result:
    """The answer, as far as the budget goes; `show` gets each piece. Raises `MinisafeError` if the
    question alone is too long. One call at a time: `cancel` ends all answers of a model."""
    tokens = min(budget.tokens, tokens_that_fit(session, question, budget.cache_mb * 1e6))
    limited = session.with_settings({"max_new_tokens": tokens})
    clock = threading.Timer(budget.seconds, session.cancel)
    clock.start()
    try:
        for _, piece in limited.run([question], chat=True):
            if isinstance(piece, Result):
                return piece
            show(piece)
    finally:
        clock.cancel()
    raise AssertionError("an answer ends with a result")


def tokens_that_fit(session: Session, question: str, cache_bytes: float) -> int:
    """How long an answer may be until the caches hold this many bytes."""
    asked = max(map(len, session.encode(question, chat=True)))
    streams, kept = session.streams, session.settings.cache_dtype
    each = sum(stream.model.new_cache(1, 64, kept).n_bytes for stream in streams) / 64
    left = int(cache_bytes / each) - asked
    if left < 1:
        raise MinisafeError(
            f"the question has {asked} tokens of {each:,.0f} bytes; expected fewer than "
            f"{cache_bytes:,.0f} bytes in all; shorten it or allow more memory"
        )
    return left


def main() -> None:
    question = "How do I clean a shelf?"
    with minisafe.load() as session:
        for budget in (Budget(), Budget(tokens=5), Budget(cache_mb=0.4)):
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
