"""Several attacks at once: what they ask the model in the meantime is answered in one batch.

An attack is a plain function that asks and waits, so each runs in a thread of its own. Only one of
them runs at a time, until it asks or ends; then the next one does. So their order is fixed, and
nothing that they share needs a lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from minisafe.evaluation.attacks.attack import Attempt
from minisafe.evaluation.attacks.oracle import Asked, SessionOracle

Made = tuple[Attempt, int]  # what an attack gave, and its queries
Make = Callable[[], Attempt]


class Ended(BaseException):
    """Raised in an attack's thread whose answers will not come."""


class Paused:
    """An attack in a thread of its own. asked: what it waits for; None once it has ended."""

    def __init__(self, make: Make, oracle: SessionOracle):
        self.make, self.oracle, self.queries = make, oracle, 0
        self.asked: Sequence[Asked] | None = ()
        self.attempt: Attempt | None = None
        self.error: BaseException | None = None
        self.said, self.heard = SimpleQueue[None](), SimpleQueue[list[str] | None]()
        self.thread = threading.Thread(target=self.work, daemon=True)

    def work(self) -> None:
        """The thread: wait for a start, then make the attempt."""
        try:
            self.wait()
            self.attempt = self.make()
        except BaseException as error:
            self.error = error
        self.asked = None
        self.said.put(None)

    def wait(self) -> list[str]:
        """In the thread: what it is told next."""
        heard = self.heard.get()
        if heard is None:
            raise Ended
        return heard

    def ask(self, asked: Sequence[Asked]) -> list[str]:
        """In the thread: the answers, when they have come."""
        self.asked = asked
        self.said.put(None)
        return self.wait()

    def go_on(self, answers: list[str]) -> None:
        """Let it run until it asks again or ends; raises its errors."""
        usual, before = self.oracle.asking, self.oracle.queries
        self.oracle.asking, self.oracle.queries = self.ask, self.queries
        try:
            self.heard.put(answers)
            self.said.get()
        finally:
            self.queries = self.oracle.queries
            self.oracle.asking, self.oracle.queries = usual, before
        if self.error is not None:
            raise self.error


def together(makes: Sequence[Make], oracle: SessionOracle) -> list[Made]:
    """What each attack gives, with its number of queries; all ask the same oracle.

    Raises the first error of an attack or of the model; the other attacks then end.
    """
    attacks = [Paused(make, oracle) for make in makes]
    try:
        for each in attacks:
            each.thread.start()
            each.go_on([])
        while waiting := [each for each in attacks if each.asked is not None]:
            answers = iter(oracle.give([one for each in waiting for one in each.asked or ()]))
            given = [[next(answers) for _ in each.asked or ()] for each in waiting]
            for each, own in zip(waiting, given, strict=True):
                each.go_on(own)
    finally:
        for each in attacks:
            each.heard.put(None)
    return [(each.attempt, each.queries) for each in attacks if each.attempt is not None]
