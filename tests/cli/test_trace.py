"""`minisafe trace`: the table, the lines, and what it refuses."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import minisafe
from minisafe.cli import main
from minisafe.cli.steps import Table, chance, padded
from minisafe.files.display import CONTROLS, visible
from minisafe.trace.beside import Beside
from tests.support.worlds import World, write_json

pytest_plugins = ["tests.support.world_fixtures"]
Run = Callable[..., tuple[int, str, str]]  # exit code, standard output, standard error


@pytest.fixture
def run(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("text", "--json")`: the command on the world's profile, in this process."""

    def call(*args: object, profile: Path | None = world.profile) -> tuple[int, str, str]:
        given = ["--profile", str(profile), "--max-new-tokens", "4"] if profile else []
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main changes it
        monkeypatch.setattr("sys.argv", ["minisafe", "trace", *map(str, args), *given])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


def test_the_lines_are_those_of_the_library(run: Run, world: World) -> None:
    code, out, err = run("The fox", "--json", "--top", 7)
    assert (code, err) == (0, "")
    session = minisafe.load(world.profile, {"max_new_tokens": 4})
    wanted = list(session.trace("The fox", top=7).lines())
    found = [json.loads(line) for line in out.splitlines()]
    assert found[:-1] == wanted[:-1]
    for line in (found[-1], wanted[-1]):
        line.pop("timings_ms")
    assert found[-1] == wanted[-1]
    assert found[-1]["tokens"] == list(session.generate(["The fox"], chat=True)[0].tokens)
    assert CONTROLS.search(out) is None
    assert out.isascii()


def test_the_table(run: Run, world: World) -> None:
    code, out, err = run("The fox", "--sgds-lambda", 0.9)
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert "\x1b" not in out  # no colours in a pipe
    assert "The\u00b7fox" in lines[0]
    assert "sGDS (adapter, lambda 0.9)" in lines[1]
    assert "base " in lines[2]
    assert "sgds_lambda 0.9" in lines[3]
    assert lines[5].split() == [
        "n", "token", "base", "steered", "expert", "safe", "penalty", "KL", "moved", "entropy",
    ]  # fmt: skip
    steps = list(minisafe.load(world.profile, {"sgds_lambda": 0.9, "max_new_tokens": 4})
                 .trace("The fox"))  # fmt: skip
    rows = [line for line in lines[6:-3] if line[:3].strip()]
    assert [int(row[:3]) for row in rows] == [0, 1, 2, 3]
    for row, step in zip(rows, steps, strict=True):
        found, place = step.candidates, step.candidates.ids.index(step.id)
        cells = row[4 + 14 :]
        wanted = [chance(found.log_probs[name][place]) for name in found.log_probs]
        assert cells.split()[:4] == wanted
        assert f"{step.moves.moved:.3f}" in cells
        assert ("guidance changed" in row) == step.changed_by_rule
    assert any(step.changed_by_rule for step in steps)
    assert lines[-2].startswith("answer ")
    assert lines[-1] == "ended     length, after 4 tokens"
    assert not any("cosine" in line for line in lines)


def test_some_columns_of_the_table(run: Run) -> None:
    code, whole, _ = run("The fox", "--sgds-lambda", 0.9)
    assert code == 0
    code, out, err = run("The fox", "--sgds-lambda", 0.9, "--columns", "moved,expert,base")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in lines[:2]] == ["read", "acts"]
    assert lines[3].split() == ["n", "token", "base", "expert", "moved"]
    all_rows = [line for line in whole.splitlines()[6:-3] if line[:3].strip()]
    rows = [line for line in lines[4:-3] if line[:3].strip()]
    for row, all_of_it in zip(rows, all_rows, strict=True):
        base, expert, moved = row[18:].split()[:3]
        cells = all_of_it[18:].split()
        assert (base, expert) == (cells[0], cells[2])
        assert moved in cells[4:]
    code, out, err = run("The fox", "--columns", "base,anchor")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "'anchor'" in err
    assert run("The fox", "--columns", "base", "--json")[0] == 2


