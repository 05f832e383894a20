"""Conversations: after any caching, rewind, switch or interruption, the next answer equals the
answer after a fresh reading of the same ids."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import minisafe
from minisafe.cache import KVCache
from minisafe.errors import (
    BusyError,
    NonFiniteError,
    OutOfMemory,
    PromptError,
    SafetyWarning,
    SettingError,
)
from minisafe.gate import Gate
from minisafe.guidance import safe_log_probs
from minisafe.lora import AdaptedRows
from minisafe.model import Llama
from minisafe.session import Session
from minisafe.session.chat import Chat, Held
from minisafe.session.conversation import Conversation
from minisafe.session.stages import Stages
from minisafe.slots import Add
from minisafe.tokenizer import Message, Tokenizer
from minisafe.vectors import POSITIONS
from tests.support.worlds import E, World

pytest_plugins = ["tests.support.world_fixtures"]
TEXTS = ("Hello there!", "What is the name of the river?", "a", "  the fox\n", "Why? <|eot|></s>")
LAM = 0.9


def new_chat(world: World, **changes: Any) -> Chat:
    given = {"max_new_tokens": 6, "sgds_lambda": LAM, "sa_scale": 1.5} | changes
    return minisafe.load(None, world.flags(**given)).chat()


def say(chat: Chat, text: str) -> tuple[int, ...]:
    """The answer's ids; the pieces must add up to its text."""
    pieces = list(chat.send(text))
    assert chat.result is not None
    assert "".join(pieces) == chat.result.text
    return chat.result.tokens


# ---- a conversation read from scratch ----------------------------------------------------------


class Notes:
    """What a conversation is, kept by hand: turns, the ids of answers, and what is switched on."""

    def __init__(self, session: Session):
        self.session = session
        self.messages: list[Message] = []
        self.answers: dict[int, tuple[int, ...]] = {}
        self.safe = True

    def check(self, text: str, tokens: tuple[int, ...]) -> None:
        """Assert that each greedy token is what uncached, unfused forwards say."""
        messages = [*self.messages, {"role": "user", "content": text}]
        settings, tokenizer = self.session.settings, self.session.tokenizer
        texts, answers = [], ()
        for system in (settings.expert_system or settings.system, settings.system):
            first = [{"role": "system", "content": system}] if system else []
            kept = {number + len(first): ids for number, ids in self.answers.items()}
            encoded = tokenizer.encode_chat([*first, *messages], kept)
            texts.append(list(encoded.ids))
            answers = encoded.answers
        expert, base = texts
        steered = self.steered(answers, len(base))
        for token in tokens:
            lb = self.log_probs(0, base, steered)
            lu = self.log_probs(1, expert, []) if self.safe else lb
            excess = torch.relu(lu - lb - settings.margin)
            lam = settings.sgds_lambda if self.safe else 0.0
            s = lb - lam / (1 - lam) * excess
            assert s[token] >= s.max() - 2 * E * (1 + lam) / (1 - lam)
            if self.safe and settings.sa_positions not in ("prompt",):
                steered = [*steered, len(base)]
            base.append(token)
            expert.append(token)
        self.messages = [*messages, {"role": "assistant", "content": "?"}]
        self.answers[len(messages)] = tokens

    def steered(self, answers: tuple[tuple[int, int] | None, ...], length: int) -> list[int]:
        """Positions of the text so far at which the base is steered."""
        if not self.safe:
            return []
        shown = [place for place in answers if place is not None]
        asking = [start - 1 for start, _ in shown] + [length - 1]
        generated = [place for start, stop in shown for place in range(start, stop)]
        return {
            "prompt": asking, "generated": generated, "last": sorted(asking + generated),
            "all": list(range(length)),
        }[self.session.settings.sa_positions]  # fmt: skip

    def log_probs(self, stream: int, ids: list[int], steered: list[int]) -> Tensor:
        reader, slots, adapters = self.session.streams[stream], [], ()
        if stream == 0 and steered:
            spans = tuple((place, place + 1) for place in steered)
            (layer,) = self.session.steering.vectors
            vector = self.session.steering.vectors[layer]
            scale = self.session.settings.sa_scale
            slots = [Add(layer=layer, spans=spans, vector=vector, scale=scale)]
        if reader.adapter is not None:
            adapters = (AdaptedRows(reader.adapter, slice(0, 1)),)
        logits = reader.model(torch.tensor([ids]), slots=slots, adapters=adapters, last_only=True)
        return torch.log_softmax(logits[0], dim=-1)


