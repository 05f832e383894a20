"""A safe model in place of the base: what guidance towards it has to be compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace

from minisafe.evaluation.defences.defence import Defence
from minisafe.guidance import Plain
from minisafe.session import Session


@dataclass(frozen=True)
class ExpertAlone(Defence):
    """The loaded session's expert answers alone: the base with a safe LoRA, and nothing else.

    The adapter acts on the base as it is, an edited one too, for which a merge would lose the edit.
    """

    def prepare(self, session: Session) -> Session:
        base, expert, *_ = session.streams
        del base
        return replace(
            session, settings=replace(session.settings, safe=False), streams=(expert,), kinds=(),
            rule=Plain(), steering=None, gate=None,
        )  # fmt: skip