def test_tokens_that_are_not_shown_are_counted(world: World) -> None:
    """With --show 0 nothing is said; where all are shown, too."""
    trace = minisafe.load(world.profile, {"max_new_tokens": 4}).trace("The fox")
    none, one, every = (Table(trace.names, show, False) for show in (0, 1, 1000))
    counted = 0
    for step in trace:
        whole = len(list(every.rows(step))) - 1
        assert len(list(none.rows(step))) == 1
        more = [f"    \u2026 {whole - 1} more"] if whole > 1 else []
        assert list(one.rows(step))[2:] == more
        counted += len(more)
    assert counted


def test_it_says_whether_a_part_was_answered_alone(world: World) -> None:
    trace = minisafe.load(world.profile, {"max_new_tokens": 4}).trace("The fox")
    header = trace.header()
    table = Table(trace.names, 3, False)

    def said(**other: object) -> list[str]:
        return [line for line in table.head(header | other, "") if line.startswith("alone")]

    assert said() == []  # nothing reads alone here
    assert said(reads_alone=0.4) == ["alone     nothing was taken out to be answered alone"]
    assert said(reads_alone=0.4, alone=0.9) == [
        "alone     this part is harmful by itself (worst 0.900)"
    ]


def test_one_token_is_one_token(run: Run) -> None:
    _, out, _ = run("The fox", "--max-new-tokens", 1, profile=None)
    assert out.splitlines()[-1] == "ended     length, after 1 token"


def test_layers_in_the_table(run: Run) -> None:
    _, out, _ = run("The fox", "--layers", "--show", 0)
    assert out.count("the vector is added here") == 4  # positions "last"
    assert out.count("cosine+v") == 4
    assert len([line for line in out.splitlines() if line.startswith(" " * 10)]) == 4 * 3
    _, out, _ = run("The fox", "--layers", "--no-safe")
    assert "+v" not in out
    assert out.count("position ") == 4


def test_colours_say_nothing_that_words_do_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    import click

    trace = minisafe.load(world.profile, {"max_new_tokens": 2}).trace("The fox")
    table = Table(trace.names, 3, False)
    rows = [row for step in trace for row in table.rows(step)]
    assert any("\x1b" in row for row in rows)
    assert not any(CONTROLS.search(click.unstyle(row)) for row in rows)
    monkeypatch.setenv("NO_COLOR", "1")
    assert Table(trace.names, 3, False).color is False


def test_tokens_command_no_terminal() -> None:
    assert visible(" a\n\tb\x1b[2J\u202e\u2028") == "\u00b7a\u21b5\u2192b\u241b[2J\ufffd\u21b5"
    assert padded("ab", 4) == "ab  "
    assert padded("abcdef", 4) == "abc\u2026"
    assert padded("\u6c34\u6c34\u6c34", 4) == "\u6c34\u2026 "
    assert [chance(x) for x in (0.0, -3000.0, -20.0)] == ["1.0000", "0", "2e-09"]


def test_a_conversation_a_prefill_and_a_plain_text(run: Run, world: World, tmp_path: Path) -> None:
    session = minisafe.load(world.profile, {"max_new_tokens": 4})
    talk = [
        {"role": "user", "content": "The fox"}, {"role": "assistant", "content": "No."},
        {"role": "user", "content": "And?"},
    ]  # fmt: skip
    path = write_json(tmp_path / "talk.json", talk)

    def tokens(*args: object) -> list[int]:
        code, out, err = run(*args, "--json")
        assert (code, err) == (0, "")
        found: list[int] = json.loads(out.splitlines()[-1])["tokens"]
        return found

    prompt = minisafe.ChatPrompt(tuple(talk))
    assert tokens("--messages", path) == list(session.generate([prompt])[0].tokens)
    begun = minisafe.ChatPrompt((talk[0],), "Sure")
    assert tokens("The fox", "--prefill", "Sure") == list(session.generate([begun])[0].tokens)
    plain = list(session.generate(["The fox"])[0].tokens)
    assert tokens("The fox", "--no-chat") == plain
    assert plain != tokens("The fox")
    lines = tmp_path / "talks.jsonl"
    lines.write_text(2 * (json.dumps(talk) + "\n"), encoding="utf-8")
    code, _, err = run("--messages", lines)
    assert (code, "holds 2 conversations; expected one" in err) == (2, True)


