"""Text in, text out: what a loaded session answers, and that its parts add up."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import minisafe
from minisafe.checkpoint import load_adapter, load_model, save_model
from minisafe.checkpoint.adapter import merge_adapter
from minisafe.errors import PromptError, SettingError
from minisafe.evaluation.likelihood.scoring import encode_pair, score_pairs
from minisafe.guidance import Plain
from minisafe.model import Llama
from minisafe.session.answer import Result
from minisafe.session.session import Session
from minisafe.tokenizer import TextStream
from minisafe.vectors import Steering
from tests.support.templates import BYTE, chat
from tests.support.worlds import World, published, slow_log_probs, tokenizer, write_tokenizer

pytest_plugins = ["tests.support.world_fixtures"]
PROMPTS = ["The fox", "What is the name of the river?", "a", "Once there was a small fox who"]


def load(world: World, **changes: Any) -> Session:
    return minisafe.load(None, world.flags(**{"max_new_tokens": 12} | changes))


def text_of(session: Session, result: Result, prompt: str | None) -> str:
    """What the tokens say after the prompt, decoded all at once; None: in a chat."""
    backend, control = session.tokenizer.backend, session.tokenizer.control_ids
    ids = [id_ for id_ in result.tokens if id_ not in control]
    before = [] if prompt is None else [
        id_ for id_ in session.tokenizer.encode(prompt) if id_ not in control
    ]  # fmt: skip
    whole = backend.decode([*before, *ids], skip_special_tokens=False)
    return whole[len(backend.decode(before, skip_special_tokens=False)) :]


@pytest.mark.parametrize("kind", ["world", "spm_world"])
@pytest.mark.parametrize("in_chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("safe", [False, True], ids=["unsafe", "safe"])
def test_streamed_pieces_joined_are_the_text(
    request: pytest.FixtureRequest, kind: str, in_chat: bool, safe: bool
) -> None:
    session = load(request.getfixturevalue(kind), safe=safe)
    results = session.generate(PROMPTS, chat=in_chat)
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert result.text == text_of(session, result, None if in_chat else prompt)
    pieces = list(session.stream(PROMPTS[0], chat=in_chat))
    assert "".join(pieces) == results[0].text
    assert all(pieces)


def test_what_a_result_holds(world: World) -> None:
    session = load(world)
    (result,) = session.generate(["The fox"], chat=True)
    assert result.prompt_tokens == len(session.tokenizer.encode_chat(chat("The fox")).ids)
    assert len(result.tokens) == 12
    assert result.finish_reason == "length"
    assert 0 < result.timings_ms["prefill"] <= result.timings_ms["total"]
    assert result.applied.to_json() == {
        "safe": True,
        "sa": {
            "vector": str(world.vector), "layers": [1], "scale": 1.25, "positions": "last"
        },
        "sgds": {
            "expert": "adapter", "from": str(world.adapter), "lambda": 0.99, "margin": 0.0
        },
    }  # fmt: skip
    plain = load(world, safe=False).generate(["The fox"])[0]
    assert plain.applied.to_json() == {"safe": False, "sa": None, "sgds": None}
    found = json.loads(json.dumps(result.to_json()))
    assert list(found) == [
        "prompt_tokens", "tokens", "text", "finish_reason", "applied", "timings_ms"
    ]  # fmt: skip
    assert found["tokens"] == list(result.tokens)


@pytest.mark.parametrize("expert", ["adapter", "checkpoint", "system prompt"])
@pytest.mark.parametrize("positions", ["prompt", "last", "generated", "all"])
def test_the_answer_is_the_slow_reference(world: World, expert: str, positions: str) -> None:
    """From a message to tokens: read from scratch for every token, with merged weights."""
    parts: dict[str, Any] = {"expert": world.adapter if expert == "adapter" else world.expert}
    if expert == "system prompt":
        parts = {"expert": None, "expert_system": "You are careless."}
    session = load(world, **parts, sa_positions=positions, sgds_lambda=0.9, sa_scale=2.0)
    (result,) = session.generate(["The fox"], chat=True)
    assert result.applied.to_json()["sgds"]["expert"] == expert
    base = list(session.tokenizer.encode_chat(chat("The fox")).ids)
    other = base[:]
    if expert == "system prompt":
        messages = chat("The fox", system="You are careless.")
        other = list(session.tokenizer.encode_chat(messages).ids)
    n = len(base)
    spans = {
        "prompt": ((n - 1, n),), "last": ((n - 1, None),), "generated": ((n, None),),
        "all": ((0, None),),
    }[positions]  # fmt: skip
    vector = minisafe.load_vector(world.vector).layers[1]
    steering = Steering({1: vector}, 2.0, positions)
    for token in result.tokens[:8]:
        lb = slow_log_probs(session.streams[0], base, steering, spans)
        lu = slow_log_probs(session.streams[1], other)
        s = published(lb, lu, 0.9)
        assert s[token] >= s.max() - 19 * 2e-4
        base.append(token)
        other.append(token)


def test_every_part_of_the_safety_matters(world: World) -> None:
    def tokens(**changes: Any) -> tuple[int, ...]:
        found = load(world, temperature=1.0, **changes).generate(PROMPTS, chat=True)
        return tuple(id_ for result in found for id_ in result.tokens)

    texts = [
        tokens(), tokens(safe=False), tokens(sa_scale=0.0), tokens(sgds_lambda=0.0),
        tokens(sa_scale=4.0), tokens(sgds_lambda=0.3), tokens(sa_layer=0), tokens(margin=3.0),
        tokens(sa_positions="prompt"), tokens(expert=world.expert),
        tokens(expert=None, expert_system="You are careless."),
    ]  # fmt: skip
    assert len(set(texts)) == len(texts)


# ---- batches and seeds -------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_a_prompt_answers_alike_alone_and_in_any_batch(world: World, temperature: float) -> None:
    """At temperature 0 wherever it stands; sampling, by its number in the list."""
    session = load(world, temperature=temperature, seed=3, sgds_lambda=0.5)
    every = [session.generate(PROMPTS, batch_size=size) for size in (1, 2, 3, 8)]
    for results in every[1:]:
        assert [r.tokens for r in results] == [r.tokens for r in every[0]]
        assert [r.prompt_tokens for r in results] == [r.prompt_tokens for r in every[0]]
    (first,) = session.generate(PROMPTS[:1])
    assert first.tokens == every[0][0].tokens
    if temperature == 0:
        assert session.generate(PROMPTS[2:3])[0].tokens == every[0][2].tokens


def test_seeds(world: World) -> None:
    def tokens(seed: int, temperature: float = 1.5) -> tuple[int, ...]:
        session = load(world, seed=seed, temperature=temperature)
        return session.generate(["The fox"])[0].tokens

    assert tokens(1) == tokens(1) != tokens(2)
    assert tokens(1, 0.0) == tokens(2, 0.0)


def test_equal_prompts_sample_differently(world: World) -> None:
    session = load(world, temperature=1.5, safe=False)
    results = session.generate(["The fox"] * 3)
    assert len({result.tokens for result in results}) == 3


def test_run_tells_whose_each_piece_is(world: World) -> None:
    session = load(world)
    texts: dict[int, str] = dict.fromkeys(range(4), "")
    done: dict[int, Result] = {}
    for number, piece in session.run(PROMPTS, batch_size=3):
        assert number not in done
        if isinstance(piece, Result):
            done[number] = piece
        else:
            texts[number] += piece
    assert {number: result.text for number, result in done.items()} == texts
    assert session.generate([]) == []


def test_the_first_blank_of_an_answer(spm_world: World) -> None:
    """Running text keeps it; a message begins without it."""
    session = load(spm_world, safe=False, max_new_tokens=3)
    word = session.tokenizer.id_of("▁a")

    class Always(Plain):
        def __call__(self, log_probs: tuple[Tensor, ...]) -> Tensor:
            return torch.nn.functional.one_hot(torch.tensor([word]), session.n_ids).float()

    session = Session(
        session.settings, session.streams, session.tokenizer, session.eos, Always(), None,
        session.kinds,
    )  # fmt: skip
    assert session.generate(["Once"])[0].text == " a a a"
    assert list(session.stream("Once")) == [" a"] * 3
    assert session.generate(["Once"], chat=True)[0].text == "a a a"


# ---- ends --------------------------------------------------------------------------------------


def test_an_edit_is_merged_into_the_base(world: World) -> None:
    ids = torch.tensor([[5, 9, 2, 31]])
    before, after = (load(world, safe=False, edit=edit).model for edit in (None, world.adapter))
    merged = load_model(world.base)
    merge_adapter(merged, load_adapter(world.adapter, merged))
    with torch.inference_mode():
        torch.testing.assert_close(after(ids), merged(ids), atol=1e-4, rtol=0)
        assert (after(ids) - before(ids)).abs().max() > 0.1


@pytest.fixture(scope="module")
def plain(world: World) -> Session:
    return load(world, safe=False, max_new_tokens=40)


def with_eos(session: Session, *ids: int) -> Session:
    return Session(
        session.settings, session.streams, session.tokenizer, frozenset(ids), session.rule,
        session.steering, session.kinds,
    )  # fmt: skip


def test_an_end_token_is_no_text(plain: Session) -> None:
    (free,) = plain.generate(["The fox"])
    end = free.tokens[9]
    (result,) = with_eos(plain, end, 0).generate(["The fox"])
    n = free.tokens.index(end)
    assert result.tokens == free.tokens[: n + 1]
    assert result.finish_reason == "stop"
    assert result.text == text_of(plain, Result(0, free.tokens[:n], "", "", {}, {}), "The fox")


def test_the_context_ends_an_answer(world: World, plain: Session) -> None:
    long = plain.with_settings({"max_new_tokens": 10**9})
    (result,) = long.generate(["The fox"])
    assert result.finish_reason == "context"
    assert result.prompt_tokens + len(result.tokens) == 512 + 1


@given(st.integers(0, 60), st.integers(1, 6), st.integers(0, 60), st.integers(1, 6))
def test_stop_strings_end_an_answer_and_are_not_shown(
    plain: Session, start: int, length: int, other: int, size: int
) -> None:
    """Stop strings cut from the answer's own text, and what follows in the batch untouched."""
    free = plain.generate(PROMPTS[:2])
    text = free[0].text
    stops = tuple({text[start : start + length] or text[0], text[other : other + size] or text[1]})
    session = plain.with_settings({"stop": stops})
    results = session.generate(PROMPTS[:2])
    for result, unstopped in zip(results, free, strict=True):
        assert unstopped.text.startswith(result.text)
        assert not any(stop in result.text for stop in stops)
        assert unstopped.tokens[: len(result.tokens)] == result.tokens
        if result.finish_reason == "stop_string":
            assert any(unstopped.text.startswith(stop, len(result.text)) for stop in stops)
        else:
            assert result.text == unstopped.text
    assert results[0].finish_reason == "stop_string"
    assert "".join(session.stream(PROMPTS[0])) == results[0].text


