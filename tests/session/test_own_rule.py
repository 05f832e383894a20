"""A program's own rule: checked before a token is drawn, named in what acted, never left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import minisafe
from minisafe.errors import PromptError, SafetyError, SettingError
from minisafe.guidance import SGDS, Anchored, Plain, safe_log_probs
from minisafe.session.own_rule import drawn, numbers_of, rule_name
from minisafe.session.saved import load_chat, save_chat
from minisafe.session.session import Session
from tests.support.worlds import World

pytest_plugins = ["tests.support.world_fixtures"]
PROMPTS = ["The fox", "What is the name of the river?"]
Formula = Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True)
class Published:
    """SafeInfer's rule, written anew."""

    strength: float = 0.99
    n_streams: ClassVar[int] = 2
    drawn_from: ClassVar[int] = 0
    first_tokens: ClassVar[int | None] = None

    def __call__(self, log_probs: tuple[Tensor, ...]) -> Tensor:
        return safe_log_probs(log_probs[0], log_probs[1], self.strength)


@dataclass(frozen=True)
class Any2:
    """A rule of any formula; its numbers are fields."""

    formula: Formula
    n_streams: int = 2
    drawn_from: int = 0
    first_tokens: int | None = None

    def __call__(self, log_probs: tuple[Tensor, ...]) -> Any:
        return self.formula(log_probs[0], log_probs[1])


class Stricter(SGDS):
    """A rule that inherits; a setting cannot name it."""


def half(base: Tensor, expert: Tensor) -> Tensor:
    return torch.log_softmax(base - 0.5 * expert, dim=-1)


def load(world: World, **changes: Any) -> Session:
    return minisafe.load(None, world.flags(max_new_tokens=12, weights="plain", **changes))


def tokens(session: Session) -> list[tuple[int, ...]]:
    return [each.tokens for each in session.generate(PROMPTS)]


def test_the_rule_is_what_is_drawn_from(world: World) -> None:
    session = load(world)
    own = session.with_rule(Published())
    assert tokens(own) == tokens(session)
    assert tokens(session.with_rule(Any2(half))) != tokens(session)
    assert own.streams is session.streams
    assert type(session.rule) is SGDS  # untouched


def test_it_is_named_in_what_acted(world: World) -> None:
    (result,) = load(world).with_rule(Published(strength=0.5)).generate(PROMPTS[:1])
    applied = result.applied.to_json()
    assert applied["rule"] == {"name": "published", "strength": 0.5, "streams": ["adapter"]}
    assert applied["sgds"] is None
    assert applied["sa"] is not None
    (result,) = load(world).with_rule(Stricter(lam=0.9)).generate(PROMPTS[:1])
    assert result.applied.sgds is None  # it is not the published one, whose name this would be
    assert result.applied.rule is not None
    assert result.applied.rule.name == "stricter"
    json.dumps(load(world).with_rule(Any2(half)).stages.to_json())


def test_names_and_numbers() -> None:
    assert [rule_name(each) for each in (SGDS(), Anchored(), Published())] == [
        "sgds", "anchored", "published",
    ]  # fmt: skip
    assert numbers_of(Published()) == {"strength": 0.99}
    assert numbers_of(Any2(half)) == {"n_streams": 2, "drawn_from": 0, "first_tokens": None}


@pytest.mark.parametrize(
    ("rule", "error", "said"),
    [
        (Any2(half, n_streams=1), SafetyError, "reads 1 streams, but 2 are loaded"),
        (Any2(half, n_streams=3), SafetyError, "reads 3 streams, but 2 are loaded"),
        (Any2(half, drawn_from=1), SafetyError, "expected drawn_from 0"),
        (Any2(half, first_tokens=0), SettingError, "first_tokens is 0"),
        (Any2(lambda base, expert: base), SafetyError, "changes nothing"),
        (Any2(lambda base, expert: base - expert), SettingError, "expected 1"),
        (Any2(lambda base, expert: base * torch.nan), SettingError, "sum to nan"),
        (Any2(lambda base, expert: base - torch.inf), SettingError, "sum to 0"),
        (Any2(lambda base, expert: half(base, expert)[0]), SettingError, "expected log-prob"),
        (Any2(lambda base, expert: 3.0), SettingError, "gives float"),
        (
            Any2(lambda base, expert: half(base, expert.mean(0, keepdim=True))),
            SettingError, "last dimension",
        ),
        (lambda log_probs: log_probs[0], SettingError, "a dataclass"),
        (Published, SettingError, "an instance of a dataclass"),
    ],
)  # fmt: skip
def test_what_cannot_guide_is_refused(world: World, rule: Any, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        load(world).with_rule(rule)


def test_nothing_is_guided_without_an_expert(world: World) -> None:
    session = load(world)
    for unguided in (session.plain(), load(world, expert=None, sgds_lambda=0)):
        assert isinstance(unguided.rule, Plain)
        with pytest.raises(SafetyError, match="no expert to read"):
            unguided.with_rule(Published())


def test_settings_reach_the_answer_and_never_replace_the_rule(world: World) -> None:
    for rule in (Published(), Stricter()):
        own = load(world).with_rule(rule)
        with pytest.raises(SettingError, match="the program's own rule"):
            own.with_settings({"sgds_lambda": 0.5})
        shorter = own.with_settings({"max_new_tokens": 3})
        assert shorter.rule is rule
        assert len(tokens(shorter)[0]) == 3


def test_a_saved_chat_goes_on_under_the_same_rule_only(world: World, tmp_path: Path) -> None:
    session, path = load(world), tmp_path / "chat.json"
    chat = session.with_rule(Published()).chat()
    "".join(chat.send("The fox"))
    save_chat(chat, path)
    load_chat(session.with_rule(Published()).chat(), path)
    for other in (session, session.with_rule(Published(0.5))):
        with pytest.raises(PromptError, match="saved with another rule"):
            load_chat(other.chat(), path)


def test_a_trace_names_it(world: World) -> None:
    trace = load(world).with_rule(Published()).trace("The fox", chat=False)
    header = next(iter(trace.lines()))
    assert header["rule"] == {"name": "published", "strength": 0.99}


def test_the_check_draws_the_same_streams_each_time() -> None:
    one, other = drawn(3, 50), drawn(3, 50)
    assert len(one) == 3
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert one[0].shape == (8, 50)
    assert torch.allclose(one[0].exp().sum(-1), torch.ones(8))
