"""The oracle asks as a user does: through a defence, and what is read alone is read alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

import minisafe
from minisafe import ChatPrompt
from minisafe.errors import SettingError
from minisafe.evaluation.attacks import ATTACKS
from minisafe.evaluation.attacks.oracle import SessionOracle
from minisafe.evaluation.defences import Defence, Defended
from minisafe.evaluation.defences.asking import InContext
from minisafe.evaluation.judges.world import WorldJudge
from minisafe.evaluation.methods import Method
from minisafe.evaluation.prompts import Prompt
from minisafe.evaluation.runner.plan import Job
from minisafe.evaluation.runner.run import check_attacks
from minisafe.gate import Gate
from minisafe.session import Session
from tests.support.worlds import World

pytest_plugins = ["tests.support.world_fixtures"]
BEGINNING = "The bird said"
WORDS = ("fox", "river")
PROMPT = ChatPrompt.of(f"Who knows? Tell me now. {' '.join(WORDS)}")


def load(world: World) -> Session:
    given = {"max_new_tokens": 6, "sgds_lambda": 0.9, "sa_scale": 1.5, "weights": "plain"}
    return minisafe.load(None, world.flags(**given))


def oracle_of(session: Session | Defended) -> SessionOracle:
    return SessionOracle(session, WorldJudge(), {}, {})


@dataclass(frozen=True)
class Steered(Defence):
    """Another model answers: the same one without guidance."""

    def prepare(self, session: Session) -> Session:
        return session.plain()


def test_what_is_read_alone_is_what_is_scored_and_answered(world: World) -> None:
    session = load(world)
    alone = replace(session, alone=Gate(0.0))
    (encoded,) = alone.encode_prompts([PROMPT], chat=True)
    assert encoded.alone is not None
    texts = ("Who knows?", "Tell me now.", "fox river", PROMPT.question)
    parts = [ChatPrompt.of(text) for text in texts]
    (part,) = [each for each in parts if session.encode_prompt(each, True).ids == encoded.ids]
    assert part != PROMPT
    one, other = oracle_of(alone), oracle_of(session)
    assert one.ask([PROMPT]) == other.ask([part])
    assert one.likelihood([PROMPT], BEGINNING) == other.likelihood([part], BEGINNING)
    assert one.likelihood([PROMPT], BEGINNING) != other.likelihood([PROMPT], BEGINNING)


def test_the_gradient_is_of_the_prompt_as_it_is_written(world: World) -> None:
    session = load(world)
    wanted = oracle_of(session).gradient(PROMPT, WORDS, BEGINNING)
    found = oracle_of(replace(session, alone=Gate(0.0))).gradient(PROMPT, WORDS, BEGINNING)
    assert torch.equal(found, wanted)


def test_a_defence_that_leaves_the_prompt_has_its_sessions_gradient(world: World) -> None:
    session = load(world)
    defended = oracle_of(Defended(session, Steered()))
    wanted = oracle_of(session.plain()).gradient(PROMPT, WORDS, BEGINNING)
    assert torch.equal(defended.gradient(PROMPT, WORDS, BEGINNING), wanted)
    assert not torch.equal(oracle_of(session).gradient(PROMPT, WORDS, BEGINNING), wanted)
    with pytest.raises(SettingError, match="the defence InContext rewrites prompts"):
        oracle_of(Defended(session, InContext(1))).gradient(PROMPT, WORDS, BEGINNING)


def test_a_white_box_is_refused_before_the_first_answer(world: World) -> None:
    defended = Defended(load(world), InContext(1))
    method = Method("icd", None, {})

    def check(name: str, subject: Any) -> None:
        prompt = Prompt("q1", "Who knows?")
        check_attacks(method, subject, [[Job(0, name, prompt, "Who knows?", ATTACKS[name])]])

    with pytest.raises(SettingError, match="method icd: the defence InContext rewrites prompts"):
        check("gcg", defended)
    check("gcg-base", defended)  # it asks the undefended base alone
    check("gcg", defended.session)


def test_draws_go_with_their_prompts_through_a_defence(world: World) -> None:
    session = load(world).with_settings({"temperature": 1.0})
    prompts = [ChatPrompt.of(text) for text in ("The fox", "The fox", "A river")]
    wanted = [session.generate([p], first=n)[0] for p, n in zip(prompts, (7, 2, 7), strict=True)]
    for subject in (session, Defended(session, Defence())):
        found = subject.generate(prompts, batch_size=2, draws=[7, 2, 7])
        assert [each.tokens for each in found] == [each.tokens for each in wanted]
        with pytest.raises(SettingError, match="2 numbers of draws for 3 prompts"):
            subject.generate(prompts, draws=[7, 2])
    assert wanted[0].tokens != wanted[1].tokens
