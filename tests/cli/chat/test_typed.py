"""What is typed, pasted or piped into a chat, its history and its Tab completion."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisafe.cli.chat import keyboard as keyboards
from minisafe.cli.chat.banner import banner, in_plain_words
from minisafe.cli.chat.commands import COMMANDS, complete
from minisafe.cli.chat.history import MOST, History, default_path
from minisafe.cli.chat.keyboard import Keyboard
from minisafe.cli.chat.typed import LIMIT, message, piped
from minisafe.errors import ConfigError, PromptError
from minisafe.session.about import About, read_about
from minisafe.session.profile import default_profile
from minisafe.session.settings import SETTABLE
from minisafe.session.stages import Amplification, OtherRule, SafetyGuidance, Stages

FOX = "the fox\nand\nthe hen"


def reader(*lines: str) -> Callable[[str], str]:
    rest = iter(lines)

    def read(prompt: str) -> str:
        try:
            return next(rest)
        except StopIteration:
            raise EOFError from None

    return read


def spoken(*lines: str, joins: bool = True) -> list[str]:
    read, found = reader(*lines), []
    while True:
        try:
            found.append(message(read, joins))
        except EOFError:
            return found


# ---- messages ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["a", "b"], ["a", "b"]),
        ([FOX, "b"], [FOX, "b"]),  # a paste
        (['"""the fox', "and", 'the hen"""', "b"], [FOX, "b"]),
        (['"""', "the fox", "and", "the hen", '"""  ', "b"], [FOX, "b"]),
        (['"""one"""'], ["one"]),
        (["the fox\\", "and\\", "the hen", "b"], [FOX, "b"]),
        (["a\\ ", "b"], ["a\\ ", "b"]),
        (["/save a\\", "b"], ["/save a\\", "b"]),
    ],
)
def test_several_lines_are_one_message(lines: list[str], expected: list[str]) -> None:
    assert spoken(*lines) == expected


def test_a_backslash_joins_only_where_one_types() -> None:
    assert spoken("a\\", "b", joins=False) == ["a\\", "b"]


def test_a_block_without_an_end() -> None:
    with pytest.raises(PromptError, match="the block has no end"):
        spoken('"""a', "b")


@given(st.lists(st.text("ab \\\"'/\n"), max_size=6))
def test_any_lines_are_messages_or_refused(lines: list[str]) -> None:
    with suppress(PromptError):
        spoken(*lines)


@pytest.mark.parametrize(
    "lines", [["x" * (LIMIT + 1)], ["é" * (LIMIT // 2 + 1)], ['"""', *["x" * 1000] * 1100, '"""'],
              ["x" * 600_000 + "\\", "x" * 600_000]], ids=["line", "bytes", "block", "joined"],
)  # fmt: skip
def test_a_message_that_is_too_long(lines: list[str]) -> None:
    with pytest.raises(PromptError, match=r"longer than 1,048,576 bytes; expected a shorter one"):
        spoken(*lines)
    assert spoken("x" * LIMIT) == ["x" * LIMIT]


def test_half_a_character_is_no_text() -> None:
    with pytest.raises(PromptError, match="not valid UTF-8"):
        spoken("caf\udcff")


class Endless(io.RawIOBase):
    """A line that hardly ends, and how much of it was read."""

    given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.given > 16 * LIMIT:
            return 0
        self.given += len(buffer)
        buffer[:] = b"x" * len(buffer)
        return len(buffer)


def test_an_endless_line_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Endless()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(source), "utf-8"))
    with pytest.raises(PromptError, match="standard input, line 1: longer than 1,048,576 bytes"):
        next(piped())
    assert source.given < 2 * LIMIT


# ---- keyboard ----------------------------------------------------------------------------------


class Readline:
    """Stands in for Python's readline."""

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc
        self.bound: list[str] = []
        self.history: list[str] = []
        self.line = ""

    def parse_and_bind(self, text: str) -> None:
        self.bound.append(text)

    def set_completer(self, complete: Callable[[str, int], str | None]) -> None:
        self.completer = complete

    def get_line_buffer(self) -> str:
        return self.line

    def get_endidx(self) -> int:
        return len(self.line)

    def add_history(self, text: str) -> None:
        self.history.append(text)

    def set_completer_delims(self, text: str) -> None: ...
    def set_auto_history(self, on: bool) -> None: ...


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Keyboard]:
    """`typed(lines, doc)`: a keyboard with such a readline, or none, and lines that wait."""

    def make(lines: list[Any], doc: str | None, history: History | None = None) -> Keyboard:
        rest = iter(lines)
        left = [len(lines)]

        def ask(prompt: str = "") -> str:
            left[0] -= 1
            line = next(rest)
            if isinstance(line, BaseException):
                raise line
            return str(line)

        readline = None if doc is None else Readline(doc)
        monkeypatch.setattr("builtins.input", ask)
        monkeypatch.setattr(keyboards, "find_readline", lambda: readline)
        monkeypatch.setattr(keyboards, "more_waits", lambda: left[0] > 1)
        return Keyboard(history or History(None), complete)

    return make


def test_gnu_readline_knows_pastes(typed: Callable[..., Keyboard]) -> None:
    keyboard = typed(["one\ntwo", "three"], "GNU readline")
    assert "set enable-bracketed-paste on" in keyboard.readline.bound
    assert [keyboard("> "), keyboard("> ")] == ["one\ntwo", "three"]