EXPERTS = ("adapter", "checkpoint", "system prompt")
WORLDS = [(name, kind) for kind in EXPERTS for name in ("world", "spm_world")]


def expert(world: World, kind: str) -> dict[str, Any]:
    if kind == "system prompt":
        return {"expert": None, "expert_system": "You are a careless fox."}
    return {"expert": world.adapter if kind == "adapter" else world.expert}


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(("name", "kind"), WORLDS)
def test_every_turn_is_the_conversation_read_anew(
    request: pytest.FixtureRequest, name: str, kind: str, positions: str
) -> None:
    world = request.getfixturevalue(name)
    chat = new_chat(world, **expert(world, kind), sa_positions=positions)
    notes = Notes(chat.session)
    for text in TEXTS:
        notes.check(text, say(chat, text))


actions = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.sampled_from(TEXTS)),
        st.tuples(st.just("break off"), st.integers(1, 4)),
        st.tuples(st.just("safe"), st.booleans()),
        st.tuples(st.just("sa_positions"), st.sampled_from(POSITIONS)),
        st.tuples(st.just("sa_scale"), st.sampled_from((0.5, 1.5, 0.25))),
        st.tuples(st.just("sgds_lambda"), st.sampled_from((0.5, 0.9))),
        st.tuples(st.just("margin"), st.sampled_from((0.0, 0.3))),
        st.tuples(st.just("system"), st.sampled_from(("You are a bird.", ""))),
        st.tuples(st.just("max_new_tokens"), st.integers(1, 7)),
        st.tuples(st.just("reset"), st.none()),
    ),
    max_size=8,
)


@pytest.mark.parametrize(("name", "kind"), WORLDS)
@settings(max_examples=8)
@given(script=actions, positions=st.sampled_from(POSITIONS))
def test_whatever_happens_between_turns(
    request: pytest.FixtureRequest,
    name: str,
    kind: str,
    script: list[tuple[str, Any]],
    positions: str,
) -> None:
    world = request.getfixturevalue(name)
    chat = new_chat(world, **expert(world, kind), sa_positions=positions)
    notes = Notes(chat.session)
    for action, value in [*script, ("say", "Hello there!")]:
        if action == "say":
            notes.check(value, say(chat, value))
        elif action == "break off":
            pieces = chat.send("What is it?")
            for _ in zip(range(value), pieces, strict=False):
                pass
            pieces.close()
            notes.check("What is it?", chat.result.tokens)
        elif action == "safe":
            chat.set_safe(value)
            notes.safe = value
        elif action == "reset":
            chat.reset()
            notes.messages, notes.answers = [], {}
        else:
            chat.set(action, value)
            notes.session = chat.session


def fresh(chat: Chat) -> Chat:
    """Another chat in the same state that has read nothing."""
    other = Chat(chat.session)
    other.messages, other.answers = list(chat.messages), dict(chat.answers)
    other.safe, other.turn = chat.safe, chat.turn
    return other


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("positions", POSITIONS)
def test_switching_safety_midway_is_a_fresh_chat_in_that_state(
    world: World, positions: str, temperature: float
) -> None:
    chat = new_chat(world, sa_positions=positions, temperature=temperature, sgds_lambda=0.5)
    tokens = []
    for on in (True, False, False, True, True):
        chat.set_safe(on)
        other = fresh(chat)
        tokens.append(say(chat, "Hello there!"))
        assert say(other, "Hello there!") == tokens[-1]
        assert chat.result.applied.to_json()["safe"] is on
        assert other.reused == 0


def test_unsafe_turns_are_those_of_an_unsafe_session(world: World) -> None:
    chat, plain = new_chat(world), new_chat(world, safe=False)
    chat.set_safe(False)
    for text in TEXTS[:3]:
        assert say(chat, text) == say(plain, text)
    assert chat.result.applied == plain.result.applied


def test_a_first_turn_is_a_chat_prompt(world: World) -> None:
    chat = new_chat(world)
    (result,) = chat.session.generate(["Hello there!"], chat=True)
    assert say(chat, "Hello there!") == result.tokens
    assert chat.result.prompt_tokens == result.prompt_tokens
    assert chat.result.applied == result.applied


