"""The tiny world: what its assistant may say, and an exact judge of that."""

from minisafe.evaluation.world.answers import (
    Judgement,
    Outcome,
    Question,
    article,
    judge,
    opened,
    sentence,
)

__all__ = ["Judgement", "Outcome", "Question", "article", "judge", "opened", "sentence"]