@pytest.mark.parametrize("doc", [None, "libedit"])
def test_elsewhere_lines_that_wait_are_a_paste(typed: Callable[..., Keyboard], doc: Any) -> None:
    assert typed(["one", "two", "three"], doc)("> ") == "one\ntwo\nthree"
    assert typed(["one", "two", ""], doc)("> ") == "one\ntwo"
    assert typed(["one"], doc)("> ") == "one"


def test_bytes_that_are_no_text(typed: Callable[..., Keyboard]) -> None:
    keyboard = typed([UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "fine"], "GNU readline")
    with pytest.raises(PromptError, match="not valid UTF-8, so it was not sent"):
        keyboard("> ")
    assert keyboard("> ") == "fine"


def test_tab(typed: Callable[..., Keyboard]) -> None:
    keyboard = typed([], "GNU readline")
    keyboard.readline.line = "/s"
    found = [keyboard.readline.completer("/s", n) for n in range(5)]
    assert found == ["/set ", "/safe ", "/system ", "/save ", None]


def test_what_tab_completes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "talk.json").touch()
    (tmp_path / "talks").mkdir()
    monkeypatch.chdir(tmp_path)
    assert complete("/h") == ["/help"]
    assert complete("/set te") == ["temperature"]
    assert complete("/set sgds-") == ["sgds_lambda"]
    assert complete("/set ") == list(SETTABLE)
    assert complete("/set temperature 0") == []
    assert complete("/safe o") == ["on", "off"]
    assert complete("/load ta") == ["talk.json", "talks/"]
    assert complete("Hello") == complete("/why ") == []
    assert [name.rstrip() for name in complete("/")] == list(COMMANDS)


# ---- history -----------------------------------------------------------------------------------


def test_history_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "history.jsonl"
    history = History(path)
    for text in ("one", FOX, FOX, "", " ", "é日", "x" * 20_000):
        history.add(text)
    assert History(path).messages == ["one", FOX, "é日"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_history_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text("".join(json.dumps(str(n)) + "\n" for n in range(3 * MOST)))
    assert History(path).messages == [str(n) for n in range(2 * MOST, 3 * MOST)]
    assert len(path.read_text().splitlines()) == MOST


def test_history_that_is_spoilt(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'\xff\xfe\n[1]\n1\n"ok"\n"\\ud800"\n' + b"[" * 100_000 + b'\n{"a": 1}\n""\n')
    assert History(path).messages == ["ok", ""]


def test_a_home_that_cannot_be_written_does_not_hurt(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for path in (tmp_path / "file" / "history.jsonl", tmp_path / "link", tmp_path, None):
        history = History(path)
        history.add("one")
        assert history.messages == ["one"]
    assert not (tmp_path / "target").exists()  # no link is followed


def test_where_history_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "minisafe" / "history.jsonl"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path() == tmp_path / ".local" / "state" / "minisafe" / "history.jsonl"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert default_path() is None


def test_the_keyboard_remembers(typed: Callable[..., Keyboard], tmp_path: Path) -> None:
    keyboard = typed([], "GNU readline", History(tmp_path / "h"))
    keyboard.remember(FOX)
    again = typed([], "GNU readline", History(tmp_path / "h"))
    assert keyboard.readline.history == again.readline.history == [FOX]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_lines_that_wait(monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]) -> None:
    monkeypatch.setattr(sys, "stdin", os.fdopen(os.dup(pipe[0])))
    assert not keyboards.more_waits()
    os.write(pipe[1], b"x\n")
    assert keyboards.more_waits()
    monkeypatch.setattr(sys, "stdin", io.StringIO("x\n"))  # has no file number
    assert not keyboards.more_waits()


# ---- what a chat says first --------------------------------------------------------------------

SA = Amplification("v", (1,), 1.0, "prompt")
RULE = SafetyGuidance("adapter", "e", 0.99, 0.0)


def test_plain_words() -> None:
    off = "Safe decoding is off: nothing changes the model's answers."
    assert in_plain_words(Stages()) == off
    assert in_plain_words(Stages(True, SA, RULE)) == (
        "Safe decoding is on: it avoids words that an unsafe version of the model would choose, "
        "and a vector steers the model towards safe answers."
    )
    assert " and the model" not in in_plain_words(Stages(True, None, RULE))
    other = OtherRule("rose", {}, ("system prompt",))
    assert "a second model" in in_plain_words(Stages(True, rule=other))
    assert "TOWARDS HARM" in in_plain_words(Stages(True, replace(SA, reversed=True)))


def test_a_banner() -> None:
    about = About("It knows foxes.", ("One?", "Two?", "Three?", "Four?"))
    assert banner(Stages(), about).splitlines()[1:] == [
        "It knows foxes.", "Try:  One?", "      Two?", "      Three?",
        "/help lists commands; Ctrl-C ends an answer, Ctrl-D the chat.",
    ]  # fmt: skip
    assert len(banner(Stages(), About()).splitlines()) == 2


def test_the_shipped_profile_says_what_it_knows() -> None:
    about = read_about(default_profile())
    assert about == read_about(default_profile().parent)
    assert "nothing real" in about.knows
    assert len(about.questions) == 3
    assert About.from_json(about.to_json(), "x") == about


def test_about_may_be_a_text_and_nothing_else() -> None:
    assert About.from_json("free text", "x") == About("free text")
    assert About.from_json(None, "x") == About()
    for bad in (1, [], {"knows": 1}, {"try": "x"}, {"try": [1]}, {"more": 1}):
        with pytest.raises(ConfigError, match="about is malformed"):
            About.from_json(bad, "p.json")
