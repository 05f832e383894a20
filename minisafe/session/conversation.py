"""A conversation as a value: messages and answers, with the answers' ids as sampled."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Exchange:
    """A message and its answer.

    ids: the answer's, as sampled. guided: False if the gate left the answer to the base.
    """

    question: str
    answer: str
    ids: tuple[int, ...]
    guided: bool = True


@dataclass(frozen=True)
class Conversation:
    """Everything that determines the next answer, except weights and settings.

    turn: the number of the next answer; seed and number fix the draws.
    """

    exchanges: tuple[Exchange, ...] = ()
    turn: int = 0
