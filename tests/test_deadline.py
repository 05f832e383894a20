"""Time budgets by a clock that the test sets."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from minisafe.deadline import Deadline
from minisafe.engine import Event, Generation, Request
from minisafe.guidance import Plain
from minisafe.lockstep import Lockstep, Stream
from tests.support.tiny import random_model, tiny_config


@dataclass
class Set:
    """A clock that stands still until it is set."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def plain(requests: list[Request], eos: frozenset[int] = frozenset()) -> Generation:
    base = random_model(tiny_config(max_positions=32), 1)
    return Generation(Lockstep([Stream(base)], len(requests), 4), Plain(), requests, None, eos)


def taken(events: list[Event], number: int = 0) -> list[int | None]:
    return [event.id for event in events if event.request == number]


def test_a_deadline_passes_when_its_clock_gets_there() -> None:
    clock = Set()
    deadline = Deadline.after(2.5, clock)
    assert deadline == Deadline(102.5, clock)
    for now, passed in ((100.0, False), (102.4, False), (102.5, True), (103.0, True)):
        clock.now = now
        assert deadline.passed is passed
    assert Deadline.after(None, clock) is None


def test_an_answer_ends_at_the_first_token_after_its_deadline() -> None:
    clock = Set()
    generation = plain([Request(((1, 2),), deadline=Deadline.after(5.0, clock))])
    events: list[Event] = []
    for event in generation:
        events.append(event)
        clock.now = 104.9 if len(events) < 3 else 105.0
    assert [event.finish for event in events] == [None, None, None, "time"]
    whole = [event.id for event in plain([Request(((1, 2),), max_new_tokens=4)])]
    assert taken(events) == whole  # the last token is one of the answer, not lost


def test_a_prompt_that_took_too_long_is_answered_with_one_token() -> None:
    generation = plain([Request(((1, 2),), deadline=Deadline(99.0, Set()))])
    assert [event.finish for event in generation] == ["time"]
    assert len(generation.states[0].answer) == 1


def test_rows_without_a_deadline_go_on() -> None:
    clock = Set()
    late = Deadline.after(5.0, clock)
    requests = [Request(((n, n + 1),), max_new_tokens=6) for n in range(3)]
    alone = taken(list(plain([requests[2]])))
    requests[1] = Request(((1, 2),), max_new_tokens=6, deadline=late)
    events: list[Event] = []
    for event in plain(requests):
        events.append(event)
        if len(events) == 6:
            clock.now = 105.0
    assert [len(taken(events, number)) for number in range(3)] == [6, 3, 6]
    assert [event.finish for event in events if event.finish] == ["time", "length", "length"]
    assert taken(events, 2) == alone


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_an_answer_that_is_whole_does_not_end_for_time(reason: str) -> None:
    (first,) = plain([Request(((1, 2),), max_new_tokens=1)])
    late = Deadline(0.0, Set())
    request = Request(((1, 2),), max_new_tokens=1 if reason == "length" else 9, deadline=late)
    eos = frozenset({first.id} if reason == "stop" and first.id is not None else ())
    assert [event.finish for event in plain([request], eos)] == [reason]