# ---- what cannot be answered -------------------------------------------------------------------


def test_prompts_that_cannot_be_answered(world: World) -> None:
    session = load(world)
    for in_chat in (False, True):
        with pytest.raises(PromptError, match="prompt is empty"):
            session.generate(["fine", ""], chat=in_chat)
        with pytest.raises(PromptError, match=r"the prompt has \d+ tokens; .* holds 512"):
            session.generate(["fine", "fox " * 600], chat=in_chat)
    with pytest.raises(PromptError, match="expected a list of texts"):
        session.generate("a")  # would be read as its characters
    with pytest.raises(SettingError, match="batch_size is 0"):
        session.generate(["a"], batch_size=0)


def test_nothing_is_answered_if_one_prompt_cannot_be(world: World) -> None:
    session = load(world)
    with pytest.raises(PromptError):
        next(session.run(["fine", ""], batch_size=1))


def test_an_expert_by_system_prompt_needs_a_chat(world: World) -> None:
    session = load(world, expert=None, expert_system="You are careless.")
    with pytest.raises(PromptError, match="needs the chat template; use --chat"):
        session.generate(["The fox"])
    assert session.generate(["The fox"], chat=True)[0].finish_reason == "length"


def test_a_model_without_a_chat_template(world: World, tmp_path: Path) -> None:
    base = world.copy(world.base, tmp_path)
    write_tokenizer(base, "byte_level", BYTE)
    session = load(world, base=base)
    assert session.generate(["The fox"])
    with pytest.raises(minisafe.MinisafeError, match="no chat template; use a plain prompt"):
        session.generate(["The fox"], chat=True)


