"""The small programs of examples/: short, run as their docstrings say, and each does what it shows.

Each runs once in a fresh process, from another directory, as someone who installed minisafe would.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from types import ModuleType

import pytest
import torch

import minisafe
from minisafe import Session
from minisafe.fast.ahead import DEFERRED
from tests.support.scripts import read_script
from tests.support.worlds import World, write_json

pytest_plugins = ["tests.support.world_fixtures"]

ROOT = Path(__file__).resolve().parents[2]
LONGEST = {"embed": 15, "guarded": 70, "two_profiles": 50, "custom_rule": 50, "aot": 50}  # lines
SHELF = "How do I clean a shelf?"


def path_of(name: str) -> Path:
    return ROOT / "examples" / f"{name}.py"


def example(name: str) -> ModuleType:
    return read_script(path_of(name))


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with minisafe.load(None, {"read_alone": False, "weights": "plain"}) as loaded:
        yield loaded


# ---- in a fresh process ------------------------------------------------------------------------


def lines_of(name: str, directory: Path) -> list[str]:
    """What the program prints."""
    done = subprocess.run(
        [sys.executable, str(path_of(name))], cwd=directory, capture_output=True, text=True,
        check=False, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, timeout=600,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert not any(directory.iterdir())
    return done.stdout.splitlines()


def test_embed(tmp_path: Path) -> None:
    hello, why, refusal, safely = lines_of("embed", tmp_path)
    assert hello.startswith("Hi!")
    assert refusal.startswith("Sorry, I will not")
    assert why == safely == "  (stop; decoded safely: True)"


def test_guarded(tmp_path: Path) -> None:
    whole, few, late, left = lines_of("guarded", tmp_path)
    assert whole.endswith("tokens, stop")
    assert few.endswith("-> 5 tokens, length")
    assert late.endswith("-> 1 tokens, time")
    assert left.endswith("-> cancelled")


def test_two_profiles(tmp_path: Path) -> None:
    guest, reviewer, one = lines_of("two_profiles", tmp_path)
    assert guest.startswith("guest: Sorry, I will not")
    assert guest.endswith("(safe: True)")
    assert reviewer.startswith("reviewer: Here are the steps")
    assert reviewer.endswith("(safe: False)")
    assert one == "one model: True"


def test_custom_rule(tmp_path: Path) -> None:
    plain, published, squared, applied = lines_of("custom_rule", tmp_path)
    assert plain.startswith("Plain: Here are the steps")
    assert published.startswith("SGDS: Sorry, I will not")
    assert squared.startswith("Squared: Sorry, I will not")
    assert applied == "applied: {'name': 'squared', 'strength': 10.0, 'streams': ['adapter']}"


# ---- short, and shown --------------------------------------------------------------------------


@pytest.mark.parametrize("name", LONGEST)
def test_it_is_short_and_the_readme_shows_it(name: str) -> None:
    text = path_of(name).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST[name]
    assert f"python examples/{name}.py\n" in text
    assert f"(examples/{name}.py)" in (ROOT / "README.md").read_text(encoding="utf-8")


# ---- the budget --------------------------------------------------------------------------------


def test_the_budget_ends_an_answer(session: Session) -> None:
    guarded = example("guarded")
    whole = guarded.guarded(session, SHELF, guarded.Budget(), len)
    assert whole.finish_reason == "stop"
    few = guarded.guarded(session, SHELF, guarded.Budget(tokens=3), len)
    assert (few.finish_reason, few.tokens) == ("length", whole.tokens[:3])
    late = guarded.guarded(session, SHELF, guarded.Budget(seconds=1e-9), len)
    assert (late.finish_reason, late.tokens) == ("time", whole.tokens[:1])


def test_what_shows_an_answer_may_end_it(session: Session) -> None:
    guarded = example("guarded")
    shown: list[str] = []

    def show(piece: str) -> None:
        shown.append(piece)
        session.cancel()

    result = guarded.guarded(session, SHELF, guarded.Budget(), show)
    assert result.finish_reason == "cancelled"
    assert result.text == "".join(shown)
    with pytest.raises(ZeroDivisionError):
        guarded.guarded(session, SHELF, guarded.Budget(), lambda piece: 1 / 0)
    assert guarded.guarded(session, SHELF, guarded.Budget(), len).finish_reason == "stop"


# ---- compiled ahead ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler"
)
def test_aot(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
             capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """It compiles once; afterwards no compiler is called, and the answer is the same."""
    if DEFERRED not in signature(torch.export.export).parameters:
        pytest.skip("needs a newer torch")
    program, package = example("aot"), tmp_path / "step"
    profile = write_json(tmp_path / "plain.json", {"minisafe_profile": 1, "base": str(world.base)})
    monkeypatch.setattr(sys, "argv", ["aot.py", str(profile), str(package)])
    program.main()
    first = capsys.readouterr().out.splitlines()
    monkeypatch.setattr(program.subprocess, "run", lambda *given, **named: pytest.fail("compiled"))
    program.main()
    again = capsys.readouterr().out.splitlines()
    texts = {line.partition("tokens/s: ")[2] for line in [*first, *again]}
    assert len(texts) == 1
    assert [line.partition(":")[0] for line in first] == ["as it is", "compiled"]
