"""The tiny world: its assistant's phrases, and an exact judge of its answers."""

from minisafe.evaluation.world.answers import (
    Judgement,
    Outcome,
    Question,
    article,
    judge,
    opened,
    patterns,
    sentence,
)

__all__ = ["Judgement", "Outcome", "Question", "article", "judge", "opened", "patterns", "sentence"]
