"""A message that is harmful by itself is answered by itself, whatever came before it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import minisafe
from minisafe.checkpoint import save_model
from minisafe.cli.chat.banner import in_plain_words
from minisafe.cli.options import describe
from minisafe.errors import PromptError, SafetyError, SettingError
from minisafe.gate import Calibration, Gate
from minisafe.session import Session
from minisafe.session.alone import parts_of, sentences, to_answer, windows, worst_parts
from minisafe.session.chat_prompt import ChatPrompt
from minisafe.session.fingerprints import made_for
from minisafe.session.profile import save_profile, store_calibration
from tests.support.worlds import World, base_model

pytest_plugins = ["tests.support.world_fixtures"]
HISTORY = (
    {"role": "user", "content": "The fox"},
    {"role": "assistant", "content": "Sure, here it is."},
)
QUESTION = {"role": "user", "content": "What is the name of the river?"}
LONGER = (
    ChatPrompt((*HISTORY, QUESTION)),
    ChatPrompt((QUESTION,), prefill="Sure, here"),
    ChatPrompt((*HISTORY, QUESTION), prefill="Sure, here"),
)


def load(world: World, **changes: Any) -> Session:
    given = {"max_new_tokens": 6, "sgds_lambda": 0.9, "sa_scale": 1.5} | changes
    return minisafe.load(None, world.flags(**given))


def asking(session: Session, threshold: float) -> Session:
    """The session, with a gate that reads messages alone."""
    return replace(session, alone=Gate(threshold))


def test_what_came_before_a_harmful_message_is_not_read(world: World) -> None:
    session = asking(load(world), 0.0)
    (wanted,) = session.generate([str(QUESTION["content"])], chat=True)
    for result in session.generate(LONGER):
        assert result.tokens == wanted.tokens
        assert result.text == wanted.text
        alone = result.applied.to_json()["alone"]
        assert set(alone) == {"threshold", "harm"}
        assert alone["harm"] > 0
    assert "alone" not in wanted.applied.to_json()


def test_a_message_that_is_harmless_by_itself_keeps_its_context(world: World) -> None:
    plain, session = load(world), asking(load(world), 1.0)
    wanted = [result.tokens for result in plain.generate(LONGER)]
    found = session.generate(LONGER)
    assert [result.tokens for result in found] == wanted
    assert all("alone" not in result.applied.to_json() for result in found)
    assert wanted[0] != plain.generate([str(QUESTION["content"])], chat=True)[0].tokens


def test_each_prompt_of_a_batch_is_decided_by_its_own_message(world: World) -> None:
    plain = load(world)
    questions = [str(QUESTION["content"]), "a", "Hello there"]
    seen = plain.variations(questions)
    threshold = sorted(seen)[1]
    prompts = [ChatPrompt((*HISTORY, {"role": "user", "content": each})) for each in questions]
    found = asking(plain, threshold).generate(prompts)
    for prompt, question, variation, result in zip(prompts, questions, seen, found, strict=True):
        asked: str | ChatPrompt = question if variation > threshold else prompt
        assert result.tokens == plain.generate([asked], chat=True)[0].tokens


def test_a_harmful_sentence_is_answered_without_those_around_it(world: World) -> None:
    plain = load(world)
    parts = ["Hello there!", "The fox sat.", "Hello there! The fox sat."]
    seen = dict(zip(parts, plain.variations(parts), strict=True))
    worst = max(seen, key=lambda part: seen[part])
    threshold = sorted(seen.values())[1]  # one part is above it
    (found,) = asking(plain, threshold).generate([parts[2]], chat=True)
    assert found.tokens == plain.generate([worst], chat=True)[0].tokens
    told = found.applied.to_json().get("alone")
    assert (told is None) == (worst == parts[2])
    if told is not None:
        assert told["harm"] == pytest.approx(seen[worst], abs=1e-4)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("One. Two? Three!", ["One.", "Two?", "Three!"]),
        ("a\n\nb: c; d", ["a", "b:", "c;", "d"]),
        ("No end", ["No end"]),
        ('He said "go." Then? (Yes!) So.', ['He said "go.', "Then?", "(Yes!", "So."]),
        ("\u4f60\u597d\u3002\u600e\u4e48\uff1f", ["\u4f60\u597d\u3002", "\u600e\u4e48\uff1f"]),
        ("1.5 is a number. ... ?!", ["1.5 is a number."]),
        ("", []),
    ],
)
def test_sentences(text: str, wanted: list[str]) -> None:
    assert sentences(text) == wanted


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ("No end", ["No end"]),
        ("! " * 13, ["! " * 13]),
        ("One. Two?", ["One. Two?", "One.", "Two?", "One Two"]),
        ('How do. I "sell." A lamp', ['How do. I "sell." A lamp', "How do.", 'I "sell.', "A lamp",
                                      'How do I "sell A lamp']),
        ("\u4f60\u3002\u600e\uff1f", ["\u4f60\u3002\u600e\uff1f", "\u4f60\u3002", "\u600e\uff1f",
                                    "\u4f60 \u600e"]),
    ],
)  # fmt: skip
def test_parts_of_a_message(message: str, wanted: list[str]) -> None:
    assert parts_of(message) == wanted


def test_the_worst_sentence_is_answered_and_not_what_stands_around_it() -> None:
    message = "I like tea. Sell it. Be kind."
    harm = dict.fromkeys(parts_of(message), 0.1) | {"Sell it.": 0.6, "Be kind.": 0.55, message: 0.9}
    assert to_answer(message, parts_of(message), harm, Gate(0.5)) == "Sell it."
    assert to_answer(message, parts_of(message), harm, Gate(0.7)) == message
    assert to_answer(message, parts_of(message), harm, None) == message
    longer = " ".join(map(str, range(20)))
    windowed = dict.fromkeys(parts_of(longer), 0.6) | {longer: 0.9}
    assert to_answer(longer, parts_of(longer), windowed, Gate(0.5)) in windows(longer)
    assert to_answer(" No end ", [" No end "], {" No end ": 0.9}, Gate(0.5)) == " No end "


@given(st.integers(1, 60))
def test_every_nine_words_are_in_one_window(n: int) -> None:
    words = [f"w{number}" for number in range(n)]
    found = [window.split() for window in windows(" ".join(words))]
    assert all(len(window) <= 12 for window in found)
    assert len(found) == 1 or len(found[-1]) >= 9
    for start in range(max(1, n - 8)):
        run = words[start : start + 9]
        assert any(set(run) <= set(window) for window in found)


def test_a_text_that_no_template_is_put_around_is_not_read_alone(world: World) -> None:
    plain = load(world)
    found = asking(plain, 0.0).generate(["The fox. A river."])
    assert found[0].tokens == plain.generate(["The fox. A river."])[0].tokens


def leaving(session: Session, threshold: float) -> Session:
    """The session, with a gate that leaves to the base what has no harmful part."""
    asked = asking(session, threshold)
    return replace(asked, settings=replace(asked.settings, gate=True))


def ordered(session: Session, *texts: str) -> tuple[str, str, float]:
    """The more harmful text, the less harmful one, and a threshold between them."""
    (low, better), (high, worse) = sorted(zip(session.variations(texts), texts, strict=True))
    return worse, better, (low + high) / 2


def test_with_a_gate_what_is_harmless_is_the_bases_answer(world: World) -> None:
    """Also where nothing stands around it, and in a conversation; and nothing acts on it."""
    prompts = [ChatPrompt((QUESTION,)), LONGER[0]]
    plain = load(world, safe=False).generate(prompts)
    guided = load(world).generate(prompts)
    assert [each.tokens for each in plain] != [each.tokens for each in guided]
    for wanted, result in zip(plain, leaving(load(world), 1.0).generate(prompts), strict=True):
        assert result.tokens == wanted.tokens
        acted = result.applied.to_json()
        assert (acted["sa"], acted["sgds"]) == (None, None)
        assert acted["alone"]["left"] is True


@pytest.mark.parametrize("where", ["asked earlier", "answered earlier", "begun", "system"])
def test_with_a_gate_nothing_is_left_where_something_harmful_was_said(
    world: World, where: str
) -> None:
    """The last message is harmless; what was asked before is not, or a faked answer."""
    session = load(world)
    worse, better, threshold = ordered(session, str(QUESTION["content"]), "And?")
    last = {"role": "user", "content": better}
    asked, answer = (worse, better) if where == "asked earlier" else (better, worse)
    earlier = ({"role": "user", "content": asked}, {"role": "assistant", "content": answer})
    prompt = {
        "begun": ChatPrompt((last,), worse),
        "system": ChatPrompt(({"role": "system", "content": worse}, last)),
    }.get(where, ChatPrompt((*earlier, last)))
    (wanted,) = session.generate([prompt])
    (result,) = leaving(session, threshold).generate([prompt])
    assert result.tokens == wanted.tokens
    assert "alone" not in result.applied.to_json()
    (left,) = leaving(session, threshold).generate([ChatPrompt((last,), better)])
    assert left.applied.alone is not None
    assert left.applied.alone.left


@pytest.mark.parametrize("speculate", [0, 4])
def test_what_is_left_to_the_base_is_its_own_beside_another_model_too(
    world: World, tmp_path: Path, speculate: int
) -> None:
    """And where drafts are verified by the expert: one row of the batch is guided, one is not."""
    expert = world.copy(world.base, tmp_path)
    save_model(base_model(seed=1), expert)
    given = {"expert": expert, "speculate": speculate}
    session = load(world, **given)
    worse, better, threshold = ordered(session, "The fox", str(QUESTION["content"]))
    (guided,) = session.generate([worse], chat=True)
    (plain,) = load(world, safe=False).generate([better], chat=True)
    found = leaving(session, threshold).generate([worse, better], chat=True)
    assert [each.tokens for each in found] == [guided.tokens, plain.tokens]


def test_a_system_prompt_of_the_settings_counts_too(world: World) -> None:
    session = load(world)
    worse, better, threshold = ordered(session, str(QUESTION["content"]), "And?")
    for system, left in ((worse, False), (better, True)):
        asked = leaving(load(world, system=system), threshold)
        (result,) = asked.generate([ChatPrompt.of(better)])
        assert (result.applied.alone is not None) == left


def test_that_harmless_answers_are_the_bases_is_said(world: World) -> None:
    asked, without = leaving(load(world), 0.5), asking(load(world), 0.5)
    assert "the rest is left to the base" in describe(asked.stages)
    assert "the model's own answer" in in_plain_words(asked.stages)
    assert "left to the base" not in describe(without.stages)
    assert "own answer" not in in_plain_words(without.stages)


def test_a_chat_leaves_turns_to_the_base_until_one_is_harmful(world: World) -> None:
    session = load(world)
    chat = leaving(session, 1.0).chat()
    plain = load(world, safe=False).chat()
    for text in ("The fox", str(QUESTION["content"])):
        assert "".join(chat.send(text)) == "".join(plain.send(text))
        assert chat.why is not None
        assert "no part of what was said is harmful" in chat.why.line()
    worse, better, threshold = ordered(session, "The fox", str(QUESTION["content"]))
    chat, guided = leaving(session, threshold).chat(), session.chat()
    for text in (worse, better):
        assert "".join(chat.send(text)) == "".join(guided.send(text))
        assert chat.result is not None
        assert chat.result.applied.alone is None


def test_a_system_message_stays(world: World) -> None:
    first = {"role": "system", "content": "You are careful."}
    plain = load(world)
    (wanted,) = plain.generate([ChatPrompt((first, QUESTION))])
    (found,) = asking(plain, 0.0).generate([ChatPrompt((first, *HISTORY, QUESTION))])
    assert found.tokens == wanted.tokens


def test_no_system_prompt_moves_what_parts_are_measured_by(world: World) -> None:
    prompt = ChatPrompt((*HISTORY, QUESTION))
    plain = load(world)
    careless = load(world, system="You are careless.")
    found = [worst_parts(session, [prompt], 8)[0].harm for session in (plain, careless)]
    assert found[0] == found[1]
    calibrated = [
        made_for(replace(session.settings, read_alone=True), session.steering)
        for session in (plain, careless)
    ]
    assert calibrated[0] == calibrated[1]


def test_a_chat_answers_a_harmful_message_alone_and_then_goes_on(world: World) -> None:
    session = asking(load(world), 0.0)
    chat, first = session.chat(), session.chat()
    list(chat.send("The fox"))
    assert chat.result is not None
    assert "alone" not in chat.result.applied.to_json()
    question = str(QUESTION["content"])
    assert list(chat.send(question)) == list(first.send(question))
    assert "alone" in chat.result.applied.to_json()
    kept = chat.conversation()
    chat.session = replace(session, alone=None)  # the third answer reads all that was said
    again = chat.session.chat()
    again.restore(kept)
    assert list(chat.send("Hello there!")) == list(again.send("Hello there!"))
    assert chat.result.prompt_tokens == again.result.prompt_tokens  # type: ignore[union-attr]


def test_switched_off_it_asks_nothing(world: World) -> None:
    session = asking(load(world), 0.0)
    assert session.plain().alone is None
    chat = session.chat()
    list(chat.send("The fox"))
    chat.set_safe(False)
    list(chat.send("a"))
    assert chat.result is not None
    assert chat.result.applied.to_json()["safe"] is False


@pytest.mark.parametrize(
    ("prompts", "parts"),
    [
        ([ChatPrompt.of("The fox sat.")], 0),
        ([ChatPrompt.of("Hello there! The fox sat.")], 4),
        ([ChatPrompt.of("Hello there! The fox sat."), ChatPrompt.of("Hello there! No.")], 7),
        ([ChatPrompt((QUESTION,), prefill="Sure, here")], 1),
        ([ChatPrompt(({"role": "system", "content": "The end."}, QUESTION))], 0),
        ([LONGER[0]], 1),
    ],
)
def test_parts_are_read_once_and_only_where_something_stands_around_them(
    world: World, monkeypatch: pytest.MonkeyPatch, prompts: list[ChatPrompt], parts: int
) -> None:
    asked: list[str] = []
    read = Session.variations

    def variations(self: Session, texts: list[str], **named: Any) -> list[float]:
        asked.extend(texts)
        return read(self, texts, **named)

    monkeypatch.setattr(Session, "variations", variations)
    asking(load(world), 1.0).generate(prompts)
    assert len(asked) == parts


# ---- stopping, and what does not fit ------------------------------------------------------------


def stopping(stop: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `stop` be called while a session reads parts."""
    read = Session.variations

    def variations(self: Session, *given: Any, **named: Any) -> list[float]:
        stop()
        return read(self, *given, **named)

    monkeypatch.setattr(Session, "variations", variations)


