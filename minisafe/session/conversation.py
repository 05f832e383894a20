"""A conversation as a value: what was said, with the ids of its answers as they were sampled."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Exchange:
    """A message and its answer.

    ids: the answer's, as they were sampled. guided: False where the gate left it to the base.
    """

    question: str
    answer: str
    ids: tuple[int, ...]
    guided: bool = True


@dataclass(frozen=True)
class Conversation:
    """Everything that the next answer follows from, but for weights and settings.

    turn: the number of the next answer; with the seed it fixes the draws.
    """

    exchanges: tuple[Exchange, ...] = ()
    turn: int = 0
