"""What is loaded: its settings may change, and every stream reads its own text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import minisafe
from minisafe.errors import SafetyError, SettingError
from minisafe.session import Session
from tests.support.templates import BYTE
from tests.support.worlds import World, write_tokenizer

pytest_plugins = ["tests.support.world_fixtures"]
PROMPTS = ["The fox", "What is the name of the river?"]


def load(world: World, **changes: Any) -> Session:
    return minisafe.load(None, world.flags(**{"max_new_tokens": 12} | changes))


# ---- ids by stream -----------------------------------------------------------------------------


@pytest.mark.parametrize("system", [None, "You are careless.", ""])
def test_a_system_prompt_that_changes_nothing_is_no_expert(
    world: World, tmp_path: Path, system: str | None
) -> None:
    """Else guidance would silently do nothing."""
    with pytest.raises(SafetyError, match="system prompt changes nothing"):
        load(world, expert=None, expert_system=system or "", system=system)
    other = load(world, expert=None, expert_system="You are careless.").with_settings(
        {"system": "You are careless."}
    )
    with pytest.raises(SafetyError, match="system prompt changes nothing"):
        other.generate(["The fox"], chat=True)
    base = world.copy(world.base, tmp_path)
    deaf = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    write_tokenizer(base, "byte_level", BYTE | {"chat_template": deaf})
    parts = {"base": base, "expert": None, "vector": None, "sa_scale": 0.0}
    with pytest.raises(SafetyError, match="chat template leaves it out"):
        load(world, **parts, expert_system="You are careless.")


def test_each_stream_has_its_own_system_prompt(world: World) -> None:
    session = load(world, expert=None, expert_system="You are careless.", system="You are kind.")
    said = [session.tokenizer.decode(list(ids)) for ids in session.encode("Why?", chat=True)]
    assert ["careless" in text for text in said] == [False, True]
    assert ["kind" in text for text in said] == [True, False]
    assert all("Why?" in text for text in said)


# ---- settings that change ----------------------------------------------------------------------


def test_settings_change_for_the_text_to_come(world: World) -> None:
    session = load(world)
    changed = session.with_settings({"sgds_lambda": 0.5, "sa_scale": 3, "max_new_tokens": 5})
    again = load(world, sgds_lambda=0.5, sa_scale=3.0, max_new_tokens=5)
    assert changed.generate(PROMPTS)[1].tokens == again.generate(PROMPTS)[1].tokens
    assert changed.stages == again.stages
    assert session.stages == load(world).stages  # untouched
    assert changed.streams is session.streams
    assert type(changed) is Session
    both = changed.with_settings({"margin": 0.2, "sa_positions": "all"})
    assert both.stages.to_json()["sgds"] == again.stages.to_json()["sgds"] | {"margin": 0.2}
    assert both.stages.to_json()["sa"] == again.stages.to_json()["sa"] | {"positions": "all"}


@pytest.mark.parametrize(
    "name", ["base", "expert", "vector", "dtype", "device", "safe", "nonsense"]
)
def test_what_needs_a_new_load(world: World, name: str) -> None:
    with pytest.raises(
        SettingError, match=f"'{name}' cannot be changed now; expected one of .*max_new"
    ):
        load(world).with_settings({name: None})


def test_settings_that_cannot_change_here(world: World) -> None:
    session, unsafe = load(world), load(world, safe=False)
    for changes in ({"sgds_lambda": 0.0}, {"sa_scale": 0.0}):  # would be half safe
        with pytest.raises(SettingError, match="cannot be switched on or off now"):
            session.with_settings(changes)
    for changes in ({"sgds_lambda": 0.5}, {"margin": 0.1}, {"sa_scale": 2.0}):
        with pytest.raises(SettingError, match="cannot be switched on or off now"):
            unsafe.with_settings(changes)
    with pytest.raises(SettingError, match="temperature is -1"):
        session.with_settings({"temperature": -1})