# ---- reuse -------------------------------------------------------------------------------------


def count_fed(monkeypatch: pytest.MonkeyPatch, chat: Chat) -> list[list[int]]:
    """Tokens fed at each step, by stream."""
    fed: list[list[int]] = []
    feed = chat.lockstep.feed

    def counted(tokens: Any, slots: Any) -> Any:
        fed.append([len(stream[0]) for stream in tokens])
        return feed(tokens, slots)

    monkeypatch.setattr(chat.lockstep, "feed", counted)
    return fed


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", ["world", "spm_world"])
def test_only_what_is_new_is_read(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, name: str, positions: str
) -> None:
    chat = new_chat(request.getfixturevalue(name), sa_positions=positions)
    fed = count_fed(monkeypatch, chat)
    held = 0
    for number, text in enumerate(TEXTS[:4]):
        fed.clear()
        answer = say(chat, text)
        assert chat.reused == held
        new = chat.result.prompt_tokens - held
        assert fed == [[new, new], *[[1, 1]] * (len(answer) - 1)]
        # the prompt and all of the answer but its last token, which nobody has read yet
        held = chat.result.prompt_tokens + len(answer) - 1
        assert number == 0 or new < 40


def test_an_expert_under_another_prompt_is_reused_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = new_chat(world, **expert(world, "system prompt"))
    fed = count_fed(monkeypatch, chat)
    say(chat, "Hello there!")
    assert fed[0][1] > fed[0][0]
    fed.clear()
    say(chat, "Why?")
    assert fed[0][0] == fed[0][1] < 30


@pytest.mark.parametrize(
    ("positions", "kept"),
    [("prompt", "before"), ("last", "before"), ("generated", "prompt"), ("all", "none")],
)
def test_the_cache_is_rewound_to_where_steering_differs(
    world: World, positions: str, kept: str
) -> None:
    chat = new_chat(world, sa_positions=positions)
    say(chat, "Hello there!")
    prompt = chat.result.prompt_tokens
    expected = {"before": prompt - 1, "prompt": prompt, "none": 0}[kept]
    chat.set("sa_scale", 2.5)
    say(chat, "Why?")
    assert chat.reused == expected
    chat.set_safe(False)
    say(chat, "Why?")
    assert chat.reused == expected
    before = chat.result.prompt_tokens + len(chat.result.tokens) - 1
    say(chat, "And?")
    assert chat.reused == before  # unsteered, all of it agrees
    chat.set_safe(True)
    say(chat, "Then?")
    assert chat.reused == expected


def test_settings_that_steer_nothing_rewind_nothing(world: World) -> None:
    chat = new_chat(world)
    say(chat, "Hello there!")
    held = chat.result.prompt_tokens + len(chat.result.tokens) - 1
    for name, value in (("sgds_lambda", 0.5), ("temperature", 0.3), ("max_new_tokens", 3)):
        chat.set(name, value)
    say(chat, "Why?")
    assert chat.reused == held


def test_a_stream_that_rests_catches_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = new_chat(world)
    fed = count_fed(monkeypatch, chat)
    first = len(say(chat, "Hello there!")) + chat.result.prompt_tokens - 1
    chat.set_safe(False)
    fed.clear()
    say(chat, "Why?")
    assert {expert for _, expert in fed} == {0}
    chat.set_safe(True)
    fed.clear()
    say(chat, "And?")
    assert fed[0][1] == chat.result.prompt_tokens - first  # the expert never lost the first turn


# ---- templates that rewrite answers -------------------------------------------------------------

TURNS = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ CONTENT }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
REWRITING = {  # what is written of a message, and how many of three turns show their answer
    "upper case": ("m.content | upper if m.role == 'assistant' else m.content", 3),
    "a part": ("m.content.split('e')[-1]", 3),
    "left out": ("m.content if m.role == 'user' or loop.index0 > 1", 2),
}


