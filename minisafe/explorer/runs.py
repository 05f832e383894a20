"""One traced answer as a page keeps it, with the base's other endings at its forks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from minisafe.session import Session
from minisafe.session.answer import Result
from minisafe.session.chat_prompt import ChatPrompt, EncodedPrompt
from minisafe.session.traced import Trace
from minisafe.trace.step import Candidates, Step

FORKS = 3  # of an answer, from its beginning
BRANCH = 48  # tokens of a continuation


@dataclass(frozen=True)
class Fork:
    """Step n, where base and result like different tokens most: the base's choice, and its own
    greedy answer from there, without vector and guidance. finish: as in `Result`."""

    n: int
    ids: tuple[int, ...]
    finish: str

    def to_json(self) -> dict[str, Any]:
        return {"n": self.n, "ids": list(self.ids), "finish": self.finish}


@dataclass(frozen=True)
class Run:
    """A traced answer. header: the trace's. texts: of every token that is named in it, by id."""

    header: Mapping[str, Any]
    steps: tuple[Step, ...]
    result: Result
    forks: tuple[Fork, ...]
    texts: Mapping[int, str]


def run(session: Session, base: Session, prompt: str | ChatPrompt, chat: bool, top: int) -> Run:
    """Trace an answer of the session. base: the session without any stage, for the forks."""
    trace = session.trace(prompt, chat, top=top)
    steps = tuple(trace)
    assert trace.result is not None
    forks = tuple(forks_of(base, trace, steps))
    texts = {id_: text for step in steps for id_, text in step.texts.items()}
    texts |= {id_: trace.pieces[id_] for fork in forks for id_ in fork.ids}
    return Run(trace.header(), steps, trace.result, forks, texts)


def forks_of(base: Session, trace: Trace, steps: Sequence[Step]) -> list[Fork]:
    """The first forks of an answer, each with the base's own ending."""
    prompt, found = trace.request.prompts[0], list[Fork]()
    for step in steps:
        if step.changed and len(found) < FORKS:
            taken = [each.id for each in steps[: step.n]]
            choice = likeliest(step.candidates, "base")
            ids, finish = ending(base, (*prompt, *taken, choice))
            found.append(Fork(step.n, (choice, *ids), finish))
    return found


def likeliest(candidates: Candidates, name: str) -> int:
    """The likeliest token of a distribution; of several, the lowest, as greedy decoding takes."""
    values = candidates.log_probs[name]
    best = max(values)
    return min(id_ for id_, value in zip(candidates.ids, values, strict=True) if value == best)


def ending(base: Session, ids: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
    """The tokens with which the base goes on after these ids, greedily, and why it ended."""
    if ids[-1] in base.eos:
        return (), "stop"
    if len(ids) >= base.limit:
        return (), "context"
    settings = replace(
        base.settings, max_new_tokens=BRANCH, max_seconds=None, temperature=0.0, stop=()
    )
    session = replace(base, settings=settings)
    request = session.new_request(EncodedPrompt.of((ids,)))
    results = session.results([request], [ids], session.running.cancels)
    (found,) = [each for _, each in results if isinstance(each, Result)]
    return found.tokens, found.finish_reason


def trimmed(found: Candidates, chosen: int, top: int, least: float) -> Candidates:
    """The same with fewer candidates: of each distribution the `top` likeliest of those with a
    probability of `least`, but always its likeliest, and the chosen token. What is left out is
    added to the tails."""
    kept = {found.ids.index(chosen)}
    for values in found.log_probs.values():
        order = sorted(range(len(values)), key=lambda place: -values[place])
        floor = math.log(least) if least > 0 else -math.inf
        kept |= {order[0], *(place for place in order[:top] if values[place] >= floor)}
    places = [place for place in range(len(found.ids)) if place in kept]
    dropped = [place for place in range(len(found.ids)) if place not in kept]
    return Candidates(
        tuple(found.ids[place] for place in places),
        {
            name: tuple(values[place] for place in places)
            for name, values in found.log_probs.items()
        },
        None if found.penalty is None else tuple(found.penalty[place] for place in places),
        {
            name: tail + sum(math.exp(found.log_probs[name][place]) for place in dropped)
            for name, tail in found.tail.items()
        },
    )
