"""Settings in a chat: values as typed words, and typed words as values."""

from __future__ import annotations

from typing import Any

from minisafe.declared import NUMBER, WHOLE
from minisafe.errors import SettingError
from minisafe.session.settings import SETTABLE, SETTINGS, TEXTS, Settings

NONE = "none"


def setting_name(word: str) -> str:
    """The setting of a typed name, such as `top-k` or `top_k`; raises `SettingError`."""
    name = word.replace("-", "_")
    if name not in SETTABLE:
        raise SettingError(f"{name!r} cannot be changed now; expected one of {', '.join(SETTABLE)}")
    return name


def parsed(name: str, word: str) -> Any:
    """A typed word as the setting's value; raises `SettingError`."""
    setting = SETTINGS[name]
    if word == NONE and setting.default is None:
        return None
    if setting.kind is TEXTS:
        return () if word == NONE else (word,)
    if setting.kind not in (WHOLE, NUMBER):
        return word
    try:
        return setting.kind.make(word)
    except ValueError:
        raise SettingError(f"{name} is {word!r}; expected {setting.expected}") from None


def shown(value: Any) -> str:
    """A value as a user would type it."""
    if value is None or value == ():
        return NONE
    if isinstance(value, tuple):
        return ", ".join(map(repr, value))
    return repr(value) if isinstance(value, str) and not value.isidentifier() else str(value)


def table(settings: Settings) -> list[tuple[str, str]]:
    """(name and value, help text) of every setting that a chat can change."""
    return [(f"{name} {shown(getattr(settings, name))}", SETTINGS[name].help) for name in SETTABLE]