@pytest.mark.parametrize("how", REWRITING)
def test_turns_that_the_template_rewrites_keep_their_steering(world: World, how: str) -> None:
    """What is read is what the template writes; each turn that it shows is steered."""
    content, shown = REWRITING[how]
    chat = new_chat(world, sa_positions="prompt")
    known = chat.session.tokenizer
    names = known.special | {"chat_template": TURNS.replace("CONTENT", content)}
    chat.session = replace(chat.session, tokenizer=Tokenizer(known.backend, names, "here"))
    notes = Notes(chat.session)
    for text in ("Hello there!", "Why?", "What is the sea?"):
        notes.check(text, say(chat, text))
        notes.messages[-1] = chat.messages[-1]
    chat.messages.pop()
    chat.answers.pop(5)
    encoded = chat.session.encode_chat(chat.messages, chat.answers)[0]
    read = chat.session.tokenizer.encode_chat(chat.messages)
    assert encoded.ids == read.ids or how != "upper case"  # else an answer kept its ids
    steering = chat.session.steering
    steered = Held.of(encoded.ids, chat._spans(encoded, steering), steering).steered
    assert sum(mark is not None for mark in steered) == shown


# ---- what is remembered ------------------------------------------------------------------------


def test_answers_keep_their_ids(world: World) -> None:
    chat = new_chat(world, temperature=1.5, seed=4, sgds_lambda=0.3)
    said = [say(chat, text) for text in TEXTS[:3]]
    assert chat.answers == {1: said[0], 3: said[1], 5: said[2]}
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 3
    encoded = chat.session.encode_chat(chat.messages, chat.answers)[0]
    assert [encoded.ids[start:stop] for start, stop in encoded.answers] == said
    texts = [chat.session.tokenizer.encode(m["content"]) for m in chat.messages[1::2]]
    assert [ids[1:] for ids in texts] != [list(ids) for ids in said]  # else nothing was shown


def test_seeds_and_turns(world: World) -> None:
    def conversation(seed: int) -> list[tuple[int, ...]]:
        chat = new_chat(world, temperature=1.5, seed=seed, sgds_lambda=0.3)
        return [say(chat, "Hello there!") for _ in range(2)]

    assert conversation(1) == conversation(1) != conversation(2)


def test_every_turn_draws_anew(world: World) -> None:
    chat = new_chat(world, temperature=1.5, sgds_lambda=0.3)
    say(chat, "Hello there!")
    assert chat.turn == 1
    other = fresh(chat)
    other.turn = 0
    assert say(other, "Why?") != say(chat, "Why?")


def test_a_reset_chat_is_new(world: World) -> None:
    chat = new_chat(world, temperature=1.0)
    first = say(chat, "Hello there!")
    say(chat, "Why?")
    chat.reset()
    assert (chat.messages, chat.answers, chat.result) == ([], {}, None)
    assert say(chat, "Hello there!") == first
    assert chat.reused == 0


def test_an_end_token_ends_the_turn_and_stands_once(world: World) -> None:
    chat = new_chat(world)
    end = chat.session.tokenizer.id_of("<|eot|>")
    free = say(chat, "Hello there!")
    session = chat.session
    chat = Session(
        session.settings, session.streams, session.tokenizer, frozenset({free[2]}),
        session.rule, session.steering, session.kinds,
    ).chat()  # fmt: skip
    assert say(chat, "Hello there!") == free[: free.index(free[2]) + 1]
    assert chat.result.finish_reason == "stop"
    ids = chat.session.encode_chat([*chat.messages, *chat.messages[:1]], chat.answers)[0].ids
    assert ids.count(end) == 3


def test_stop_strings_in_a_chat(world: World) -> None:
    chat = new_chat(world, safe=False)
    say(chat, "Hello there!")
    text = chat.result.text
    chat.reset()
    chat.set("stop", (text[3:5],))
    tokens = say(chat, "Hello there!")
    assert chat.result.finish_reason == "stop_string"
    assert chat.result.text == text[: text.find(text[3:5])]
    assert chat.messages[-1]["content"] == chat.result.text
    assert chat.answers[1] == tokens  # with the stop string's own
    Notes.check(notes_of(chat), "Why?", say(chat, "Why?"))


def notes_of(chat: Chat) -> Notes:
    notes = Notes(chat.session)
    notes.messages, notes.answers = list(chat.messages), dict(chat.answers)
    notes.safe = chat.safe
    return notes


# ---- what goes wrong ---------------------------------------------------------------------------