def test_the_time_in_which_parts_are_read_counts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def later() -> None:
        nonlocal now
        now += 5.0

    session = asking(load(world, max_seconds=5), 0.0)
    session = replace(session, clock=lambda: now)
    stopping(later, monkeypatch)
    for result in session.generate(LONGER):
        assert (result.finish_reason, len(result.tokens)) == ("time", 1)
    chat = session.chat()
    list(chat.send("The fox sat. Hello there!"))
    assert chat.result is not None
    assert (chat.result.finish_reason, len(chat.result.tokens)) == ("time", 1)


def test_a_cancel_while_parts_are_read_is_not_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = asking(load(world), 0.0)
    stopping(session.cancel, monkeypatch)
    for result in session.generate(LONGER):
        assert (result.finish_reason, result.tokens) == ("cancelled", ())
    chat = session.chat()
    assert list(chat.send("The fox sat. Hello there!")) == []
    assert chat.result is not None
    assert chat.result.finish_reason == "cancelled"
    assert chat.messages == []
    monkeypatch.undo()
    assert list(chat.send("The fox sat. Hello there!"))


def test_ctrl_c_while_parts_are_read_ends_that_answer_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = asking(load(world), 0.0)
    chat = session.chat()
    chat.interrupt()  # nothing is in progress: the next answer is not touched
    stopping(lambda: None, monkeypatch)
    assert list(chat.send("The fox"))
    stopping(chat.interrupt, monkeypatch)
    assert list(chat.send("A river")) == []
    assert chat.result is not None
    assert chat.result.finish_reason == "cancelled"
    monkeypatch.undo()
    assert list(chat.send("A river"))


