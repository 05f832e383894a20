"""What guidance, gate and vector did to one answer, in a line that a person can read."""

from __future__ import annotations

from dataclasses import dataclass

from minisafe.engine import Row
from minisafe.gate import Gate


@dataclass(frozen=True)
class Why:
    """What acted on one answer.

    safe: whether safe decoding was on. rule, vector: whether a guidance rule and a safety vector
    were there to act. guided: False where the gate stayed shut. steered: whether the vector was
    added anywhere. variation: between base and expert at the first token, 0 to 1; None where they
    were not compared. threshold: the gate's; None where no gate decided. tokens: of the answer.
    judged: those on which guidance acted. changed: those of them for which it made another token
    the likeliest one.
    """

    safe: bool = False
    rule: bool = False
    vector: bool = False
    guided: bool = True
    steered: bool = False
    variation: float | None = None
    threshold: float | None = None
    tokens: int = 0
    judged: int = 0
    changed: int = 0

    @classmethod
    def of(cls, row: Row, safe: bool, rule: bool, vector: bool, gate: Gate | None) -> Why:
        """From a watched row whose answer has ended."""
        n = len(row.answer)
        seen = [changed for number, changed in row.changes.items() if number < n]
        decided = gate is not None and row.request.gated and row.variation is not None
        threshold = gate.threshold if gate is not None and decided else None
        return cls(
            safe, rule, vector, row.guided, row.steered > 0, row.variation, threshold,
            n, len(seen), sum(seen),
        )  # fmt: skip

    def line(self) -> str:
        """One line for a person."""
        if not self.safe:
            return "safe decoding was off; the answer is the model's own"
        if not self.tokens:
            return "no token came, so there was nothing to act on"
        if not self.guided:
            return f"{self._gate()}; nothing acted, and the answer is the model's own"
        return "; ".join(each for each in (self._rule(), self._vector(), self._gate()) if each)

    def _rule(self) -> str:
        if not self.rule:
            return "no guidance"
        first = "" if self.judged == self.tokens else "first "
        return (
            f"guidance changed the likeliest choice at {self.changed or 'none'} of the "
            f"{first}{self.judged} "
            f"token{'' if self.judged == 1 else 's'}"
        )

    def _vector(self) -> str:
        if not self.vector:
            return "no vector"
        return "the vector was added" if self.steered else "the vector had no token to act on"

    def _gate(self) -> str:
        if self.variation is None:
            return ""
        if self.threshold is None:
            return f"base and expert differed by {self.variation:.2f} at the first token"
        if self.guided:
            return f"the gate was open ({self.variation:.2f} > {self.threshold:.2f})"
        return f"the gate stayed shut ({self.variation:.2f} <= {self.threshold:.2f})"