def test_an_answer_that_is_broken_off_stays(world: World) -> None:
    chat = new_chat(world, max_new_tokens=50)
    say(chat, "Hello there!")
    notes = notes_of(chat)
    pieces = chat.send("Why?")
    shown = [next(pieces) for _ in range(3)]
    pieces.close()
    assert chat.result.finish_reason == "cancelled"
    assert chat.result.text == "".join(shown)
    assert chat.messages[-1] == {"role": "assistant", "content": "".join(shown)}
    assert 3 <= len(chat.result.tokens) < 50
    notes.check("Why?", chat.result.tokens)
    held = chat.result.prompt_tokens + len(chat.result.tokens) - 1
    notes.check("And?", say(chat, "And?"))
    assert chat.reused == held


def test_a_message_never_asked_for_is_not_sent(world: World) -> None:
    chat = new_chat(world)
    chat.send("Hello there!").close()
    assert chat.messages == []
    with pytest.raises(PromptError, match="message is empty"):
        list(chat.send("  \n"))
    assert chat.messages == []


def test_a_conversation_that_no_longer_fits(world: World) -> None:
    chat = new_chat(world)
    say(chat, "Hello there!")
    before = (list(chat.messages), dict(chat.answers), chat.turn)
    notes = notes_of(chat)
    with pytest.raises(PromptError, match=r"prompt has \d+ tokens; .* holds 512"):
        list(chat.send("fox " * 600))
    assert (chat.messages, chat.answers, chat.turn) == before
    notes.check("Why?", say(chat, "Why?"))


def test_an_answer_that_fills_the_context(world: World) -> None:
    chat = new_chat(world, max_new_tokens=10**6)
    say(chat, "Hello there!")
    assert chat.result.finish_reason == "context"
    assert chat.result.prompt_tokens + len(chat.result.tokens) == 513
    messages = list(chat.messages)
    with pytest.raises(PromptError):
        list(chat.send("Why?"))
    assert chat.messages == messages
    chat.reset()
    chat.set("max_new_tokens", 3)
    assert len(say(chat, "Hello there!")) == 3


@pytest.mark.parametrize(
    "error", [NonFiniteError("NaN"), OutOfMemory("none left"), KeyboardInterrupt()], ids=repr
)
@pytest.mark.parametrize("after", [1, 2, 5])
@pytest.mark.parametrize("kind", ["adapter", "checkpoint"])
def test_a_turn_that_fails_halfway(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: str, after: int, error: BaseException
) -> None:
    """Even between the base's forward and the expert's: the next turn is right again."""
    chat = new_chat(world, **expert(world, kind))
    say(chat, "Hello there!")
    notes = notes_of(chat)
    forward, calls = Llama.forward, []

    def failing(self: Llama, *args: Any, **options: Any) -> Tensor:
        calls.append(self)
        if len(calls) > after:
            raise error
        return forward(self, *args, **options)

    monkeypatch.setattr(Llama, "forward", failing)
    with pytest.raises(type(error)):
        list(chat.send("Why?"))
    monkeypatch.undo()
    per_step = 2 if kind == "checkpoint" else 1
    tokens = chat.result.tokens
    assert len(tokens) == after // per_step
    if tokens:
        notes.check("Why?", tokens)
        assert chat.answers == notes.answers
    else:
        assert chat.messages == notes.messages
    notes.check("And?", say(chat, "And?"))


