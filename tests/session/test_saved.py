"""Saved conversations: a loaded one goes on as the saved one would have, or is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisafe.errors import BusyError, PromptError
from minisafe.gate import Gate
from minisafe.session.chat import Chat
from minisafe.session.saved import load_chat, save_chat
from minisafe.vectors import POSITIONS
from tests.session.test_chat import EXPERTS, TEXTS, expert, new_chat, say
from tests.support.worlds import World

pytest_plugins = ["tests.support.world_fixtures"]
DRAWN = {"temperature": 1.0, "sgds_lambda": 0.5, "seed": 3}


@pytest.mark.parametrize("kind", EXPERTS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_loaded_conversation_goes_on_as_the_saved_one(
    world: World, tmp_path: Path, positions: str, kind: str
) -> None:
    """Token for token, against one that was never interrupted; in a chat with another past too."""
    given_ = {**expert(world, kind), "sa_positions": positions, **DRAWN}
    chat = new_chat(world, **given_)
    for text in TEXTS[:2]:
        say(chat, text)
    save_chat(chat, tmp_path / "talk.json")
    rest = [say(chat, text) for text in TEXTS[2:4]]
    fresh, busy = new_chat(world, **given_), new_chat(world, **given_ | {"seed": 9})
    say(busy, "Something else.")
    for other, changed in ((fresh, []), (busy, ["seed"])):
        assert load_chat(other, tmp_path / "talk.json") == changed
        assert [say(other, text) for text in TEXTS[2:4]] == rest
        assert other.conversation() == chat.conversation()


def test_what_the_gate_left_alone_stays_so(world: World, tmp_path: Path) -> None:
    """The first answer was the base's own, and so its turn is not steered later either."""

    def gated() -> Chat:
        chat = new_chat(world, sa_positions="last")
        chat.session = replace(chat.session, gate=Gate(1.0))
        return chat

    chat = gated()
    say(chat, TEXTS[0])
    assert chat.left_to_base == {1}
    save_chat(chat, tmp_path / "talk.json")
    rest = say(chat, TEXTS[1])
    other = gated()
    load_chat(other, tmp_path / "talk.json")
    assert other.left_to_base == {1}
    assert say(other, TEXTS[1]) == rest


@settings(max_examples=5)
@given(n=st.integers(0, 3), system=st.sampled_from([None, "You are a bird.", "é\n\u2028日"]))
def test_saving_what_was_loaded_writes_the_same(
    world: World, tmp_path_factory: pytest.TempPathFactory, n: int, system: str | None
) -> None:
    path = tmp_path_factory.mktemp("saved")
    chat = new_chat(world)
    chat.set("system", system)
    for text in TEXTS[:n]:
        say(chat, text)
    save_chat(chat, path / "one.json")
    other = new_chat(world)
    assert load_chat(other, path / "one.json") == ([] if system is None else ["system"])
    save_chat(other, path / "two.json")
    assert (path / "one.json").read_bytes() == (path / "two.json").read_bytes()


# ---- what is refused ---------------------------------------------------------------------------


@pytest.fixture
def saved(world: World, tmp_path: Path) -> Path:
    chat = new_chat(world)
    for text in TEXTS[:2]:
        say(chat, text)
    save_chat(chat, tmp_path / "talk.json")
    return tmp_path / "talk.json"


def refused(chat: Chat, path: Path, message: str) -> None:
    """The file is refused with these words, and the chat is as before."""
    say(chat, "Before.")
    before, session = chat.conversation(), chat.session
    with pytest.raises(PromptError, match=message):
        load_chat(chat, path)
    assert chat.conversation() == before
    assert chat.session is session


def test_a_file_does_not_change_what_decides_safety(world: World, saved: Path) -> None:
    for name, value in (("sgds_lambda", 0.5), ("margin", 0.25), ("sa_scale", 2.0)):
        refused(new_chat(world, **{name: value}), saved, f"saved with {name} .*set it yourself")
    chat = new_chat(world)
    chat.set_safe(False)
    refused(chat, saved, "saved while safe decoding was on; enter /safe on")
    data = json.loads(saved.read_text())
    saved.write_text(json.dumps(data | {"safe": False, "deciding": {}}))
    refused(new_chat(world), saved, "saved while safe decoding was off; enter /safe off")


def test_other_weights_are_refused(world: World, saved: Path) -> None:
    refused(new_chat(world, **expert(world, "checkpoint")), saved, "saved with another expert")


