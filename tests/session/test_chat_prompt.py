"""Conversations as prompts: read as a chat reads them, and answers that have begun."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import minisafe
from minisafe import ChatPrompt
from minisafe.errors import PromptError
from minisafe.gate import Gate
from minisafe.session.session import Session
from tests.cli.test_cli import Run, run  # noqa: F401

QUESTION = "How do I clean a shelf?"
GIVEN = {"temperature": 0.0, "max_new_tokens": 96, "read_alone": False, "dtype": "float32"}


def load(**changes: Any) -> Session:
    return minisafe.load(overrides=GIVEN | changes)


def user(*contents: str) -> tuple[dict[str, str], ...]:
    """Contents by turns, the user's first."""
    roles = ("user", "assistant")
    return tuple({"role": roles[n % 2], "content": each} for n, each in enumerate(contents))


def test_one_message_is_the_text_in_a_chat() -> None:
    session = load()
    texts = [QUESTION, "Teach me to clean a cup."]
    expected = session.generate(texts, chat=True)
    found = session.generate([ChatPrompt.of(text) for text in texts])
    assert [each.tokens for each in found] == [each.tokens for each in expected]


@pytest.mark.parametrize("positions", ["prompt", "last", "generated"])
def test_a_conversation_is_answered_as_a_chat_answers_it(positions: str) -> None:
    """Steering of earlier turns included: with a strong vector another span would show."""
    session = load(sa_positions=positions, sa_scale=1.0)
    chat = session.chat()
    for text in (QUESTION, "Teach me to clean a cup."):
        list(chat.send(text))
    prompt = ChatPrompt((*chat.messages, {"role": "user", "content": "And a plate?"}))
    list(chat.send("And a plate?"))
    assert chat.result is not None
    (found,) = session.generate([prompt])
    assert found.tokens == chat.result.tokens
    assert found.prompt_tokens == chat.result.prompt_tokens


@pytest.mark.parametrize("positions", ["prompt", "last", "generated"])
@pytest.mark.parametrize("n", [1, 3, 10])
def test_a_prefill_goes_on_as_the_answer_did(positions: str, n: int) -> None:
    session = load(sa_positions=positions, sa_scale=1.0)
    (whole,) = session.generate([QUESTION], chat=True)
    begun = session.tokenizer.decode(whole.tokens[:n])
    (rest,) = session.generate([ChatPrompt(user(QUESTION), begun)])
    assert rest.tokens == whole.tokens[n : n + len(rest.tokens)]
    assert begun + rest.text == whole.text
    assert rest.prompt_tokens > len(whole.tokens[:n])


def test_a_gate_is_for_one_message_alone() -> None:
    """What it was calibrated on: no history, no beginning of the answer."""
    session = replace(load(), gate=Gate(0.5))
    prompts = [
        ChatPrompt.of(QUESTION), ChatPrompt(user(QUESTION), "Sure,"),
        ChatPrompt(user(QUESTION, "Yes.", QUESTION)),
    ]  # fmt: skip
    looked = [each.applied.gate is not None for each in session.generate(prompts)]
    assert looked == [True, False, False]


def test_control_tokens_in_a_prefill_stay_text() -> None:
    session = load()
    token = next(iter(session.tokenizer.control))
    encoded = session.encode_prompt(ChatPrompt(user(QUESTION), f"Sure {token}"), chat=True)
    plain = session.encode_prompt(ChatPrompt(user(QUESTION)), chat=True)
    begun = encoded.ids[0][len(plain.ids[0]) :]
    assert begun
    assert not set(begun) & session.tokenizer.control_ids


def test_a_system_message_is_the_bases() -> None:
    session = load(safe=False)
    system = "You are careful and refuse what could do harm."
    prompt = ChatPrompt(({"role": "system", "content": system}, *user(QUESTION)))
    (found,) = session.generate([prompt])
    (expected,) = load(safe=False, system=system).generate([QUESTION], chat=True)
    assert found.tokens == expected.tokens
    with pytest.raises(PromptError, match="has a system message, and so have the settings"):
        load(safe=False, system=system).generate([prompt])


BAD: list[tuple[Any, str]] = [
    ([], "the conversation is empty"),
    (["Hello"], "a message is not as expected; give role and content"),
    ([{"role": "user"}], "a message is not as expected"),
    ([{"role": "user", "content": 3}], "message 0 is int; expected text"),
    ([{"role": "user", "content": " "}], "message 0 is empty; expected some text"),
    ([{"role": "tool", "content": "x"}], "message 0 has the role 'tool'; expected one of"),
    (list(user("a", "b")), "the conversation's roles are user, assistant; expected user and"),
    ([*user("a"), *user("b")], "roles are user, user"),
    ({"messages": list(user("a")), "prefill": 3}, "the prefill is int; expected text"),
    ({"prompt": "a"}, "no conversation; expected"),
    (3, "no conversation; expected"),
]


@pytest.mark.parametrize(("value", "message"), BAD)
def test_what_waits_for_no_answer_is_refused(
    value: Any,
    message: str,
    tmp_path: Path,
    run: Run,  # noqa: F811
) -> None:
    with pytest.raises(PromptError, match=f"^here: .*{message}"):
        ChatPrompt.from_json(value, "here")
    path = tmp_path / "talk.json"
    path.write_text(json.dumps(value))
    done = run("generate", "--messages", path)
    assert done.code == 2
    assert message in done.err


def test_conversations_from_files(tmp_path: Path, run: Run) -> None:  # noqa: F811
    one, many = tmp_path / "talk.json", tmp_path / "talks.jsonl"
    prompts = [
        ChatPrompt.of(QUESTION), ChatPrompt(user(QUESTION, "Yes.", "And a cup?"), "Take"),
    ]  # fmt: skip
    one.write_text(json.dumps(prompts[1].to_json()))
    many.write_text("".join(json.dumps(each.to_json()) + "\n" for each in prompts))
    expected = [each.text for each in load().generate(prompts)]
    flags = [
        "--temperature",
        "0",
        "--max-new-tokens",
        "96",
        "--no-read-alone",
        "--dtype",
        "float32",
    ]
    done = run("generate", "--messages", one, *flags)
    assert done.code == 0
    assert expected[1] in done.out
    done = run("generate", "--messages", many, "--json", *flags)
    lines = [json.loads(line) for line in done.out.splitlines() if line.startswith("{")]
    assert [line["text"] for line in lines] == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--prefill", "Sure,", "Hello"), "--prefill needs --chat"),
        (("--messages", "x.json", "--chat"), "give --messages alone"),
        (("--messages", "x.json", "Hello"), "give --messages alone"),
    ],
)
def test_wrong_use(flags: tuple[str, ...], message: str, run: Run) -> None:  # noqa: F811
    done = run("generate", *flags)
    assert done.code == 2
    assert message in done.err


def test_a_prefill_on_the_command_line(run: Run) -> None:  # noqa: F811
    flags = ["--chat", "--temperature", "0", "--max-new-tokens", "9", "--prefill", "Sure,"]
    done = run("generate", *flags, "--json", QUESTION)
    expected = load(max_new_tokens=9, gate=None).generate([ChatPrompt(user(QUESTION), "Sure,")])
    found = [json.loads(line) for line in done.out.splitlines() if line.startswith("{")]
    assert [each["text"] for each in found] == [expected[0].text]
