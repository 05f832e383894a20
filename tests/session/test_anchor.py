"""A third stream: the anchor. What is drawn equals a slow reading of each stream by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import minisafe
from minisafe.checkpoint import load_model, save_adapter
from minisafe.errors import SafetyError, SettingError
from minisafe.lockstep import Stream
from minisafe.session import Session
from minisafe.session.fingerprints import made_for
from minisafe.slots import Span
from minisafe.vectors import Steering, moved
from tests.support.tiny import random_adapter
from tests.support.worlds import E, World, slow_log_probs

pytest_plugins = ["tests.support.world_fixtures"]
LAM = 0.9
SHOTS = [{"input": "The fox", "output": "No."}, {"input": "A river", "output": "I will not."}]
KINDS = ("adapter", "checkpoint", "system prompt", "demonstrations")


@pytest.fixture(scope="module")
def parts(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The settings of an anchor of each kind."""
    root: Path = tmp_path_factory.mktemp("anchor")
    model = load_model(world.base, dtype="float32")
    save_adapter(random_adapter(model, seed=5), root / "adapter", rank=3, alpha=1.5)
    (root / "shots.json").write_text(json.dumps(SHOTS), encoding="utf-8")
    return {
        "adapter": {"anchor": root / "adapter"},
        "checkpoint": {"anchor": world.expert},
        "system prompt": {"anchor_system": "You are careful."},
        "demonstrations": {"anchor_shots": root / "shots.json"},
    }


def load(world: World, **changes: Any) -> Session:
    given = {"rule": "anchored", "max_new_tokens": 6, "sgds_lambda": LAM, "sa_scale": 2.0}
    return minisafe.load(None, world.flags(**(given | changes)))


def scores(rule: str, lb: Tensor, lu: Tensor, la: Tensor) -> Tensor:
    source = la if rule == "anchored" else lb
    return source - LAM / (1 - LAM) * (lu - la).clamp(min=0)


def check(
    session: Session, ids: list[list[int]], tokens: tuple[int, ...], spans: tuple[Span, ...]
) -> None:
    """Assert that each greedy token is the best one after reading every stream from scratch."""
    steering = session.steering
    assert steering is not None
    for token in tokens:
        said = [
            slow_log_probs(
                stream, text, *((steering, moved(spans, len(text) - len(ids[0])))
                                if number in steering.streams else ())
            )
            for number, (stream, text) in enumerate(zip(session.streams, ids, strict=True))
        ]  # fmt: skip
        s = scores(session.settings.rule, *said)
        assert s[token] >= s.max() - 2 * E / (1 - LAM)
        for text in ids:
            text.append(token)


@pytest.mark.parametrize("rule", ["anchored", "veto"])
@pytest.mark.parametrize("kind", ["adapter", "system prompt", "demonstrations"])
@pytest.mark.parametrize("steered", [None, "both"])
def test_the_answers_of_a_chat_are_the_slow_reference(
    world: World, parts: dict[str, dict[str, Any]], rule: str, kind: str, steered: str | None
) -> None:
    """Two turns: the second reuses what the first has left in every stream's cache."""
    session = load(world, rule=rule, sa_streams=steered, **parts[kind])
    assert session.kinds == ("adapter", kind)
    steering = session.steering
    assert steering is not None
    wanted = {None: (0,) if rule == "veto" else (2,), "both": (0, 2)}[steered]
    assert steering.streams == wanted
    chat = session.chat()
    for text in ("The fox", "What is the name of the river?"):
        asked = [*chat.messages, {"role": "user", "content": text}]
        chats = session.encode_chat(asked, chat.answers)
        places = [place for place in chats[0].answers if place is not None]
        spans = steering.spans([*places, (len(chats[0].ids), None)])
        list(chat.send(text))
        assert chat.result is not None
        check(session, [list(each.ids) for each in chats], chat.result.tokens, spans)
    assert session.stages.to_json()["sgds"]["anchor"] == kind
    assert session.stages.to_json()["sgds"]["rule"] == rule


def test_the_demonstrations_are_turns_that_only_the_anchor_reads(
    world: World, parts: dict[str, dict[str, Any]]
) -> None:
    session = load(world, **parts["demonstrations"])
    base, expert, anchor = session.encode_chat([{"role": "user", "content": "Hello"}])
    assert base == expert
    turns = [
        {"role": role, "content": shot[key]}
        for shot in SHOTS
        for role, key in (("user", "input"), ("assistant", "output"))
    ]
    wanted = session.tokenizer.encode_chat([*turns, {"role": "user", "content": "Hello"}])
    assert anchor.ids == wanted.ids


