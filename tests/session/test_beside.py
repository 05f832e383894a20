"""Sessions of their own over one set of weights, also from several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

import minisafe
from minisafe.errors import MinisafeError, NonFiniteError, PromptError, SettingError
from minisafe.session import Session
from minisafe.session.answer import Result
from tests.support.worlds import World

pytest_plugins = ["tests.support.world_fixtures"]
PROMPTS = ["The fox", "What is the name of the river?", "a"]
THREADS = 8
# what the sessions differ in; each thread has one of them
KINDS: Sequence[Mapping[str, Any]] = (
    {"sgds_lambda": 0.9},
    {"safe": False},
    {"sgds_lambda": 0.5, "sa_scale": 2.0},
    {"sgds_lambda": 0.9, "temperature": 0.8, "seed": 3},
    {"safe": False, "temperature": 1.0, "seed": 4},
    {"sgds_lambda": 0.9, "margin": 0.5, "sa_positions": "last"},
    {"sgds_lambda": 0.99, "temperature": 0.8, "top_p": 0.9, "seed": 5, "cache_dtype": "bfloat16"},
    {"sgds_lambda": 0.9, "frequency_penalty": 0.5, "max_new_tokens": 4},
)


def load(world: World, beside: Session | None = None, **changes: Any) -> Session:
    return minisafe.load(None, world.flags(**{"max_new_tokens": 6} | changes), beside)


def said(results: Sequence[Result]) -> list[tuple[tuple[int, ...], str, Any]]:
    return [(each.tokens, each.finish_reason, each.applied) for each in results]


def talk(session: Session) -> list[Any]:
    """A chat whose first answer is begun, closed, and then given again."""
    chat = session.chat()
    pieces = chat.send("Hello there!")
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    chat.undo()
    return [list(chat.send("Hello there!")), chat.result and chat.result.tokens]


def work(session: Session, number: int) -> list[Any]:
    """All that a thread does with its session: answers, a stream or a chat, and what goes wrong."""
    found = said(session.generate(PROMPTS, chat=True, batch_size=2, first=number))
    with pytest.raises(PromptError):
        session.generate(["The fox", ""])
    return [*found, talk(session) if number % 2 else list(session.stream("The fox"))]


def in_threads(acts: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each act returns, or the error that it raises; all begin together."""
    found: list[Any] = [None] * len(acts)
    together = threading.Barrier(len(acts))

    def run(number: int) -> None:
        together.wait(60)
        try:
            found[number] = acts[number]()
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not any(thread.is_alive() for thread in threads)
    return found


@pytest.mark.parametrize(
    "how",
    [{"weights": "auto"}, {"weights": "int8"}, {"weights": "packed", "dtype": "bfloat16"}],
    ids=["auto", "int8", "packed"],
)  # fmt: skip
def test_eight_threads_say_what_one_says(world: World, how: dict[str, Any]) -> None:
    first = load(world, **how)
    sessions = [load(world, first, **how, **kind) for kind in KINDS]
    assert len({id(each.model) for each in sessions}) == 1
    acts = [lambda n=n, session=session: work(session, n) for n, session in enumerate(sessions)]
    wanted = [act() for act in acts]
    assert len({str(each) for each in wanted}) == len(KINDS)  # the settings do differ
    assert in_threads(acts) == wanted


def test_one_session_answers_several_threads(world: World) -> None:
    session = load(world)
    acts = [lambda n=n: said(session.generate(PROMPTS, first=n)) for n in range(THREADS)]
    wanted = [act() for act in acts]
    assert in_threads(acts) == wanted


def test_cancel_and_close_reach_no_other_session(world: World) -> None:
    first = load(world, max_new_tokens=60)
    other = load(world, first, max_new_tokens=60)
    (wanted,) = other.generate(["The fox"])
    ended: list[str] = []
    for _, piece in other.run(["The fox"]):
        if isinstance(piece, Result):
            ended.append(piece.finish_reason)
            assert piece.tokens == wanted.tokens
        else:
            first.cancel()
    assert ended == ["length"]
    first.close()
    assert other.generate(["The fox"])[0].tokens == wanted.tokens
    with pytest.raises(SettingError, match="the session is closed"):
        load(world, first)


def test_cancels_and_errors_in_some_threads_change_nothing_in_others(world: World) -> None:
    first = load(world, max_new_tokens=30)
    sessions = [load(world, first, max_new_tokens=30) for _ in range(THREADS)]
    wanted = said(first.generate(PROMPTS))

    def cancelled(session: Session) -> list[str]:
        found = []
        for _, piece in session.run(PROMPTS, batch_size=3):
            if isinstance(piece, Result):
                found.append(piece.finish_reason)
            else:
                session.cancel()
        return found

    def broken(session: Session) -> MinisafeError:
        assert session.steering is not None
        steering = replace(session.steering, scale=float("inf"))
        with pytest.raises(NonFiniteError) as caught:
            replace(session, steering=steering).generate(PROMPTS)
        return caught.value

    def undisturbed(session: Session) -> Any:
        return said(session.generate(PROMPTS))

    kinds = (cancelled, undisturbed, broken, undisturbed) * 2
    acts = [lambda act=act, s=s: act(s) for act, s in zip(kinds, sessions, strict=True)]
    for act, found in zip(kinds, in_threads(acts), strict=True):
        if act is undisturbed:
            assert found == wanted
        elif act is cancelled:
            assert found == ["cancelled"] * 3
        else:
            assert isinstance(found, NonFiniteError)


def test_a_session_beside_another_has_its_weights_and_its_own_safety(world: World) -> None:
    first = load(world, safe=False)
    other = load(world, first, sgds_lambda=0.9)
    alone = load(world, sgds_lambda=0.9)
    assert other.model is first.model
    assert other.running is not first.running
    assert said(other.generate(PROMPTS)) == said(alone.generate(PROMPTS))
    assert other.stages.safe
    assert not first.stages.safe


@pytest.mark.parametrize(
    ("name", "value"), [("weights", "int8"), ("dtype", "bfloat16"), ("base", None)]
)
def test_another_base_is_refused_beside_a_session(world: World, name: str, value: Any) -> None:
    first = load(world)
    with pytest.raises(SettingError, match=rf"^{name} is .* beside it has .* give the same"):
        load(world, first, **{name: value or world.expert, "safe": False})
