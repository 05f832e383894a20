"""The chat command, piped and as though at a terminal: what each command says and does."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minisafe.cli.chat.commands import COMMANDS
from minisafe.errors import NonFiniteError
from minisafe.files.display import harmless
from minisafe.session.chat import Chat
from minisafe.session.saved import load_chat
from minisafe.session.settings import SETTABLE
from minisafe.tokenizer import TextStream
from tests.cli.test_cli import Outcome, Run, api, flags, run, talk  # noqa: F401 (run is a fixture)
from tests.support.worlds import World, write_json

pytest_plugins = ["tests.support.world_fixtures"]
Typed = Callable[..., Outcome]


@pytest.fixture
def typed(
    run: Run,  # noqa: F811
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Typed:
    """`typed("Hello!", KeyboardInterrupt(), "/help")`: at a terminal, one line after another."""

    def call(*lines: str | BaseException, args: tuple[object, ...] = (), **changes: Any) -> Outcome:
        rest = iter(lines)
        monkeypatch.chdir(tmp_path)

        def asked(prompt: str = "") -> str:
            line = next(rest, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", asked)
        monkeypatch.setattr("minisafe.cli.chat.keyboard.more_waits", lambda: False)
        return run("chat", *flags(world, **changes), *args, terminal=True)

    return call


def answers(world: World, *said: str, **changes: Any) -> list[str]:
    chat = api(world, **changes).chat()
    return [harmless("".join(chat.send(text))) for text in said]


def test_help_names_every_command_and_setting(typed: Typed) -> None:
    found = typed(
        "/set margin 0.25", "/set system A bird.", "/help", "/set", "/set margin", "/quit"
    )
    assert found.code == 0
    for name in (*COMMANDS, *SETTABLE, "margin 0.25", "system 'A bird.'", "lambda 0.99"):
        assert name in found.err
    assert "\nmargin is 0.25: Nats by which the expert may prefer a token.\n" in found.err
    assert found.err.count("stop none") == 2


def test_none_takes_a_setting_away(typed: Typed) -> None:
    found = typed("/system A bird.", "/system", "/system none", "/set stop x", "/set stop none",
                  "/set speculate 2", "/set speculate none")  # fmt: skip
    told = [line for line in found.err.splitlines() if " is " in line and ":" not in line]
    assert told == [
        "system is 'A bird.'", "system is 'A bird.'", "system is none", "stop is 'x'",
        "stop is none", "speculate is 2", "speculate is none",
    ]  # fmt: skip


def test_a_banner_in_plain_words(typed: Typed, run: Run, world: World) -> None:  # noqa: F811
    assert typed().err.startswith("Safe decoding is on: it avoids words")
    assert "Try:" not in typed().err  # another base than the profile's, so nothing is said of it
    assert typed(safe=False).err.startswith("Safe decoding is off")
    profile = json.loads(world.profile.read_text()) | {"about": {"knows": "Foxes.", "try": ["A?"]}}
    path = write_json(world.root / "about.json", profile)
    found = run("chat", "--profile", path, terminal=True)
    assert "\nFoxes.\nTry:  A?\n" in found.err


def test_errors_at_a_terminal_go_on(
    typed: Typed, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every failure is one line, and the conversation stays."""
    push, send, sent = TextStream.push, Chat.send, []

    def counted(self: Chat, text: str) -> Any:
        sent.append(0)
        return send(self, text)

    def failing(self: TextStream, id_: int) -> str:
        sent[-1] += 1
        if len(sent) == 2 and sent[-1] == 2:
            raise NonFiniteError("NaN")
        if len(sent) == 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nmore")
        return push(self, id_)

    monkeypatch.setattr(Chat, "send", counted)
    monkeypatch.setattr(TextStream, "push", failing)
    found = typed(
        "Hello there!", "Why?", "Why?", "/nonsense", "/set temperature hot", "/save", "/load none",
        "x" * (1 << 20) + "x", "caf\udcff", UnicodeDecodeError("utf-8", b"\xff", 0, 1, ""),
        KeyboardInterrupt(), "/undo", "/undo", "/undo", "Hello there!",
    )  # fmt: skip
    monkeypatch.undo()
    assert found.code == 0
    assert len(found.errors) == 9
    assert "Traceback" not in found.err
    assert found.err.count("removed: ") == 3  # the answers had begun
    assert found.out.endswith(answers(world, "Hello there!")[0] + "\n")


