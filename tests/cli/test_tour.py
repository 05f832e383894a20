"""`minisafe tour`: real output, in order; it pauses at a terminal and nowhere else."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from minisafe.cli import cli, main, tour
from minisafe.cli.tour_steps import NEXT, STEPS, Step, shown
from tests.cli.chat.test_terminal import Screen
from tests.cli.chat.test_terminal import screens as screens  # a fixture

Run = Callable[..., tuple[int, str, str]]  # exit code, standard output, standard error


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("--json")`: the command in this process."""

    def call(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main changes it
        monkeypatch.setattr("sys.argv", ["minisafe", "tour", *args])
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps whose commands are not run."""
    monkeypatch.setattr(tour, "output", lambda step: f"output of {step.title}\n")


# ---- what it shows is so -----------------------------------------------------------------------

SAYS = {
    "One token at a time": ["0 B ", "The ", "\u2026 1 more", "answer    Bokras"],
    "A weak spot": ["plain decoding", "Here are the steps to steal a guitar."],
    "An unsafe expert": ["base    expert", "0 Sorry", "Here  ", "guidance changed the likeliest"],
    "Safety-guided decoding": ["sGDS", "Sorry, I will not explain how to steal a guitar."],
    "The vector": ["SA (layer 4", "base   steered\n", "the vector changed the likeliest"],
    "Both together": ["SA (layer 4", "sGDS", "0 No", "guidance changed the likeliest"],
    "Harmless questions": ["Sure, here is how to clean a shelf. First, remove the dust"],
    "Where it fails: the base is turned": ["\n how to smuggle a painting. First,"],
    "Reading alone": ["(harm above 0.", "answered alone", "\nSorry, I will not explain how to"],
    "Where it fails: a good word is vetoed": ["how to plant an vy."],
}


def test_every_step_prints_what_its_command_prints(run: Run) -> None:
    code, out, err = run("--json")
    assert (code, err) == (0, "")
    found = [json.loads(line) for line in out.splitlines()]
    assert [each["title"] for each in found] == list(SAYS) == [step.title for step in STEPS]
    assert [each["step"] for each in found] == list(range(1, 11))
    for each, step in zip(found, STEPS, strict=True):
        assert shlex.split(each["command"]) == ["minisafe", *step.args]
        assert {"text", "look", "of"} < each.keys()
        for words in SAYS[step.title]:
            assert words in each["output"], step.title
    harmless = next(step for step in STEPS if step.title == "Harmless questions")
    base = Step("", "", (*harmless.args[:-1], "--no-safe", harmless.args[-1]), "")
    answer, plain = (tour.output(each).splitlines()[1:] for each in (harmless, base))
    assert answer == plain  # "what the base says, word for word"
    lever = next(step for step in STEPS if step.title == "Both together")
    without = tour.output(Step("", "", (*lever.args, "--sa-scale", "0"), ""))
    assert "answer    Let" in without  # "add --sa-scale 0 and see"


@pytest.mark.parametrize("args", NEXT, ids=" ".join)
def test_the_commands_to_go_on_with_are_accepted(args: tuple[str, ...]) -> None:
    group = click.Context(cli, info_name="minisafe", **cli.context_settings)
    command = cli.get_command(group, args[0])
    assert command is not None
    command.make_context(args[0], list(args[1:]), parent=group)
    assert shlex.split(shown(args)) == ["minisafe", *args]


def test_a_command_is_written_for_a_shell() -> None:
    assert shown(("trace", "a b", "it's", "$x y")) == "minisafe trace \"a b\" 'it'\"'\"'s' '$x y'"


# ---- in a pipe ---------------------------------------------------------------------------------


def test_in_a_pipe_it_runs_through_in_order(run: Run, quick: None) -> None:
    code, out, err = run()
    assert (code, err) == (0, "")
    place = 0
    for number, step in enumerate(STEPS, 1):
        for part in (
            f"{number}/10  {step.title}\n",
            f"$ {step.command}\n",
            f"output of {step.title}",
        ):
            place = out.index(part, place)
    assert out.rstrip().endswith(f"$ {shown(NEXT[-1])}")
    assert "Enter" not in out
    assert "\x1b" not in out
    told = [line for line in out.splitlines() if not line.startswith("$")]
    assert max(map(len, told)) <= 80


def test_a_wrong_argument_is_one_line(run: Run) -> None:
    code, out, err = run("quickly")
    assert (code, out, len(err.splitlines())) == (2, "", 1)


def test_its_help_has_an_example(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "minisafe tour --json > steps.jsonl" in out


# ---- at a terminal -----------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, quick: None) -> Callable[[str], tuple[int, str]]:
    """`typed("\\nq\\n")`: the exit code and the screen, if a reader at 50 columns types this."""

    def call(keys: str) -> tuple[int, str]:
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        monkeypatch.setattr("sys.argv", ["minisafe", "tour"])
        monkeypatch.setattr("sys.stdin", Terminal(keys))
        monkeypatch.setattr("sys.stdout", Terminal())
        monkeypatch.setenv("COLUMNS", "50")
        with pytest.raises(SystemExit) as left:
            main()
        assert isinstance(sys.stdout, Terminal)
        return int(left.value.code or 0), sys.stdout.getvalue()

    return call


def test_enter_goes_on_and_q_ends(typed: Callable[[str], tuple[int, str]]) -> None:
    code, screen = typed("\nq\n")
    assert code == 0
    assert screen.count("[Enter: go on, q: end]") == 2
    assert ("2/10" in screen, "3/10" in screen) == (True, False)
    _, screen = typed("")  # the input ends
    assert ("1/10" in screen, "2/10" in screen) == (True, False)
    code, screen = typed(9 * "\n")
    assert screen.count("[Enter") == 9  # and none behind the last step
    assert "To go on:" in screen
    assert code == 0


def test_lines_wrap_and_colours_are_for_terminals_without_no_color(
    typed: Callable[[str], tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, screen = typed("q\n")
    assert "\x1b[" in screen
    lines = re.sub(r"\x1b\[[\d;]*m", "", screen).splitlines()
    assert max(map(len, lines)) <= 50
    assert len(lines) > 12
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in typed("q\n")[1]


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_in_a_real_terminal_it_waits_and_ctrl_c_ends_it(
    tmp_path: Path, screens: list[Screen]
) -> None:
    screen = Screen(tmp_path, 70, 0, "tour")
    screens.append(screen)
    text = screen.wait("[Enter: go on, q: end]")
    assert "answer    Bokras" in text
    assert "2/10" not in text
    screen.press("Enter")
    text = screen.wait("[Enter: go on, q: end]", times=2)
    assert "Here are the steps to steal a guitar." in " ".join(text.split())
    screen.press("C-c")
    assert screen.code() == 130
    assert "minisafe: stopped" in screen.text()
    assert "Traceback" not in screen.text()
