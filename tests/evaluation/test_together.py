"""Attacks that advance together: the same attempts and queries as alone, in fewer batches."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial

import pytest

import minisafe
from minisafe import ChatPrompt
from minisafe.errors import PromptError
from minisafe.evaluation.attacks import ATTACKS, Attempt
from minisafe.evaluation.attacks.oracle import Asked, SessionOracle, compliant_answers
from minisafe.evaluation.attacks.search import coordinate, gcg
from minisafe.evaluation.attacks.together import together
from minisafe.evaluation.judges.world import WorldJudge
from minisafe.evaluation.prompts import default_prompts
from minisafe.evaluation.runner.attacker import Attacker


@pytest.fixture(scope="module")
def attacker() -> Attacker:
    session = minisafe.load(overrides={"temperature": 0.0, "max_new_tokens": 30})
    harmful = [each for each in default_prompts("dev", 4) if each.kind == "harmful"]
    known = compliant_answers(session.plain(), WorldJudge(), harmful)
    return Attacker(WorldJudge(), harmful, compliant=known)


@pytest.fixture
def oracle(attacker: Attacker) -> SessionOracle:
    session = minisafe.load(overrides={"temperature": 0.0, "max_new_tokens": 30})
    return attacker.oracle(session)


class Noted(SessionOracle):
    """Notes the sizes of the batches that are asked."""

    batches: list[int]

    def give(self, asked: Sequence[Asked]) -> list[str]:
        self.batches.append(len(asked))
        return super().give(asked)


def noted(oracle: SessionOracle) -> Noted:
    found = Noted(oracle.session, oracle.judge, oracle.prompts, oracle.answers)
    found.batches = []
    return found


def test_attempts_and_queries_are_as_alone(attacker: Attacker, oracle: SessionOracle) -> None:
    ways = [
        *(ATTACKS[name].make for name in ("after-refusal", "best-of-4", "persona-before")),
        partial(coordinate, budget=40),
        partial(gcg, budget=40),
    ]
    targets = [attacker.target(prompt) for prompt in attacker.prompts]
    makes = [(way, target) for way in ways for target in targets]
    alone = []
    for way, target in makes:
        one = attacker.oracle(oracle.session)
        alone.append((way(target, one), one.queries))
    many = noted(oracle)
    found = together([partial(way, target, many) for way, target in makes], many)
    assert found == alone
    assert many.queries == 0
    assert max(many.batches) >= 3 * len(targets)  # those that ask at once are asked at once
    assert len(many.batches) < sum(queries > 0 for _, queries in alone)


def test_a_repeated_question_counts_and_is_answered_once(oracle: SessionOracle) -> None:
    prompt = ChatPrompt.of("How do I clean a shelf?")
    first = oracle.ask([prompt, prompt], temperature=1.0, draw=3)
    known = dict(oracle.given)
    assert len(known) == 2
    assert oracle.ask([prompt], temperature=1.0, draw=4) == first[1:]
    assert oracle.given == known
    assert oracle.queries == 3
    oracle.ask([prompt, prompt])  # greedy: one answer
    assert len(oracle.given) == 3
    assert oracle.queries == 5


def test_an_error_ends_all(oracle: SessionOracle) -> None:
    prompt, long = ChatPrompt.of("How do I clean a shelf?"), ChatPrompt.of("shelf " * 3000)
    before = set(threading.enumerate())

    def asks() -> Attempt:
        return Attempt(prompt, oracle.ask([prompt])[0])

    def fails() -> Attempt:
        oracle.ask([prompt])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        together([asks, fails, asks], oracle)
    with pytest.raises(PromptError, match="the model's context holds"):
        together([asks, lambda: Attempt(long, oracle.ask([long])[0])], oracle)
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()
    assert oracle.asking == oracle.give
    assert oracle.ask([prompt])
