"""A tokenizer's chat template: found among its settings, run by a `Runner`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from minisafe.display import one_line
from minisafe.errors import SettingError, TokenizerError
from minisafe.tokenizer import runner

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
MOST_CHARACTERS = 1 << 20  # of a template; the longest in use has some 20,000
MOST_OPTIONS, MOST_OPTION_CHARACTERS = 64, 4096
# what a template is given, or has of its own: an option must not stand in for it
GIVEN = frozenset(
    {
        "messages", "tools", "documents", "add_generation_prompt", "raise_exception",
        "strftime_now", "range", "dict", "lipsum", "cycler", "joiner", "namespace", "loop", "self",
        "varargs", "kwargs", "caller", "none", "true", "false", "continue_final_message",
        "chat_template", "conversation",
    }
)  # fmt: skip
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
Part = runner.Part
Scalar = str | int | float | bool | None


class Template:
    """The chat template of a tokenizer, with the special tokens and options that it may name.

    Raises `TokenizerError` where there is none; what is wrong in it shows when it first runs.
    """

    def __init__(
        self, source: Any, special: Mapping[str, str], options: Mapping[str, Scalar], where: str
    ):
        self.where = where
        self.source = the_default(source, where)
        self.names = {**options, **special}
        self.options = tuple(options)
        self.runner = runner.shared()
        self.checked = not options

    def check(self) -> None:
        """Compile it; raises `TokenizerError`."""
        self.ask([], [])

    def write(
        self, messages: Sequence[Message], parts: Sequence[Part], required: int = 1
    ) -> list[str | None]:
        """A text for each part: for its first `length` messages, with some contents put in, with
        or without generation prompt. None where the template refuses one after the `required`.

        Raises `TokenizerError`, and `PromptError` where the messages are no valid text.
        """
        texts: list[str | None] = []
        for chunk in runner.chunks(parts):
            for text in self.ask(messages, chunk):
                if isinstance(text, runner.TemplateError):
                    if len(texts) < required:
                        raise self.error(text)
                    texts.append(None)
                else:
                    texts.append(text)
        return texts

    def ask(
        self, messages: Sequence[Message], parts: Sequence[Part]
    ) -> list[str | runner.TemplateError]:
        """What the runner gives for at most `child.MOST_TEXTS` parts."""
        request = {
            "template": self.source, "names": self.names,
            "messages": [dict(message) for message in messages], "texts": parts,
        }  # fmt: skip
        try:
            reply = self.runner.ask(request)
        except runner.TemplateError as error:
            raise self.error(error) from None
        if not self.checked:
            self.check_options(reply["names"])
        return runner.texts_of(reply)

    def check_options(self, read: Sequence[str]) -> None:
        """Raise `SettingError` for an option that the template never reads."""
        for name in self.options:
            if name not in read:
                known = sorted(set(read) - GIVEN - set(self.names))
                expected = f"it reads {', '.join(known)}" if known else "it reads no option"
                raise SettingError(
                    f"{self.where}: the chat template does not read the option {name!r}; "
                    + one_line(expected, 300)
                )
        self.checked = True

    def error(self, why: Exception) -> TokenizerError:
        return TokenizerError(f"{self.where}: the chat template {one_line(str(why), 500)}")


def the_default(source: Any, where: str) -> str:
    """The template among a tokenizer's settings; raises `TokenizerError`."""
    if isinstance(source, list):  # named templates, as [{"name": ..., "template": ...}]
        named = [each for each in source if isinstance(each, dict)]
        if len(named) < len(source) or not all(isinstance(e.get("name"), str) for e in named):
            raise TokenizerError(
                f"{where}: chat_template is a list of something else than named templates; "
                'expected [{"name": "default", "template": ...}]'
            )
        found = {each["name"]: each.get("template") for each in named}
        if "default" not in found:
            names = one_line(", ".join(found), 200)
            raise TokenizerError(f"{where}: no chat template named default, only {names}")
        source = found["default"]
    if not isinstance(source, str):
        raise TokenizerError(
            f"{where}: this model has no chat template; use a plain prompt (generate)"
        )
    if len(source) > MOST_CHARACTERS:
        raise TokenizerError(
            f"{where}: the chat template has {len(source):,} characters; expected at most "
            f"{MOST_CHARACTERS:,}"
        )
    try:
        source.encode()
    except UnicodeEncodeError:
        raise TokenizerError(
            f"{where}: the chat template is malformed (it holds half of a surrogate pair)"
        ) from None
    return source


def check_options(options: Mapping[str, Any], special: Sequence[str] = ()) -> dict[str, Scalar]:
    """Template options as they may be given; raises `SettingError`."""
    if len(options) > MOST_OPTIONS:
        raise SettingError(
            f"{len(options)} template options are given; expected at most {MOST_OPTIONS}"
        )
    for name, value in options.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise SettingError(
                f"the template option {one_line(str(name), 80)!r} is no name; expected letters, "
                "digits and _, such as enable_thinking"
            )
        if name in GIVEN or name in special or name.endswith("_token"):
            raise SettingError(f"the template option {name!r} is what every template is given")
        check_option(name, value)
    return dict(options)


def check_option(name: str, value: Any) -> None:
    """Raise `SettingError` unless the value is a number, a text, true, false or null."""
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingError(f"the template option {name} is {value}; expected a finite number")
    if isinstance(value, str):
        if len(value) > MOST_OPTION_CHARACTERS:
            raise SettingError(
                f"the template option {name} has {len(value):,} characters; expected at most "
                f"{MOST_OPTION_CHARACTERS:,}"
            )
    elif isinstance(value, int) and not isinstance(value, bool):
        if abs(value) >= 1 << 63:
            raise SettingError(f"the template option {name} is too large a number")
    elif value is not None and not isinstance(value, (bool, float)):
        raise SettingError(
            f"the template option {name} is a {type(value).__name__}; expected true, false, a "
            "number, a text or null"
        )