def test_a_switch_in_a_chat_leaves_the_anchor_behind_and_comes_back(
    world: World, parts: dict[str, dict[str, Any]]
) -> None:
    session = load(world, **parts["demonstrations"])
    chat, plain = session.chat(), session.plain().chat()
    chat.set_safe(False)
    assert list(chat.send("The fox")) == list(plain.send("The fox"))
    chat.set_safe(True)
    again = session.chat()
    again.restore(chat.conversation())
    assert list(chat.send("A river")) == list(again.send("A river"))


@pytest.mark.parametrize("positions", ["prompt", "last", "generated", "all"])
def test_spans_move_with_what_stands_before(positions: str) -> None:
    steering = Steering({1: torch.zeros(4)}, 1.0, positions, (0, 2))
    spans = steering.spans([(5, 8), (12, None)])
    assert moved(moved(spans, 7), -7) == spans
    assert moved(((0, 2), (3, None)), -3) == ((0, None),)


# ---- never half-safe ---------------------------------------------------------------------------


def test_a_rule_without_its_anchor_answers_nothing(world: World) -> None:
    for rule in ("anchored", "veto"):
        with pytest.raises(SafetyError, match=f"the rule {rule} reads one anchor, but 0 are given"):
            load(world, rule=rule)


def test_an_anchor_that_nothing_reads_is_refused(
    world: World, parts: dict[str, dict[str, Any]]
) -> None:
    for kind in KINDS:
        with pytest.raises(SettingError, match="but the rule sgds reads no anchor"):
            load(world, rule="sgds", **parts[kind])
    with pytest.raises(SafetyError, match="reads one anchor, but 2 are given"):
        load(world, **parts["adapter"], **parts["system prompt"])


def test_a_vector_that_the_answer_is_not_drawn_from_is_refused(
    world: World, parts: dict[str, dict[str, Any]]
) -> None:
    with pytest.raises(SafetyError, match="added to the base alone"):
        load(world, sa_streams="base", **parts["adapter"])
    with pytest.raises(SettingError, match="sa_streams is both, but the rule sgds reads no anchor"):
        load(world, rule="sgds", sa_streams="both")


def test_an_anchor_of_another_shape_is_not_steered(
    world: World, parts: dict[str, dict[str, Any]]
) -> None:
    with pytest.raises(SafetyError, match="another shape than the base"):
        load(world, **parts["checkpoint"])
    steered = load(world, rule="veto", **parts["checkpoint"])
    assert steered.kinds == ("adapter", "checkpoint")
    assert len(load(world, sa_scale=0.0, **parts["checkpoint"]).streams) == 3


def test_an_anchor_that_is_the_expert_is_refused(world: World) -> None:
    with pytest.raises(SafetyError, match="two of the experts are the same"):
        load(world, anchor=world.adapter)


@pytest.mark.parametrize(
    "text", ["{}", "[]", '[{"input": "a"}]', '[{"input": "a", "output": " "}]', "[3]", "nonsense"]
)
def test_demonstrations_that_are_none(world: World, tmp_path: Path, text: str) -> None:
    path = tmp_path / "shots.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingError, match=r"shots\.json"):
        load(world, anchor_shots=path)


def test_a_calibration_is_for_its_anchor(world: World, parts: dict[str, dict[str, Any]]) -> None:
    sessions = [load(world, sa_scale=0.0, **parts[kind]) for kind in KINDS]
    sessions += [load(world, rule="veto", **parts["adapter"]), load(world, rule="sgds")]
    found = {made_for(session.settings, session.steering) for session in sessions}
    assert len(found) == len(sessions)


def test_the_gate_compares_what_is_drawn_from_with_the_expert(
    world: World, parts: dict[str, dict[str, Any]]
) -> None:
    session = load(world, sa_scale=0.0, **parts["adapter"])
    (found,) = session.variations(["The fox"])
    ids = list(session.encode("The fox", chat=True)[0])
    streams: list[Stream] = [session.streams[2], session.streams[1]]
    anchor, expert = (slow_log_probs(stream, ids).exp() for stream in streams)
    assert found == pytest.approx(float((anchor - expert).abs().sum() / 2), abs=1e-4)
