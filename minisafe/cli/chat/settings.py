"""Settings in a chat: their values as words, and words as their values."""

from __future__ import annotations

from typing import Any

import click

from minisafe.errors import SettingError
from minisafe.session.loaded import SETTABLE
from minisafe.session.profile import FIELDS, Settings

NONE = "none"


def setting_name(word: str) -> str:
    """A setting as it is typed, `top-k` or `top_k`; raises `SettingError` for an unknown one."""
    name = word.replace("-", "_")
    if name not in SETTABLE:
        raise SettingError(f"{name!r} cannot be changed now; expected one of {', '.join(SETTABLE)}")
    return name


def parsed(name: str, word: str) -> Any:
    """A typed word as the setting's value; raises `SettingError`."""
    kind = str(FIELDS[name].type)
    try:
        if word == NONE and "None" in kind:
            return None
        if name == "stop":
            return () if word == NONE else (word,)
        return int(word) if "int" in kind else float(word) if "float" in kind else word
    except ValueError:
        raise SettingError(f"{name} is {word!r}; expected {kind}") from None


def shown(value: Any) -> str:
    """A value as it could be typed."""
    if value is None or value == ():
        return NONE
    if isinstance(value, tuple):
        return ", ".join(map(repr, value))
    return repr(value) if isinstance(value, str) and not value.isidentifier() else str(value)


def helps() -> dict[str, str]:
    """What each setting is, as the command's own flags say."""
    parameters = click.get_current_context().command.params
    found = {each.name: getattr(each, "help", None) for each in parameters}
    return {name: (found.get(name) or "").split(". Default")[0].strip() for name in SETTABLE}


def table(settings: Settings, texts: dict[str, str]) -> list[tuple[str, str]]:
    """(name and present value, what it is) of every setting that can be changed."""
    return [(f"{name} {shown(getattr(settings, name))}", texts.get(name, "")) for name in SETTABLE]