def test_weights_that_break_down_stop_the_answer(world: World, tmp_path: Path) -> None:
    """Finite weights, not finite sums: half the range of float16 is soon left."""
    session = load(world, safe=False)
    broken = Llama(session.model.config)
    broken.load_state_dict(session.model.state_dict())
    with torch.no_grad():
        broken.layers[2].mlp.down_proj.weight.fill_(3e38)
    save_model(broken, tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "b" / name).write_bytes((world.base / name).read_bytes())
    with pytest.raises(minisafe.MinisafeError, match="NaN or infinite logits"):
        load(world, base=tmp_path / "b", safe=False).generate(["The fox"])
    loud = load(world, base=tmp_path / "b", expert=None, vector=None)
    with pytest.raises(minisafe.MinisafeError, match="NaN or infinite logits"):
        "".join(loud.stream("The fox"))


def test_a_session_is_not_changed_by_what_it_answers(world: World) -> None:
    session = load(world)
    first = session.generate(PROMPTS, chat=True)
    list(session.stream("something else"))
    next(session.stream("and broken off"))
    assert [r.tokens for r in session.generate(PROMPTS, chat=True)] == [r.tokens for r in first]


# ---- a real model ------------------------------------------------------------------------------


def test_a_story(story: Path) -> None:
    """A checkpoint that somebody else trained tells a story."""
    session = minisafe.load(None, {"base": story, "max_new_tokens": 60})
    (result,) = session.generate(["Once upon a time"])
    assert result.text.startswith((",", " "))
    words = result.text.split()
    assert len(words) > 25
    common = {"the", "a", "to", "and", "was", "she", "he", "her", "in", "with", "named", "little"}
    assert len(common & set(words)) >= 4
    assert "\ufffd" not in result.text