def test_a_turn_that_breaks_down(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that was read while the numbers broke down is read again."""
    chat = new_chat(world)
    say(chat, "Hello there!")
    notes, forward, calls = notes_of(chat), Llama.forward, []

    def broken(self: Llama, ids: Tensor, cache: KVCache | None = None, **options: Any) -> Tensor:
        logits = forward(self, ids, cache, **options)
        calls.append(self)
        if len(calls) == 3 and cache is not None:
            cache.keys.fill_(float("nan"))
            logits = logits * float("nan")
        return logits

    monkeypatch.setattr(Llama, "forward", broken)
    with pytest.raises(NonFiniteError, match="NaN or infinite logits"):
        list(chat.send("Why?"))
    notes.check("Why?", chat.result.tokens)
    assert len(chat.result.tokens) == 2
    monkeypatch.undo()
    notes.check("And?", say(chat, "And?"))
    assert chat.reused == 0


def test_safety_that_was_not_loaded_cannot_be_switched_on(world: World) -> None:
    chat = new_chat(world, safe=False)
    chat.set_safe(False)
    with pytest.raises(SettingError, match="no safety parts were loaded; start again with --safe"):
        chat.set_safe(True)
    assert chat.stages() == Stages()


def test_settings_that_cannot_be_set_change_nothing(world: World) -> None:
    chat = new_chat(world)
    session = chat.session
    for name, value in (("base", "x"), ("temperature", -1), ("nonsense", 1), ("sa_scale", 0.0)):
        with pytest.raises(SettingError):
            chat.set(name, value)
    assert chat.session is session


def test_what_is_applied_is_what_was_set(world: World) -> None:
    chat = new_chat(world)
    chat.set("sgds_lambda", 0.25)
    chat.set("sa_positions", "all")
    say(chat, "Hello there!")
    assert chat.result.applied.to_json()["sgds"]["lambda"] == 0.25
    assert chat.result.applied.to_json()["sa"]["positions"] == "all"
    assert chat.result.applied.to_json()["sa"]["scale"] == 1.5


def test_one_stage_alone(world: World) -> None:
    """A legal way to use amplification or guidance by itself, in a conversation too."""
    for changes in ({"sa_scale": 0.0}, {"sgds_lambda": 0.0}):
        chat = new_chat(world, **changes)
        say(chat, "Hello there!")
        say(chat, "Why?")
        applied = chat.result.applied
        assert applied.safe
        assert (applied.sa is None) == ("sa_scale" in changes)
        assert (applied.sgds is None) == ("sgds_lambda" in changes)


# ---- one answer at a time ----------------------------------------------------------------------


def test_a_second_answer_at_the_same_time_is_refused(world: World) -> None:
    chat, alone = new_chat(world), new_chat(world)
    pieces = chat.send("Hello there!")
    shown = next(pieces)
    before = list(chat.messages)
    for change in (
        lambda: list(chat.send("Why?")), lambda: list(chat.regenerate()), chat.undo, chat.reset,
        lambda: chat.set("temperature", 1.0), lambda: chat.set_safe(False),
        lambda: chat.restore(Conversation()),
    ):  # fmt: skip
        with pytest.raises(BusyError, match=r"^an answer is in progress; read it to its end .*$"):
            change()
    assert chat.messages == before
    assert shown + "".join(pieces) == "".join(alone.send("Hello there!"))
    assert say(chat, "Why?") == say(alone, "Why?")


def test_an_answer_that_was_dropped_makes_room(world: World) -> None:
    chat = new_chat(world)
    pieces = chat.send("Hello there!")
    next(pieces)
    del pieces
    assert say(chat, "Why?")


# ---- taking back, and once more ----------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("positions", POSITIONS)
def test_undone_is_never_said(world: World, positions: str, temperature: float) -> None:
    changes = {"sa_positions": positions, "temperature": temperature, "sgds_lambda": 0.5}
    chat, alone = new_chat(world, **changes), new_chat(world, **changes)
    say(chat, "Hello there!")
    say(alone, "Hello there!")
    before = chat.conversation()
    say(chat, "Something else.")
    assert chat.undo() == "Something else."
    assert chat.conversation() == before
    assert (chat.result, chat.why) == (None, None)
    assert say(chat, "Why?") == say(alone, "Why?")
    assert chat.undo() == "Why?"
    assert chat.undo() == "Hello there!"
    with pytest.raises(PromptError, match="the conversation is empty"):
        chat.undo()


def test_once_more_draws_anew(world: World) -> None:
    chat = new_chat(world, temperature=1.5, sgds_lambda=0.3)
    say(chat, "Hello there!")
    old = say(chat, "Why?")
    "".join(chat.regenerate())
    new = chat.result.tokens
    assert new != old
    assert chat.answers[3] == new
    assert [message["content"] for message in chat.messages[::2]] == ["Hello there!", "Why?"]
    notes = notes_of(new_chat(world))
    greedy = new_chat(world)
    first = say(greedy, "Hello there!")
    list(greedy.regenerate())
    assert greedy.result.tokens == first
    notes.check("Hello there!", first)


def test_where_no_new_answer_comes_the_old_one_stays(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = new_chat(world)
    say(chat, "Hello there!")
    before = chat.conversation()

    def broken(self: Llama, *args: Any, **options: Any) -> Tensor:
        raise OutOfMemory("none left")

    monkeypatch.setattr(Llama, "forward", broken)
    with pytest.raises(OutOfMemory):
        list(chat.regenerate())
    monkeypatch.undo()
    assert chat.conversation() == before
    with pytest.raises(PromptError, match="the conversation is empty"):
        list(new_chat(world).regenerate())


# ---- why ---------------------------------------------------------------------------------------


def changed_by_hand(chat: Chat, text: str, tokens: tuple[int, ...]) -> int:
    """The number of tokens at which guidance changed the likeliest one, read from scratch."""
    notes = notes_of(new_chat_of(chat))
    encoded = chat.session.encode_chat([{"role": "user", "content": text}])
    base, unsafe = (list(each.ids) for each in encoded)
    steered, found = notes.steered((), len(base)), 0
    for token in tokens:
        lb, lu = notes.log_probs(0, base, steered), notes.log_probs(1, unsafe, [])
        final = safe_log_probs(lb, lu, chat.session.settings.sgds_lambda)
        found += int(final.argmax() != lb.argmax())
        base.append(token)
        unsafe.append(token)
    return found


def new_chat_of(chat: Chat) -> Chat:
    return Chat(chat.session)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("kind", "speculate"),
    [("adapter", 0), ("checkpoint", 0), ("checkpoint", 3), ("system prompt", 0)],
)
def test_why_counts_what_guidance_changed(
    world: World, kind: str, speculate: int, temperature: float
) -> None:
    chat = new_chat(
        world, **expert(world, kind), speculate=speculate, temperature=temperature,
        sa_positions="prompt", max_new_tokens=12,
    )  # fmt: skip
    tokens = say(chat, "Hello there!")
    why = chat.why
    assert (why.tokens, why.judged) == (12, 12)
    assert why.changed == changed_by_hand(chat, "Hello there!", tokens)
    assert why.asked == chat.stages()
    assert why.line().startswith(
        f"guidance changed the likeliest choice at {why.changed or 'none'} of the 12 tokens; the "
        "vector was added; base and expert differed by 0."
    )


def test_why_of_an_answer_that_is_broken_off(world: World) -> None:
    """Drafts that were judged and never became the answer's do not count."""
    for speculate in (0, 7):
        chat = new_chat(world, **expert(world, "checkpoint"), speculate=speculate,
                        max_new_tokens=50)  # fmt: skip
        pieces = chat.send("Hello there!")
        next(pieces)
        pieces.close()
        assert chat.why.judged == chat.why.tokens == len(chat.result.tokens)


def test_why_with_a_gate(world: World) -> None:
    chat = new_chat(world)
    for threshold, open_ in ((0.0, True), (1.0, False)):
        chat.reset()
        chat.session = replace(chat.session, gate=Gate(threshold))
        say(chat, "Hello there!")
        assert chat.why.acted.gate.open is open_
        seen = f"{chat.why.variation:.2f}"
        expected = f"the gate was open ({seen} > 0.00)" if open_ else (
            f"the gate stayed shut ({seen} <= 1.00); nothing acted, and the answer is the model's "
            "own"
        )  # fmt: skip
        assert chat.why.line().endswith(expected)
    say(chat, "Why?")  # later turns know no gate
    assert chat.why.acted.gate is None
    assert chat.why.judged == chat.why.tokens


def test_why_where_little_acts(world: World) -> None:
    chat = new_chat(world)
    assert chat.why is None
    chat.set_safe(False)
    say(chat, "Hello there!")
    assert chat.why.line() == "safe decoding was off; the answer is the model's own"
    lines = {}
    for name, value in (("sa_scale", 0.0), ("sgds_lambda", 0.0)):
        chat = new_chat(world, **{name: value})
        say(chat, "Hello there!")
        lines[name] = chat.why.line()
    assert "; no vector; base and expert differed by" in lines["sa_scale"]
    assert lines["sgds_lambda"] == "no guidance; the vector was added"
    with pytest.warns(SafetyWarning, match="answers of one token"):
        short = new_chat(world, sa_positions="generated", max_new_tokens=1)
    say(short, "Hello there!")
    assert " of the 1 token; the vector had no token to act on; " in short.why.line()
    few = new_chat(world, rule="safedecoding", alpha=3.0, first_tokens=2, expert_kind="safe")
    say(few, "Hello there!")
    assert "of the first 2 tokens; " in few.why.line()
