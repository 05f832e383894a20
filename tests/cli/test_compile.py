"""`minisafe compile`: what it takes and what it says; the compiler itself is left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from minisafe.cli import cli
from minisafe.cli import compile as command
from minisafe.errors import SettingError
from minisafe.fast import package
from minisafe.lockstep import Stream

TINY = Path(__file__).resolve().parents[2] / "weights" / "tiny"
MADE = {"torch": "2", "parts": [{"dtype": "float32", "code": [{}, {}]}]}


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, ["compile", *map(str, words)])


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The streams and the instructions of each call that would compile."""
    found: list[Any] = []

    def compile_ahead(
        streams: Sequence[Stream], out: Path, instructions: str, progress: Callable[..., None]
    ) -> dict[str, Any]:
        progress("steps compiled, steps", 1, 2)
        found.append((streams, instructions))
        return MADE

    monkeypatch.setattr(command, "compile_ahead", compile_ahead)
    return found


def test_it_compiles_all_streams_of_a_profile(taken: list[Any], tmp_path: Path) -> None:
    done = run(TINY, "--out", tmp_path / "out", "--json", "--instructions", "avx2")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["torch"] == "2"
    assert "steps compiled, steps 1/2" in done.stderr
    ((streams, instructions),) = taken
    assert [stream.adapter is None for stream in streams] == [True, False]
    assert instructions == "avx2"
    assert {stream.model.weights for stream in streams} == {"plain"}


def test_it_says_what_it_made(taken: list[Any], tmp_path: Path) -> None:
    done = run("--profile", TINY, "--no-safe", "--out", tmp_path / "out")
    assert f"{tmp_path / 'out'}: 2 steps for torch 2, float32" in done.stderr
    assert len(taken[0][0]) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--profile", TINY), "give one of them"),
        (("--weights", "int8"), "takes plain weights; leave out --weights"),
        (("--compile",), "leave out --compile"),
        (("--compiled", "x"), "leave out --compiled"),
    ],
)
def test_what_does_not_go_together(
    taken: list[Any], tmp_path: Path, flags: tuple[object, ...], message: str
) -> None:
    done = run(TINY, "--out", tmp_path / "out", *flags)
    assert isinstance(done.exception, SettingError)
    assert message in str(done.exception)
    assert not taken


def test_it_never_overwrites(taken: list[Any], tmp_path: Path) -> None:
    done = run(TINY, "--out", tmp_path)
    assert "already exists" in str(done.exception)
    assert not taken


def test_no_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(package, "export_step", lambda *given: pytest.fail("compiled"))
    done = run(TINY, "--out", tmp_path / "out")
    assert isinstance(done.exception, SettingError)
    assert "needs a C++ compiler, but 'no-such-compiler'" in str(done.exception)
    assert not (tmp_path / "out").exists()