def test_the_context_of_an_answer_keeps_its_first_blank() -> None:
    known = tokenizer("llama2")
    ids = known.encode("Once upon")
    stream = TextStream(known, ids)
    blank = known.id_of("▁a")
    assert stream.push(blank) == " a"


# ---- a cache in a smaller dtype ----------------------------------------------------------------


def test_a_smaller_cache_is_everywhere_and_answers_alike(world: World) -> None:
    """Batch or alone, drafted or not, cached or read from scratch: the same tokens.
    They hold what int8 makes of keys and values, so the answers are other ones than without."""
    given = {"cache_dtype": "int8", "sgds_lambda": 0.5}
    session = load(world, **given)
    assert all(group.cache.stored == torch.int8 for group in session.new_lockstep(2, 8).groups)
    results = session.generate(PROMPTS, chat=True)
    alone = [session.generate([prompt], chat=True)[0].tokens for prompt in PROMPTS]
    assert [each.tokens for each in results] == alone
    drafted, stepped = (
        load(world, expert=world.expert, speculate=n, **given).generate(PROMPTS) for n in (5, 0)
    )
    assert [each.tokens for each in drafted] == [each.tokens for each in stepped]
    assert drafted[0].applied.to_json()["speculation"]["drafted"] > 0
    chat = session.chat()
    said = ["".join(chat.send(text)) for text in ("Hello there!", "Why?")]
    assert chat.reused > 0
    again = session.chat()
    again.messages, again.answers = chat.messages[:2], {1: chat.answers[1]}
    assert "".join(again.send("Why?")) == said[1]
    assert again.reused == 0
    assert all(group.cache.stored == torch.int8 for group in chat.lockstep.groups)


def test_a_smaller_cache_rounds_what_is_scored(world: World) -> None:
    """Scoring reads through a cache of its own making, which must be of the same kind."""
    found, exact = (
        score_pairs(session, [encode_pair(session, "The fox", " sat down")])[0]
        for session in (load(world, cache_dtype="int8"), load(world))
    )
    assert found.total != exact.total
    assert found.total == pytest.approx(exact.total, abs=0.5)


