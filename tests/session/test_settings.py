"""A setting is declared once: flags, profile checks, chats and docs come from its declaration."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
import pytest

from minisafe.cli import commands
from minisafe.errors import SettingError
from minisafe.sampling import Sampling
from minisafe.session.settings import PATHS, SAMPLING_HELP, SETTABLE, SETTINGS, UNSET, Settings

ROOT = Path(__file__).resolve().parents[2]
GENERATE = next(command for command in commands() if command.name == "generate")


def test_every_field_is_declared_and_nothing_else_is() -> None:
    assert set(SETTINGS) == {each.name for each in fields(Settings)}
    assert set(UNSET) < set(SAMPLING_HELP) == {each.name for each in fields(Sampling)}
    assert set(SETTABLE) < set(SETTINGS)
    parts = ("base", "edit", "expert", "vector", "anti_expert", "anchor", "anchor_shots", "probe",
             "compiled")  # fmt: skip
    assert parts == PATHS


@pytest.mark.parametrize("name", SETTINGS)
def test_a_default_is_of_its_own_kind_and_range(name: str) -> None:
    setting = SETTINGS[name]
    may_be_none = type(None) in get_args(get_type_hints(Settings)[name])
    assert may_be_none == (setting.default is None)
    if setting.default is not None:
        assert setting.read(setting.default, "here") == setting.default
        setting.check(setting.default)
    assert setting.help.endswith(".")


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_its_flag(name: str) -> None:
    (option,) = (each for each in GENERATE.params if each.name == name)
    assert isinstance(option, click.Option)
    assert SETTINGS[name].help in (option.help or "")
    assert option.opts[0] == (SETTINGS[name].flag or "--" + name.replace("_", "-"))
    if SETTINGS[name].choices:
        assert option.type.choices == SETTINGS[name].choices  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"top_p": 0.0}, "top_p is 0.0; expected a number above 0"),
        ({"seed": -1}, "seed is -1; expected 0 or more"),
        ({"rule": "best"}, "rule is 'best'; expected one of sgds"),
        ({"threads": 0}, "threads is 0; expected 1 or more"),
    ],
)
def test_what_is_out_of_range_is_refused_however_it_comes(given: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        Settings(**given)


def test_the_table_is_that_of_this_code() -> None:
    path = ROOT / "docs" / "make_settings.py"
    spec = importlib.util.spec_from_file_location("make_settings", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "profile.md").read_text(encoding="utf-8")
    assert page == module.page(), "run `python docs/make_settings.py`"


def test_reading_a_profile_is_light() -> None:
    """No command line, no template engine, no kernels: a profile is a JSON file."""
    code = """
import sys
import minisafe
from minisafe.session.profile import default_profile, load_profile
load_profile(default_profile())
fast = ("fast", "faster", "session.session")
heavy = {"click", "jinja2", *(f"minisafe.{name}" for name in fast)}
print(*sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == []
