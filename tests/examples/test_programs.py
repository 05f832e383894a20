"""The small programs of examples/: short, run as their docstrings say, and each does what it shows.

Each runs once in a fresh process, from another directory, as someone who installed minisafe would.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import minisafe
from minisafe import MinisafeError, Session
from tests.support.scripts import read_script

ROOT = Path(__file__).resolve().parents[2]
LONGEST = {"embed": 15, "guarded": 90, "two_profiles": 50, "custom_rule": 50}  # lines
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
    whole, few, little, left = lines_of("guarded", tmp_path)
    assert whole.endswith("tokens, stop")
    assert few.endswith("-> 5 tokens, length")
    assert little.endswith("tokens, length")
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


class Clock:
    """A timer that goes off when a test says so."""

    started: Clock | None = None

    def __init__(self, seconds: float, ring: Callable[[], None]):
        self.seconds, self.ring, self.running = seconds, ring, False

    def start(self) -> None:
        Clock.started, self.running = self, True

    def cancel(self) -> None:
        self.running = False


def with_clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = example("guarded")
    monkeypatch.setattr(module, "threading", SimpleNamespace(Timer=Clock))  # in this module alone
    return module


def test_the_time_ends_an_answer(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    module = with_clock(monkeypatch)

    def show(piece: str) -> None:
        assert Clock.started is not None
        Clock.started.ring()

    result = module.guarded(session, SHELF, module.Budget(seconds=3.5), show)
    assert result.finish_reason == "cancelled"
    assert 0 < len(result.tokens) < 5  # the first piece may be of several tokens
    assert Clock.started is not None
    assert (Clock.started.seconds, Clock.started.running) == (3.5, False)


def test_the_clock_stops_with_the_answer(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    module = with_clock(monkeypatch)
    assert module.guarded(session, SHELF, module.Budget(), len).finish_reason == "stop"
    assert Clock.started is not None
    assert not Clock.started.running
    with pytest.raises(ZeroDivisionError):
        module.guarded(session, SHELF, module.Budget(), lambda piece: 1 / 0)
    assert not Clock.started.running


@pytest.mark.parametrize("megabytes", [0.3, 0.4, 0.61])
def test_the_caches_stay_within_the_memory(
    session: Session, megabytes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, sizes = example("guarded"), []
    made = Session.new_lockstep

    def watched(self: Session, rows: int, capacity: int) -> Any:
        lockstep = made(self, rows, capacity)
        sizes.append(sum(group.cache.n_bytes for group in lockstep.groups))
        return lockstep

    monkeypatch.setattr(Session, "new_lockstep", watched)
    budget = module.Budget(3600.0, tokens=10_000, cache_mb=megabytes)
    result = module.guarded(session, SHELF, budget, len)
    assert sizes
    assert 0.9 * megabytes * 1e6 < max(sizes) <= megabytes * 1e6
    assert result.finish_reason in ("length", "stop")


def test_a_question_without_room_is_refused(session: Session) -> None:
    module = example("guarded")
    with pytest.raises(MinisafeError, match="allow more memory"):
        module.guarded(session, SHELF, module.Budget(cache_mb=0.05))
