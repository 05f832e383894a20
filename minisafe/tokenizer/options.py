"""Template options: names and values for the chat template besides the messages."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from minisafe.errors import SettingError
from minisafe.files.display import one_line

Scalar = str | int | float | bool | None
MOST_OPTIONS, MOST_OPTION_CHARACTERS = 64, 4096
WORDS: dict[str, Scalar] = {"true": True, "false": False, "null": None, "none": None}
NUMBER = re.compile(r"-?\d{1,18}(\.\d{1,18})?([eE][-+]?\d{1,3})?")
# names that every template receives or defines; an option must not replace them
GIVEN = frozenset(
    {
        "messages", "tools", "documents", "add_generation_prompt", "raise_exception",
        "strftime_now", "range", "dict", "lipsum", "cycler", "joiner", "namespace", "loop", "self",
        "varargs", "kwargs", "caller", "none", "true", "false", "continue_final_message",
        "chat_template", "conversation",
    }
)  # fmt: skip
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


def parse_option(text: str) -> tuple[str, Scalar]:
    """(name, value) of `NAME=VALUE`: true, false, null, a number, or a string. A value in double
    quotes is always a string. Raises `SettingError`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise SettingError(
            f"the template option {one_line(text, 80)!r} has no value; expected NAME=VALUE, "
            "such as enable_thinking=false"
        )
    if value.lower() in WORDS:
        return name, WORDS[value.lower()]
    if NUMBER.fullmatch(value):
        return name, float(value) if re.search("[.eE]", value) else int(value)
    if len(value) > 1 and value[0] == value[-1] == '"':
        try:
            return name, str(json.loads(value))
        except ValueError:
            pass  # a string with quotes in it
    return name, value


def check_options(options: Mapping[str, Any]) -> dict[str, Scalar]:
    """Valid template options; raises `SettingError` for others."""
    if len(options) > MOST_OPTIONS:
        raise SettingError(f"got {len(options)} template options; expected at most {MOST_OPTIONS}")
    for name, value in options.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise SettingError(
                f"the template option {one_line(str(name), 80)!r} is not a valid name; expected "
                "letters, digits and _, such as enable_thinking"
            )
        if name in GIVEN or name.endswith("_token"):
            raise SettingError(
                f"the template option {name!r} is reserved; every template receives this name"
            )
        check_option(name, value)
    return dict(options)


def check_option(name: str, value: Any) -> None:
    """Raise `SettingError` unless the value is a number, a string, true, false or null."""
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingError(f"the template option {name} is {value}; expected a finite number")
    if isinstance(value, str):
        if len(value) > MOST_OPTION_CHARACTERS:
            raise SettingError(
                f"the template option {name} has {len(value):,} characters; expected at most "
                f"{MOST_OPTION_CHARACTERS:,}"
            )
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise SettingError(f"the template option {name} contains half of a surrogate pair")
    elif isinstance(value, int) and not isinstance(value, bool):
        if abs(value) >= 1 << 63:
            raise SettingError(f"the template option {name} is too large; expected 64 bits")
    elif value is not None and not isinstance(value, (bool, float)):
        raise SettingError(
            f"the template option {name} is a {type(value).__name__}; expected true, false, a "
            "number, a string or null"
        )
