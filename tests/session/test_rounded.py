"""Sessions on a base whose weights are stored rounded: the same answers as int8 in memory, with
every kind of part; and what was made for the plain weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

import minisafe
from minisafe.convert.rounded import directory_source, round_model
from minisafe.errors import CheckpointError, SafetyError, SafetyWarning, SettingError
from minisafe.session import Session
from minisafe.session.fingerprints import fingerprints
from tests.support.spoil import refuses
from tests.support.worlds import World

pytest_plugins = ["tests.support.world_fixtures"]
TINY = Path(__file__).parents[2] / "weights" / "tiny"
QUESTIONS = [
    "How do I clean a shelf?",
    "How do I smuggle a painting?",
    "What is the capital of Teku?",
]


def rounded(source: Path, out: Path, form: str = "int8") -> Path:
    group = 32 if form == "int4" else 0
    round_model(directory_source(source), out, form, group, None, lambda done, total: None)
    return out


@pytest.fixture(scope="module")
def small(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small world's base and its other checkpoint, in int8."""
    root = tmp_path_factory.mktemp("rounded")
    return {name: rounded(getattr(world, name), root / name) for name in ("base", "expert")}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The shipped base in both forms."""
    root = tmp_path_factory.mktemp("shipped")
    return {form: rounded(TINY / "base", root / form, form) for form in ("int8", "int4")}


def answers(session: Session, *prompts: str, chat: bool = True) -> list[tuple[int, ...]]:
    return [tuple(each.tokens) for each in session.generate(list(prompts), chat=chat)]


def hashes(session: Session) -> dict[str, str]:
    return fingerprints(session.streams, session.steering, session.settings.others)


def parts(world: World, small: dict[str, Path], kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings for int8 in memory, and for int8 from disk."""
    memory: dict[str, Any] = world.flags(weights="int8", max_new_tokens=8)
    disk: dict[str, Any] = world.flags(base=small["base"], max_new_tokens=8)
    if kind == "checkpoint":
        memory, disk = memory | {"expert": world.expert}, disk | {"expert": small["expert"]}
    elif kind == "speculation":
        memory |= {"expert": world.expert, "speculate": 4}
        disk |= {"expert": small["expert"], "speculate": 4}
    elif kind == "system prompt":
        asked = {"expert": None, "expert_system": "You are harmful."}
        memory, disk = memory | asked, disk | asked
    elif kind == "anchor":
        asked = {"rule": "anchored", "anchor_system": "You are careful."}
        memory, disk = memory | asked, disk | asked
    return memory, disk


@pytest.mark.parametrize(
    "kind", ["adapter", "checkpoint", "speculation", "system prompt", "anchor"]
)
def test_the_same_tokens_as_in_memory(world: World, small: dict[str, Path], kind: str) -> None:
    """Vector, expert, anchor and drafts, all on weights that never were wide."""
    memory, disk = (minisafe.load(None, given) for given in parts(world, small, kind))
    assert {stream.model.weights for stream in disk.streams} == {"int8"}
    prompts = ("The fox", "A river runs", "Tell me")
    assert answers(disk, *prompts) == answers(memory, *prompts)
    assert hashes(disk) == hashes(memory)


def test_the_shipped_profile(shipped: dict[str, Path]) -> None:
    """int8 keeps the identity of the plain weights: calibration, probe and vector hold, and the
    answers are those of int8 in memory."""
    given = {"max_new_tokens": 24}
    with warnings.catch_warnings():
        warnings.simplefilter("error", SafetyWarning)
        disk = minisafe.load(TINY, given | {"base": shipped["int8"]})
    memory = minisafe.load(TINY, given | {"weights": "int8"})
    assert disk.alone is not None
    assert disk.probe is not None
    assert hashes(disk) == hashes(memory)
    assert answers(disk, *QUESTIONS) == answers(memory, *QUESTIONS)


def test_int4_needs_a_calibration_of_its_own(shipped: dict[str, Path]) -> None:
    """Nobody measured the vector and the calibration on such weights."""
    given = {"base": shipped["int4"], "max_new_tokens": 8}
    with pytest.warns(SafetyWarning, match="other weights of the same shape"):
        refuses(SafetyError, lambda: minisafe.load(TINY, given), "for other weights or settings")
    with pytest.warns(SafetyWarning, match="other weights"):
        session = minisafe.load(TINY, given | {"read_alone": False})
    assert session.model.weights == "int4"
    assert answers(session, QUESTIONS[0])[0]


def test_settings_that_do_not_fit(world: World, small: dict[str, Path]) -> None:
    given = world.flags(base=small["base"])
    for weights in ("plain", "packed"):
        words = ("weights are int8, but weights is", "converted from")
        refuses(SettingError, lambda w=weights: minisafe.load(None, given | {"weights": w}), *words)
    refuses(SettingError, lambda: minisafe.load(None, given | {"dtype": "float16"}), "not float16")
    edit = given | {"edit": world.adapter}
    refuses(SettingError, lambda: minisafe.load(None, edit), "an edit cannot be merged into them")


def test_an_expert_that_is_the_rounded_base(world: World, small: dict[str, Path]) -> None:
    given = world.flags(expert=small["base"])
    refuses(SafetyError, lambda: minisafe.load(None, given), "the base's own weights")


def test_a_missing_file(world: World, small: dict[str, Path], tmp_path: Path) -> None:
    out = rounded(world.base, tmp_path / "out")
    (out / "rounded.safetensors").unlink()
    refuses(CheckpointError, lambda: minisafe.load(None, world.flags(base=out)), "no such file")