def test_a_method_of_the_evaluation(run: Run, world: World) -> None:
    base = minisafe.load(world.profile, {"max_new_tokens": 4}).plain()
    code, out, _ = run("The fox", "--method", "base", "--json")
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines[-1]["tokens"] == list(base.generate(["The fox"], chat=True)[0].tokens)
    assert [each["name"] for each in lines[0]["streams"]] == ["base"]
    code, out, _ = run("The fox", "--method", "rose", "--json")
    header, step = (json.loads(line) for line in out.splitlines()[:2])
    assert (code, header["rule"]["name"]) == (0, "rose")
    assert step["candidates"]["penalty"] is None


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["The fox", "--method", "self-reminder"], "cannot be traced: it is a defence around"),
        (["The fox", "--method", "nothing"], "no method 'nothing'"),
        (["The fox", "--rivals", "x"], "--rivals and --safe-expert need --method"),
        (["The fox", "--top", "0"], "top is 0; expected 1 or more"),
        (["The fox", "--show", "-1"], "--show is -1; expected 0 or more"),
        (["The fox", "--prefill", "Sure", "--no-chat"], "leave out --no-chat"),
        (["The fox", "--messages", "x.json"], "give --messages alone"),
        (["--messages", "no.json"], "no.json"),
        ([""], "the prompt is empty"),
        (["fox " * 2000], "context holds"),
        (["The fox", "--sgds-lambda", "1"], "lambda is 1.0"),
        (["The fox", "--html", "p.html", "--json"], "leave out --json"),
        (["The fox", "--html", "p.html", "--layers"], "leave out --layers"),
        (["The fox", "--html", "p.html", "--show", "3"], "leave out --show"),
        (["The fox", "--html", "."], "is a directory"),
        (["The fox", "--pair", "a", "b"], "give --html FILE, too"),
        (["The fox", "--html", "p.html", "--pair", "a", " "], "empty question"),
        (["The fox", "--html", "p.html", "--no-chat", "--pair", "a", "b"], "leave it out"),
        (["The fox", "--html", "p.html", "--no-safe", "--pair", "a", "b"], "no guidance acts"),
        (["The fox", "--html", "p.html", "--top", "0"], "top is 0; expected 1 or more"),
        (["", "--html", "p.html"], "the prompt is empty"),
    ],
)
def test_a_wrong_argument_is_one_line(
    run: Run, args: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert said in err
    assert not list(tmp_path.iterdir())


def test_help_shows_an_example(run: Run) -> None:
    code, out, _ = run("--help", profile=None)
    assert code == 0
    assert 'minisafe trace "How do I clean a shelf?"' in out


def test_a_page(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    code, out, err = run("The fox", "--html", path, "--pair", "The bird", "The <b>river</b>")
    text = path.read_text(encoding="utf-8")
    assert (code, out) == (0, f"{path}: a page of {len(text.encode()) / 1000:.0f} kB\n")
    assert err.splitlines()[0] == "traced answers 0/10"
    assert err.splitlines()[-1].startswith("traced answers 10/10, ")
    assert "river\\u003c/b\\u003e" in text
    code, out, _ = run("The fox", "--html", path, "--method", "base")
    assert (code, list(path.parent.iterdir())) == (0, [path])
    assert len(path.read_text(encoding="utf-8")) < len(text)


def test_a_place_that_takes_no_file_is_refused_before_the_work(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, out, err = run("The fox", "--html", tmp_path / "file" / "page.html")
    assert (code, out) == (1, "")
    assert "cannot be written" in err
    assert len(err.splitlines()) == 1  # without progress


def test_ctrl_c_leaves_no_page(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, left = Beside.read, [9]

    def interrupted(self: Beside, *args: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return read(self, *args)

    monkeypatch.setattr(Beside, "read", interrupted)
    code, out, err = run("The fox", "--html", tmp_path / "page.html")
    assert (code, out, err.splitlines()[-1]) == (130, "", "minisafe: stopped")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_ends_it_with_whole_lines(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read, left = Beside.read, [3]

    def interrupted(self: Beside, *args: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return read(self, *args)

    monkeypatch.setattr(Beside, "read", interrupted)
    code, out, err = run("The fox", "--json")
    assert (code, err.strip()) == (130, "minisafe: stopped")
    assert [json.loads(line)["kind"] for line in out.splitlines()] == ["header", "step", "step"]
