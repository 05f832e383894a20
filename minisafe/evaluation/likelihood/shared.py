"""What all prompts of a batch begin with, read once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minisafe.lockstep import Lockstep
from minisafe.session import Session
from minisafe.session.shared import WORTH, shared
from minisafe.slots import covered

if TYPE_CHECKING:
    from minisafe.evaluation.likelihood.scoring import Pair


def read_shared(
    session: Session,
    lockstep: Lockstep,
    prompts: Sequence[Sequence[Sequence[int]]],
    texts: Sequence[Pair],
) -> None:
    """Let one row of empty streams read what all rows' prompts begin with, and give all rows what
    it has read. prompts: [stream][row] -> ids. texts: by row, what is scored."""
    rows, common = len(texts), [shared(ids) for ids in prompts]
    steered = [session.slots(0, text.prompts, text.answers) for text in texts]
    touched = [
        {s: {place for slot in slots for place in covered(slot.spans, 0, common[s])}
         for s, slots in row.items()}
        for row in steered
    ]  # fmt: skip
    if rows == 1 or any(each != touched[0] for each in touched) or min(common) < WORTH:
        return
    start = [[ids[0][:n]] for ids, n in zip(prompts, common, strict=True)]
    lockstep.keep([0])
    lockstep.feed(start, [steered[0].get(s, []) for s in range(len(prompts))])
    lockstep.keep([0] * rows)
