"""What all prompts of a batch begin with, read once for all of them."""

from __future__ import annotations

from collections.abc import Sequence

from minisafe.lockstep import Lockstep
from minisafe.session import Session
from minisafe.slots import Span, covered

WORTH = 8  # shared tokens; for fewer, a forward of their own takes longer than it saves


def read_shared(
    session: Session,
    lockstep: Lockstep,
    prompts: Sequence[Sequence[Sequence[int]]],
    spans: Sequence[tuple[Span, ...]],
) -> None:
    """Let one row of empty streams read what all rows' prompts begin with, and give all rows what
    it has read. prompts: [stream][row] -> ids. spans: by row, where the base is steered."""
    rows, common = len(spans), [shared(ids) for ids in prompts]
    alike = len({tuple(covered(each, 0, common[0])) for each in spans}) == 1
    if rows == 1 or not alike or min(common) < WORTH:
        return
    slots = session.steering.slots(0, spans[0]) if session.steering else []
    start = [[ids[0][:n]] for ids, n in zip(prompts, common, strict=True)]
    lockstep.keep([0])
    lockstep.feed(start, [slots, *([] for _ in prompts[1:])])
    lockstep.keep([0] * rows)


def shared(rows: Sequence[Sequence[int]]) -> int:
    """How many ids all rows begin with, but for their last, which predicts."""
    least = min(map(len, rows)) - 1
    return next((n for n in range(least) if len({ids[n] for ids in rows}) > 1), least)