# ---- ended from outside ------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["generate", "chat"])
def test_any_thread_may_cancel(world: World, where: str) -> None:
    """While tokens are drawn elsewhere, and once: the next answer is given as ever."""
    session = load(world, safe=True, max_new_tokens=400)
    seen = threading.Event()
    found: list[Result] = []

    def answer() -> None:
        if where == "chat":
            chat = session.chat()
            for _ in chat.send("Hello there!"):
                seen.set()
            found.append(chat.result)
            return
        for _, piece in session.run(["Hello there!", "The fox"], chat=True):
            seen.set()
            if isinstance(piece, Result):
                found.append(piece)

    thread = threading.Thread(target=answer)
    thread.start()
    assert seen.wait(60)
    session.cancel()
    thread.join(60)
    assert not thread.is_alive()
    assert {each.finish_reason for each in found} == {"cancelled"}
    assert len(found) == (1 if where == "chat" else 2)
    assert all(len(each.tokens) < 400 for each in found)
    (result,) = session.with_settings({"max_new_tokens": 4}).generate(["Hello there!"], chat=True)
    assert len(result.tokens) == 4


class Clock:
    """Stands still until it is set."""

    now = 50.0

    def __call__(self) -> float:
        return self.now


def timed(world: World, **changes: Any) -> tuple[Session, Clock]:
    """A session whose answers may take ten seconds by a clock that a test sets."""
    clock = Clock()
    return replace(load(world, max_seconds=10, **changes), clock=clock), clock


def test_a_time_budget_ends_an_answer_at_the_next_token(world: World) -> None:
    session, clock = timed(world)
    (whole,) = session.generate(["The fox"])
    assert whole.finish_reason == "length"
    results = []
    for _, piece in session.run(["The fox"]):
        if isinstance(piece, Result):
            results.append(piece)
        else:
            clock.now = 60.0
    assert results[0].finish_reason == "time"
    assert 1 < len(results[0].tokens) < 12
    assert results[0].tokens == whole.tokens[: len(results[0].tokens)]
    assert whole.text.startswith(results[0].text)
    assert session.generate(["The fox"])[0].tokens == whole.tokens  # the next one has its own


def test_each_batch_has_its_own_time(world: World) -> None:
    """Reading a batch's parts alone is in its time, and in no other batch's."""
    session, clock = timed(world)
    ended = []
    for number, piece in session.run(PROMPTS, batch_size=2):
        if isinstance(piece, Result):
            ended.append((number, piece.finish_reason))
        elif number < 2:
            clock.now = 60.0
    assert sorted(ended) == [(0, "time"), (1, "time"), (2, "length"), (3, "length")]


def test_a_chat_goes_on_after_an_answer_that_took_too_long(world: World) -> None:
    session, clock = timed(world)
    chat = session.chat()
    pieces = chat.send("Hello there!")
    said = [next(pieces)]
    clock.now = 60.0
    said += pieces
    assert chat.result is not None
    assert chat.result.finish_reason == "time"
    assert chat.messages[-1]["content"] == "".join(said)
    list(chat.send("The fox"))
    assert chat.result.finish_reason == "length"
    chat.set("max_seconds", None)
    assert chat.session.new_deadline() is None


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan")])
def test_a_time_budget_is_a_finite_number_above_0(world: World, value: float) -> None:
    with pytest.raises(SettingError, match=r"max_seconds is .*; expected a finite number above 0"):
        load(world, max_seconds=value)


def test_a_session_is_closed_at_its_end(world: World) -> None:
    with load(world, max_new_tokens=40) as session:
        chat = session.chat()
        pieces = chat.send("Hello there!")
        next(pieces)
        assert session.generate(["The fox"])[0].text
    with pytest.raises(SettingError, match="the session is closed"):
        session.generate(["The fox"])
    with pytest.raises(SettingError, match="the session is closed"):
        session.with_settings({"seed": 1}).generate(["The fox"])
    list(pieces)
    assert chat.result.finish_reason == "cancelled"
    with pytest.raises(SettingError, match="the session is closed"):
        list(chat.send("Hello?"))
