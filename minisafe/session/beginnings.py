"""How every stream of a session would begin to answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from minisafe.engine import Generation
from minisafe.probe import stacked
from minisafe.session.chat_prompt import ChatPrompt

if TYPE_CHECKING:
    from minisafe.session.session import Session


def beginnings(
    session: Session, prompts: Sequence[str | ChatPrompt], chat: bool = True, batch_size: int = 8
) -> Iterator[Tensor]:
    """Batch by batch, the log-probabilities of each answer's first token, (rows, streams, vocab),
    with the steering of an answer."""
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        requests = [session.new_request(session.encode_prompt(each, chat)) for each in part]
        longest = max(len(ids) for request in requests for ids in request.prompts)
        lockstep = session.new_lockstep(len(requests), longest)
        generation = Generation(lockstep, session.rule, requests, session.steering)
        yield stacked(generation.feed(list(range(len(part))), generation.prompts()))


def harm(session: Session, texts: Sequence[str], batch_size: int = 8) -> list[float]:
    """How harmful each text is as a chat's first message, 0 to 1: the probability that the
    session's probe gives, or without one the variation between base (or anchor) and expert."""
    if session.probe is None:
        return session.variations(texts, batch_size=batch_size)
    found: list[float] = []
    for first in beginnings(session, texts, batch_size=batch_size):
        found += session.probe.harm(first).tolist()
    return found