def test_ctrl_c_never_leaves_a_terminal(
    typed: Typed, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it comes, wherever in an answer: the next turn is the conversation's."""
    push, seen = TextStream.push, []

    def interrupted(self: TextStream, id_: int) -> str:
        seen.append(id_)
        for _ in range(4 if len(seen) == 3 else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return push(self, id_)

    monkeypatch.setattr(TextStream, "push", interrupted)
    found = typed("Hello there!", "/save talk.json", "Why?", args=("--json",))
    assert found.code == 0
    broken, whole = found.objects
    assert (broken["finish_reason"], len(broken["tokens"])) == ("cancelled", 3)
    assert whole["finish_reason"] == "length"
    assert "(stopped)\n" in found.err
    chat = api(world).chat()
    load_chat(chat, "talk.json")
    list(chat.send("Why?"))
    assert list(chat.result.tokens) == whole["tokens"]


def test_commands_of_a_conversation(typed: Typed, world: World, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    found = typed("/why", "Hello there!", f"/save {path}", "/why", "Why?", "/undo", "/regen",
                  "/reset", f"/load {path}", "Why?", args=("--json",))  # fmt: skip
    said = [each["tokens"] for each in found.objects]
    assert said[0] == said[2]  # greedy
    assert said[1] == said[3]
    told = found.err.splitlines()[2:]
    assert told[0] == "no answer yet"
    assert told[1] == f"saved to {path}"
    assert told[2].startswith("guidance changed the likeliest choice at ")
    assert told[3] == "removed: Why?"
    assert told[4].startswith("(temperature is 0, so the answer is the same")
    assert told[5:7] == ["the conversation is deleted", "loaded 1 message and answers"]
    assert told[7] == "> Hello there!"


def test_a_paste_and_a_message_with_a_slash(typed: Typed, world: World) -> None:
    found = typed("/help\nis no command here", " /nor this")
    assert found.errors == []
    assert found.out == "".join(
        f"{each}\n" for each in answers(world, "/help\nis no command here", " /nor this")
    )


def test_history_and_the_flag_that_turns_it_off(typed: Typed, tmp_path: Path) -> None:
    path = tmp_path / "state" / "minisafe" / "history.jsonl"
    typed("Hello there!", args=("--no-history",))
    assert not path.exists()
    typed("Hello there!", "/why")
    assert path.read_text().splitlines() == ['"Hello there!"', '"/why"']


def test_piped_input_leaves_no_history(run: Run, world: World, tmp_path: Path) -> None:  # noqa: F811
    talk(run, world, "Hello there!")
    assert not (tmp_path / "state").exists()


def test_a_piped_line_that_is_too_long(run: Run, world: World) -> None:  # noqa: F811
    found = talk(run, world, "Why?", "x" * (10 << 20), "Why?", json=True)
    assert (found.code, len(found.objects)) == (2, 1)
    assert found.errors == [
        "minisafe: standard input, line 2: longer than 1,048,576 bytes; expected a shorter message"
    ]


def test_a_piped_block_is_one_message(run: Run, world: World) -> None:  # noqa: F811
    found = talk(run, world, '"""the fox', 'and the hen"""', "a\\", "b")
    expected = answers(world, "the fox\nand the hen", "a\\", "b")
    assert found.out == "".join(f"{each}\n" for each in expected)


def test_nothing_that_a_file_or_a_user_names_commands_the_terminal(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the file is saved
    found = typed("/load \x1b[2Jx", "/save \x1b]0;x\x07/y", "/\x1b[2J", "Hello\x1b[2J", "/undo",
                  "/system \x1b[2J", "/set stop \u202e", "/set \x9b1m 2")  # fmt: skip
    assert found.code == 0
    assert not set("\x1b\x9b\u202e\x07") & set(found.err + found.out)
