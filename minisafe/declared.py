"""Settings, each declared once: its type and range, its help text, and where it may be changed.

A dataclass declares its fields with `declared`; `settings_of` reads the declarations back. Flags,
profile checks, `/set` in a chat and the table in docs/profile.md are all generated from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any

from minisafe.errors import SettingError


@dataclass(frozen=True)
class Kind:
    """The type of a setting.

    name: as errors show it. types: the types that a value from JSON or Python may have. make:
    converts such a value to the setting's own type; may raise `SettingError`. refuse: what is wrong
    with a value of these types, in words that follow the setting's name; "" if nothing is.
    """

    name: str
    types: tuple[type, ...]
    make: Callable[[Any], Any]
    refuse: Callable[[Any], str] = lambda value: ""


TEXT = Kind("str", (str,), str)
SWITCH = Kind("bool", (bool,), bool)
WHOLE = Kind("int", (int,), int)
NUMBER = Kind("float", (int, float), float)


@dataclass(frozen=True)
class Within:
    """The values that a setting may have: as a test, and as the words that errors show."""

    holds: Callable[[Any], bool]
    expected: str


def at_least(least: float, words: str = "") -> Within:
    """Finite numbers of `least` or more."""
    return Within(lambda value: least <= value < float("inf"), words or f"{least} or more")


def one_of(choices: tuple[str, ...]) -> Within:
    """Exactly these words."""
    return Within(lambda value: value in choices, f"one of {', '.join(choices)}")


@dataclass(frozen=True)
class Setting:
    """A field's declaration.

    help: one sentence for `--help` and `/help`. docs: a longer text in Markdown, for
    docs/profile.md. unset: what applies if nothing is given, if the default itself does not say it.
    flag: the option's name, if it differs from the setting's. in_chat: whether `/set` may change
    it. decides_safety: whether a saved conversation must have been made with the same value.
    in_file: whether a profile may hold it. A setting whose default is None may be None.
    """

    kind: Kind
    help: str
    within: Within | None = None
    choices: tuple[str, ...] = ()
    docs: str = ""
    unset: str = ""
    flag: str = ""
    in_chat: bool = False
    decides_safety: bool = False
    in_file: bool = True
    name: str = ""
    default: Any = None

    @property
    def expected(self) -> str:
        """The type, as errors show it."""
        return self.kind.name + (" | None" if self.default is None else "")

    @property
    def default_words(self) -> str:
        """What applies if nothing is given, in words; empty if nothing applies."""
        if self.unset or self.default is None or self.default == () or self.default == {}:
            return self.unset
        if isinstance(self.default, bool):
            return "yes" if self.default else "no"
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)

    def check(self, value: Any) -> None:
        """Raise `SettingError` for a value of the right type that is out of range."""
        if value is None and self.default is None:
            return
        if self.within is not None and not self.within.holds(value):
            raise SettingError(f"{self.name} is {value!r}; expected {self.within.expected}")

    def read(self, value: Any, source: str) -> Any:
        """Convert an outside value to the setting's own type; raises `SettingError`."""
        if value is None and self.default is None:
            return None
        kinds = self.kind.types
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise SettingError(f"{source}: {self.name} is {value!r}; expected {self.expected}")
        if wrong := self.kind.refuse(value):
            raise SettingError(f"{source}: {self.name} {wrong}")
        try:
            return self.kind.make(value)
        except OverflowError:
            raise SettingError(
                f"{source}: {self.name} is too large; expected {self.expected}"
            ) from None
        except SettingError as error:
            raise SettingError(f"{source}: {error}") from None


def declared(
    default: Any,
    kind: Kind,
    help: str,
    within: Within | None = None,
    *,
    choices: tuple[str, ...] = (),
    docs: str = "",
    unset: str = "",
    flag: str = "",
    in_chat: bool = False,
    decides_safety: bool = False,
    in_file: bool = True,
) -> Any:
    """A dataclass field with its declaration; the arguments are those of `Setting`."""
    within = one_of(choices) if choices else within
    setting = Setting(
        kind, help, within, choices, docs, unset, flag, in_chat, decides_safety, in_file
    )
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata={"setting": setting})
    return field(default=default, metadata={"setting": setting})


@cache
def settings_of(owner: type) -> dict[str, Setting]:
    """The declarations of a dataclass by name; a field without one is not in it."""
    found = {}
    for each in fields(owner):
        if "setting" in each.metadata:
            default = each.default_factory() if callable(each.default_factory) else each.default
            found[each.name] = replace(each.metadata["setting"], name=each.name, default=default)
    return found


def check_declared(settings: Any) -> None:
    """Raise `SettingError` if a field of a dataclass is outside its declared range."""
    for name, setting in settings_of(settings.__class__).items():
        setting.check(getattr(settings, name))


def check_fields(holder: object, checks: Mapping[str, tuple[bool, str]]) -> None:
    """Raise `SettingError` for the first field of `holder` whose check failed.

    checks: by field name, whether the check passed, and what is expected.
    """
    for name, (holds, expected) in checks.items():
        if not holds:
            raise SettingError(f"{name} is {getattr(holder, name)!r}; expected {expected}")
