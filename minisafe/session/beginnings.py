"""How every stream of a session would begin to answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from minisafe.engine import Generation, Request
from minisafe.probe import stacked
from minisafe.session.chat_prompt import ChatPrompt
from minisafe.session.shared import read_shared

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
        left = read_shared(lockstep, generation.prompts(), first_steered(requests))
        yield stacked(generation.feed(list(range(len(part))), left))


def first_steered(requests: Sequence[Request]) -> list[int]:
    """For each stream, the first token that any request steers. Spans are the base's; a stream
    that has more before the conversation has them further on."""
    return [
        min(
            (start + len(request.prompts[s]) - len(request.prompts[0])
             for request in requests for start, _ in request.spans),
            default=sys.maxsize,
        )
        for s in range(len(requests[0].prompts))
    ]  # fmt: skip


def harm(session: Session, texts: Sequence[str], batch_size: int = 8) -> list[float]:
    """How harmful each text is as a chat's first message, 0 to 1: the probability that the
    session's probe gives, or without one the variation between base (or anchor) and expert."""
    if session.probe is None:
        return session.variations(texts, batch_size=batch_size)
    order = sorted(range(len(texts)), key=lambda n: len(texts[n]))  # by length: little padding
    found: list[float] = []
    for first in beginnings(session, [texts[n] for n in order], batch_size=batch_size):
        found += session.probe.harm(first).tolist()
    value = dict(zip(order, found, strict=True))
    return [value[n] for n in range(len(texts))]