def test_another_template_is_refused(world: World, saved: Path, tmp_path: Path) -> None:
    config = json.loads((world.base / "tokenizer_config.json").read_text())
    template = config["chat_template"] + "{# another #}"
    base = world.edited(world.base, tmp_path, "tokenizer_config.json", chat_template=template)
    refused(new_chat(world, base=base), saved, "saved with another tokenizer")


def test_other_template_options_are_refused(world: World, tmp_path: Path) -> None:
    config = json.loads((world.base / "tokenizer_config.json").read_text())
    template = config["chat_template"] + "{% if enable_thinking %}<think>{% endif %}"
    base = world.edited(world.base, tmp_path, "tokenizer_config.json", chat_template=template)
    save_chat(new_chat(world, base=base), tmp_path / "talk.json")
    chat = new_chat(world, base=base, template_options={"enable_thinking": False})
    refused(chat, tmp_path / "talk.json", "saved with another template_options; start the chat")


SPOILT: dict[str, tuple[Any, str]] = {
    "an unknown key": (lambda d: d | {"more": 1}, "unknown key 'more'"),
    "a missing key": (lambda d: {k: v for k, v in d.items() if k != "turn"}, "no key 'turn'"),
    "another version": (lambda d: d | {"minisafe_chat": 2}, "not a saved conversation"),
    "a turn that is true": (lambda d: d | {"turn": True}, "turn is a bool; expected int"),
    "a negative turn": (lambda d: d | {"turn": -1}, "turn is -1"),
    "safe as a text": (lambda d: d | {"safe": "no"}, "safe is a str; expected bool"),
    "made with a number": (lambda d: d | {"made_with": {"base": 1}}, "something other than text"),
    "an unknown setting": (lambda d: d | {"sampling": {"base": "/"}}, "unknown setting 'base'"),
    "safety among them": (lambda d: d | {"sampling": {"sa_scale": -1}}, "unknown setting 'sa_sc"),
    "a setting's type": (lambda d: d | {"sampling": {"seed": "1"}}, "seed is '1'; expected int"),
    "a setting's range": (lambda d: d | {"sampling": {"temperature": -1}}, "temperature is -1"),
    "a list": (lambda d: [d], "not a saved conversation"),
    "no object": (lambda d: d | {"exchanges": ["x"]}, "exchange 1: expected an object"),
    "no question": (lambda d: first(d, question=" "), "question is empty"),
    "no ids": (lambda d: first(d, ids=[]), "ids are not token ids below"),
    "ids beyond": (lambda d: first(d, ids=[10**9]), "ids are not token ids below"),
    "ids that are true": (lambda d: first(d, ids=[True]), "ids are not token ids below"),
    "another text": (lambda d: first(d, answer="Sure."), "text does not match its ids"),
    "too many ids": (lambda d: first(d, ids=[5] * 600), "answers have 6.. tokens; .* holds 512"),
    "an unguided second": (
        lambda d: d | {"exchanges": [d["exchanges"][0], d["exchanges"][1] | {"guided": False}]},
        "only a first answer can be left to the base",
    ),
}  # fmt: skip


def first(data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return data | {"exchanges": [data["exchanges"][0] | changes, *data["exchanges"][1:]]}


@pytest.mark.parametrize("case", SPOILT)
def test_spoilt_files(world: World, saved: Path, case: str) -> None:
    spoil, message = SPOILT[case]
    saved.write_text(json.dumps(spoil(json.loads(saved.read_text()))))
    refused(new_chat(world), saved, message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"), (b"\xff", "not valid UTF-8"), (b"[" * 10**5, "deep|JSON"),
        (b'{"minisafe_chat": 1, "turn": 1, "turn": 2}', "given twice"), (b"1", "not a saved"),
        (b" " * (5 << 20), "more than 4,194,304 bytes"),
    ],
    ids=["empty", "no text", "deep", "twice", "number", "huge"],
)  # fmt: skip
def test_files_that_are_none(world: World, tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(data)
    refused(new_chat(world), tmp_path / "x.json", message)


def test_no_file_and_a_directory(world: World, tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        refused(new_chat(world), path, "no such file; expected a conversation")


def test_saving_overwrites_saved_conversations_only(world: World, saved: Path) -> None:
    chat = new_chat(world)
    save_chat(chat, saved)
    assert json.loads(saved.read_text())["exchanges"] == []
    saved.write_text("my notes")
    with pytest.raises(PromptError, match="exists and is not a saved conversation"):
        save_chat(chat, saved)
    assert saved.read_text() == "my notes"


def test_nothing_is_loaded_into_a_running_answer(world: World, saved: Path) -> None:
    chat = new_chat(world)
    pieces = chat.send("Why?")
    next(pieces)
    with pytest.raises(BusyError):
        load_chat(chat, saved)
    pieces.close()
