"""What guidance, gate and vector did to one answer, as one line for people."""

from __future__ import annotations

from dataclasses import dataclass

from minisafe.engine import RequestState
from minisafe.session.stages import Stages

UNTOUCHED = "nothing acted, and the answer is the model's own"


@dataclass(frozen=True)
class Why:
    """Why an answer is as it is.

    asked: the safety stages that were active. acted: those that acted. variation: between base and
    expert at the first token, 0 to 1; None if they were not compared. tokens: how many the answer
    has. judged: how many of them guidance acted on. changed: how many of those it changed the
    likeliest token for.
    """

    asked: Stages
    acted: Stages
    variation: float | None = None
    tokens: int = 0
    judged: int = 0
    changed: int = 0

    @classmethod
    def of(cls, asked: Stages, acted: Stages, state: RequestState) -> Why:
        """From the state of a request with `note_changes` whose answer has ended."""
        n = len(state.answer)
        seen = [changed for number, changed in state.changes.items() if number < n]
        return cls(asked, acted, state.seen.variation, n, len(seen), sum(seen))

    def line(self) -> str:
        """One line for a person."""
        if not self.asked.safe:
            return "safe decoding was off; the answer is the model's own"
        if not self.tokens:
            return "no token came, so there was nothing to act on"
        if self.acted.gate is not None and not self.acted.gate.open:
            return f"{self._gate()}; {UNTOUCHED}"
        if self.acted.alone is not None and self.acted.alone.left:
            return f"{self._alone()}; {UNTOUCHED}"
        said = (self._rule(), self._vector(), self._gate(), self._alone())
        return "; ".join(each for each in said if each)

    def _rule(self) -> str:
        if self.asked.sgds is None and self.asked.rule is None:
            return "no guidance"
        first = "" if self.judged == self.tokens else "first "
        return (
            f"guidance changed the likeliest choice at {self.changed or 'none'} of the "
            f"{first}{self.judged} token{'' if self.judged == 1 else 's'}"
        )

    def _vector(self) -> str:
        if self.asked.sa is None:
            return "no vector"
        return "the vector was added" if self.acted.sa else "the vector had no token to act on"

    def _alone(self) -> str:
        if self.acted.alone is None:
            return ""
        if self.acted.alone.left:
            return "no part of what was said is harmful by itself"
        return "a part of the message is harmful by itself, so only that part was answered"

    def _gate(self) -> str:
        gate = self.acted.gate
        if self.variation is None:
            return ""
        if gate is None:
            return f"base and expert differed by {self.variation:.2f} at the first token"
        if gate.open:
            return f"the gate was open ({self.variation:.2f} > {gate.threshold:.2f})"
        return f"the gate stayed shut ({self.variation:.2f} <= {gate.threshold:.2f})"
