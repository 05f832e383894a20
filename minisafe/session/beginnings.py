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

PADDED = 1024  # tokens of a batch, with its padding
TOGETHER = 8  # texts of a batch under a memory limit, at most


def beginnings(
    session: Session, prompts: Sequence[str | ChatPrompt], chat: bool = True, batch_size: int = 8
) -> Iterator[tuple[list[int], Tensor]]:
    """Batch by batch, the prompts' numbers and the log-probabilities of each answer's first token,
    (rows, streams, vocab), with the steering of an answer. Prompts of like lengths come together,
    for little padding."""
    requests = [session.new_request(session.encode_prompt(each, chat)) for each in prompts]
    most = batch_size if session.settings.memory_limit is None else min(batch_size, TOGETHER)
    for numbers in batches([len(each.prompts[0]) for each in requests], most):
        yield numbers, read(session, [requests[number] for number in numbers])


def read(session: Session, requests: Sequence[Request]) -> Tensor:
    """What `beginnings` yields for one batch. Its caches are gone when this returns, so that a
    process never holds those of two."""
    longest = max(len(ids) for request in requests for ids in request.prompts)
    lockstep = session.new_lockstep(len(requests), longest)
    generation = Generation(lockstep, session.rule, requests, session.steering)
    left = read_shared(lockstep, generation.prompts(), first_steered(requests))
    return stacked(generation.feed(list(range(len(requests))), left))


def is_long(session: Session, text: str) -> bool:
    """Whether a text, as a chat's first message, fills more than a batch by itself."""
    return len(session.encode_prompt(text, chat=True).ids[0]) > PADDED


def batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """The places of texts of these lengths, shortest first, up to `most` together. A text that
    would pad the others to more than `PADDED` tokens in all begins a new batch: every row's cache
    is as long as the longest."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda n: lengths[n]):
        full = len(batch) == most or (len(batch) + 1) * lengths[number] > PADDED
        if batch and full:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


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
    found = [0.0] * len(texts)
    for numbers, first in beginnings(session, texts, batch_size=batch_size):
        for number, value in zip(numbers, session.probe.harm(first).tolist(), strict=True):
            found[number] = value
    return found