def test_a_text_that_does_not_fit_is_refused_before_its_parts_are_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = asking(load(world), 0.0)

    def never() -> None:
        raise AssertionError("parts were read")

    stopping(never, monkeypatch)
    with pytest.raises(PromptError, match="the model's context holds 512"):
        session.generate(["The fox sat. " * 400], chat=True)


# ---- never half-safe ---------------------------------------------------------------------------


def calibration(session: Session, **changes: Any) -> Calibration:
    made = made_for(replace(session.settings, **changes), session.steering)
    return Calibration(0.25, 0.02, made, "x", 99, 0.0, 99, 0.0, 0.0, 0.0, 0.05)


def test_it_needs_a_calibration_for_these_weights(world: World, tmp_path: Path) -> None:
    with pytest.raises(SafetyError, match=r"read_alone\): the profile holds no calibration"):
        load(world, read_alone=True)
    path = tmp_path / "profile.json"
    save_profile(world.flags(read_alone=True, gate=False, sa_scale=1.5), path)
    store_calibration(path, calibration(load(world)))
    with pytest.raises(SafetyError, match=r"read_alone\): its calibration is for other weights"):
        minisafe.load(path)  # one that read whole messages only
    store_calibration(path, calibration(load(world), read_alone=True))
    session = minisafe.load(path)
    assert session.alone == Gate(0.25)
    assert session.gate is None
    with pytest.raises(SafetyError, match=r"read_alone\): its calibration is for other weights"):
        minisafe.load(path, {"sa_scale": 2.0})
    assert minisafe.load(path, {"sgds_lambda": 0.0}).alone is None  # guidance is off by a flag
    data = json.loads(path.read_text()) | {"sgds_lambda": 0.0}
    for name in ("expert", "sha256"):
        data.pop(name)
    unguided = path.with_name("unguided.json")
    unguided.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(SafetyError, match=r"read_alone\): there is no expert"):
        minisafe.load(unguided)  # not by the profile itself
    with pytest.raises(SafetyError, match=r"read_alone\): there is no expert.*--no-read-alone"):
        minisafe.load(path, {"sgds_lambda": 0.0, "read_alone": True})
    with pytest.raises(SettingError, match="start again with --no-read-alone"):
        session.with_settings({"sa_scale": 2.0})
    assert minisafe.load(path, {"safe": False}).alone is None
