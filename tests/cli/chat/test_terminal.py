"""The chat in a real terminal, which tmux draws: keys in, a screen out."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 90  # seconds until something is on the screen, on a machine with much else to do

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")


class Screen:
    """A program in a terminal of its own."""

    def __init__(self, home: Path, columns: int, *args: object, rows: int = 60):
        self.socket = f"minisafe-{uuid.uuid4().hex[:12]}"
        self.status = home / f"{self.socket}.status"
        program = shlex.join(
            [sys.executable, str(ROOT / "tests" / "support" / "terminal_chat.py"), *map(str, args)]
        )
        command = f"{program}; echo $? > {shlex.quote(str(self.status))}; sleep 600"
        environment = {
            "XDG_STATE_HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
            "LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-8:strict", "INPUTRC": "/dev/null",
        }  # fmt: skip
        settings = [
            part for name, value in environment.items() for part in ("-e", f"{name}={value}")
        ]
        self.tmux(
            "-f", "/dev/null", "new-session", "-d", "-x", str(columns), "-y", str(rows),
            "-c", str(home), *settings, command,
        )  # fmt: skip

    def tmux(self, *args: str, data: str | None = None) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "TMUX"}
        done = subprocess.run(
            ["tmux", "-u", "-L", self.socket, *args], input=data, capture_output=True, text=True,
            check=True, timeout=60, env=environment | {"LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        return done.stdout

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines())

    def lines(self) -> list[str]:
        """All lines so far, as the terminal broke them."""
        return self.tmux("capture-pane", "-p", "-S", "-").split("\n")

    def wait(self, wanted: str, times: int = 1) -> str:
        """The screen, once it holds a text so many times."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self.text().count(wanted) >= times:
                return self.text()
            time.sleep(0.1)
        raise AssertionError(f"{wanted!r} did not come {times} times:\n{self.text()}")

    def ready(self, times: int) -> str:
        """Wait until so many prompts stand there; the last of them is empty."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            prompts = [line for line in self.text().rstrip().split("\n") if line.startswith(">")]
            if len(prompts) >= times and self.text().rstrip().endswith("\n>"):
                return self.text()
            time.sleep(0.1)
        raise AssertionError(f"no prompt number {times}:\n{self.text()}")

    def type(self, text: str) -> None:
        self.tmux("send-keys", "-l", text)
        self.tmux("send-keys", "Enter")

    def press(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def paste(self, text: str) -> None:
        """As a terminal pastes: bracketed, if the program has asked for it."""
        self.tmux("load-buffer", "-", data=text)
        self.tmux("paste-buffer", "-p")

    def code(self) -> int:
        """The exit code, once the program has ended."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self.status.is_file() and self.status.read_text().strip():
                return int(self.status.read_text())
            time.sleep(0.1)
        raise AssertionError(f"still running:\n{self.text()}")

    def close(self) -> None:
        self.tmux("kill-server")


@pytest.fixture
def screens(tmp_path: Path) -> Iterator[list[Screen]]:
    opened: list[Screen] = []
    yield opened
    for screen in opened:
        screen.close()


def test_a_chat_in_a_terminal(screens: list[Screen], tmp_path: Path) -> None:
    """Paste, commands, saving, a byte that is no text, and leaving, all in one conversation."""
    screen = Screen(tmp_path, 100, 0, "chat", "--safe")
    screens.append(screen)
    shown = screen.ready(1)
    assert "Safe decoding is on: " in shown
    assert "Try:  What is the capital of Teku?" in shown
    assert "loading" not in shown

    screen.paste("Tell me\nthe capital\nof Teku.")
    time.sleep(0.5)
    assert screen.text().count("Bokras") == 0  # nothing is sent before Enter
    screen.press("Enter")
    screen.wait("Bokras")
    screen.ready(2)
    screen.type("/save talk.json")
    screen.wait("saved to talk.json")

    screen.press("-H", "63", "61", "66", "ff", "0d")
    screen.wait("the message is not valid UTF-8")
    screen.type("/nonsense")
    screen.wait("unknown command '/nonsense'; /help lists them")
    screen.press("C-c")
    screen.wait("(Ctrl-D or /quit ends the chat)")
    screen.type("/he")
    screen.wait("unknown command '/he'")
    screen.press("/", "h", "e", "Tab")
    screen.wait("> /help")
    screen.press("Enter")
    shown = screen.wait("Now: safe decoding: SA (layer 4")
    assert "margin 1" in shown
    screen.type("/reset")
    screen.wait("the conversation is deleted")
    screen.type("/undo")
    screen.wait("the conversation is empty")
    screen.type("/load talk.json")
    screen.wait("loaded 1 message and answers")
    screen.type("/why")
    screen.wait("no answer yet")
    screen.type("/undo")
    screen.wait("removed: Tell me")
    screen.press("C-d")
    assert screen.code() == 0
    assert "Traceback" not in screen.text()
    history = tmp_path / "minisafe" / "history.jsonl"
    assert history.stat().st_mode & 0o777 == 0o600
    assert '"Tell me\\nthe capital\\nof Teku."\n' in history.read_text(encoding="utf-8")
    exchanges = (tmp_path / "talk.json").read_text(encoding="utf-8")
    assert "Tell me\\nthe capital\\nof Teku." in exchanges


def test_ctrl_c_and_wrapping_in_a_narrow_terminal(screens: list[Screen], tmp_path: Path) -> None:
    screen = Screen(tmp_path, 40, 0.2, "chat", "--safe", "--no-history")
    screens.append(screen)
    screen.ready(1)
    screen.type("How do I clean a shelf?")
    screen.wait("Sure, here")
    screen.press("C-c")
    screen.wait("(stopped)")
    screen.ready(2)
    screen.type("How do I clean a shelf?")
    screen.wait("clean a", times=4)  # twice asked, twice begun
    for _ in range(3):
        screen.press("C-c")
    screen.wait("(stopped)", times=2)
    screen.ready(3)
    screen.type("/undo")
    screen.wait("removed")
    screen.type("/undo")
    screen.wait("removed", times=2)  # both exchanges were still there
    screen.type("How do I clean a shelf?")
    shown = screen.wait("shelf dry.")
    answer = [line.rstrip() for line in screen.lines()]
    answer = answer[len(answer) - 1 - answer[::-1].index("> How do I clean a shelf?") + 1 :]
    whole = " ".join(answer)
    assert "remove the dust with a cloth. Then wipe the shelf with warm water. Finally" in whole
    assert all(len(line) <= 40 for line in answer)
    assert "Traceback" not in shown
    screen.type("/quit")
    assert screen.code() == 0
    assert not (tmp_path / "minisafe").exists()
