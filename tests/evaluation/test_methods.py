"""Built-in methods on a profile that names an anchor: only some of them read it."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

import minisafe
from minisafe.checkpoint import load_model, save_adapter
from minisafe.errors import SafetyError, SettingError
from minisafe.evaluation.defences import Defended
from minisafe.evaluation.methods import METHODS, Materials, load_method, made_by, parse_methods
from minisafe.evaluation.methods.grid import grid
from minisafe.gate import Calibration
from minisafe.probe import Probe
from minisafe.session import Session
from minisafe.session.fingerprints import made_for
from minisafe.session.profile import save_profile, store_calibration
from tests.support.tiny import random_adapter
from tests.support.worlds import World

pytest_plugins = ["tests.support.world_fixtures"]
FITTED = ("input-guard", "output-guard", "perplexity", "refusal-direction", "cast", "alphasteer")
READING = ("profile", "anchored", "veto", "alone-guard")  # the anchor
GATED = ("safeinfer+gate", "safeinfer+margin+gate")
ALONE = ("base", "system", "icd", "self-reminder", "safe-lora", "sa")
STREAMS = dict.fromkeys(ALONE, 1) | dict.fromkeys((*READING, "dexperts"), 3)


@pytest.fixture(scope="module")
def anchor(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("anchor")
    model = load_model(world.base, dtype="float32")
    save_adapter(random_adapter(model, seed=5), path, rank=3, alpha=1.5)
    return path


@pytest.fixture(scope="module")
def profile(world: World, anchor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile with an anchor and a vector that both streams get; messages are read alone too."""
    path: Path = tmp_path_factory.mktemp("profile") / "profile.json"
    given = world.flags(anchor=anchor, rule="anchored", sa_streams="both", sa_scale=1.5, margin=0.5)
    session = minisafe.load(None, given)
    made = made_for(replace(session.settings, read_alone=True), session.steering)
    save_profile(given | {"read_alone": True, "max_new_tokens": 6, "gate": False}, path)
    store_calibration(path, Calibration(0.25, 0.02, made, "x", 99, 0, 99, 0, 0, 0, 0.05))
    return path


def loaded(text: str, profile: Path, materials: Materials | None = None) -> Session:
    (method,) = parse_methods([text], profile, {}, materials)
    found = load_method(method)
    return found.session if isinstance(found, Defended) else found


@pytest.mark.filterwarnings("ignore::minisafe.errors.SafetyWarning")
@pytest.mark.parametrize("name", [name for name in METHODS if name not in FITTED + GATED])
def test_only_the_methods_that_are_about_it_read_the_anchor(profile: Path, name: str) -> None:
    session = loaded(name, profile)
    assert len(session.streams) == STREAMS.get(name, 2)
    assert ("anchor" in session.settings.others) == (name in READING)
    assert (session.alone is not None) == (name in ("profile", "alone-guard"))
    assert session.gate is None
    assert session.generate(["The fox"], chat=True)[0].tokens


@pytest.mark.filterwarnings("ignore::minisafe.errors.SafetyWarning")
def test_safeinfer_is_the_published_one(profile: Path) -> None:
    session = loaded("safeinfer", profile)
    assert session.kinds == ("adapter",)
    assert session.alone is None
    assert (session.settings.rule, session.settings.margin) == ("sgds", 0.0)
    assert session.steering is not None
    assert session.steering.streams == (0,)


@pytest.mark.filterwarnings("ignore::minisafe.errors.SafetyWarning")
def test_the_anchored_methods_take_the_profiles_numbers_and_their_options(profile: Path) -> None:
    session = loaded("anchored", profile)
    assert (session.settings.rule, session.settings.margin) == ("anchored", 0.5)
    assert session.steering is not None
    assert session.steering.streams == (0, 2)
    other = loaded("veto:margin=2:sa_scale=0", profile)
    assert (other.settings.rule, other.settings.margin) == ("veto", 2.0)
    assert other.steering is None
    steered = loaded("veto", profile).steering  # the stream that veto draws from
    assert steered is not None
    assert steered.streams == (0,)


@pytest.mark.filterwarnings("ignore::minisafe.errors.SafetyWarning")
def test_the_anchor_is_the_safe_expert_of_rivals(world: World, profile: Path, anchor: Path) -> None:
    for name in ("safedecoding", "dexperts", "safe-lora"):
        (method,) = parse_methods([name], profile, {})
        assert method.overrides["expert"].resolve() == anchor
        (given,) = parse_methods([name], profile, {}, Materials(safe_expert=world.expert))
        assert given.overrides["expert"] == world.expert
    (method,) = parse_methods(["dexperts"], profile, {})
    assert method.overrides["anti_expert"].resolve() == world.adapter


def test_an_anchor_that_is_missing_is_said(world: World) -> None:
    words = "method veto: it needs an anchor; give a profile that names one, or --anchor, "
    with pytest.raises(SettingError, match=words):
        parse_methods(["veto"], world.profile, {})
    system: dict[str, Any] = {"anchor_system": "Be good."}
    (method,) = parse_methods(["veto"], world.profile, system)
    assert method.overrides["rule"] == "veto"
    (method,) = parse_methods(["safedecoding"], world.profile, system)
    assert method.overrides["expert_system"] == "Be good."


@pytest.mark.filterwarnings("ignore::minisafe.errors.SafetyWarning")
def test_what_needs_the_profiles_own_calibration(profile: Path) -> None:
    for name in GATED:  # it is that of the anchor, not of SafeInfer
        with pytest.raises(SafetyError, match="the gate cannot be on: its calibration is for oth"):
            loaded(name, profile)
    for method in grid({"sa_scale": [0.5]}, profile, {}):
        found = load_method(method)
        assert isinstance(found, Session)
        assert found.alone is None


@pytest.mark.filterwarnings("ignore::minisafe.errors.SafetyWarning")
def test_what_made_an_answer_tells_of_reading_alone_and_of_demonstrations(
    world: World, profile: Path, tmp_path: Path
) -> None:
    session = loaded("profile", profile)
    assert made_by(session).settings["alone_threshold"] == 0.25
    probes = [Probe(torch.full((2, 4), value), torch.zeros(1)) for value in (0.0, 1.0)]
    made = [made_by(replace(session, probe=probe)) for probe in (None, *probes)]
    assert not any(one == other for one, other in combinations(made, 2))
    found = []
    for text in ("No.", "I will not."):
        shots = tmp_path / "shots.json"
        shots.write_text(f'[{{"input": "The fox", "output": "{text}"}}]', encoding="utf-8")
        flags = world.flags(anchor_shots=shots, rule="anchored", sa_scale=0.0)
        found.append(made_by(minisafe.load(None, flags)))
    assert found[0].models == found[1].models
    assert found[0] != found[1]
