"""What all prompts of a batch begin with, such as a chat template's head, read once for all."""

from __future__ import annotations

from collections.abc import Sequence

from minisafe.lockstep import Lockstep

WORTH = 8  # shared tokens; for fewer, a forward of their own takes longer than it saves
Ids = Sequence[Sequence[Sequence[int]]]  # [stream][row] -> ids


def shared(rows: Sequence[Sequence[int]]) -> int:
    """How many ids all rows begin with, but for their last, which predicts."""
    least = min(map(len, rows)) - 1
    return next((n for n in range(least) if len({ids[n] for ids in rows}) > 1), least)


def read_shared(
    lockstep: Lockstep, prompts: Ids, first_steered: Sequence[int]
) -> list[list[list[int]]]:
    """Let one row of empty streams read what all rows' prompts begin with, and give all rows what
    it has read. Returns what is left to read of each prompt.

    first_steered: by stream, the first token that is steered in any row. It is read with the rest.
    """
    common = [min(shared(ids), first) for ids, first in zip(prompts, first_steered, strict=True)]
    rows = lockstep.rows
    if rows == 1 or min(common) < WORTH:
        return [[list(ids) for ids in stream] for stream in prompts]
    lockstep.keep([0])
    lockstep.feed([[ids[0][:n]] for ids, n in zip(prompts, common, strict=True)])
    lockstep.keep([0] * rows)
    return [[list(ids[n:]) for ids in stream] for stream, n in zip(prompts, common, strict=True)]
