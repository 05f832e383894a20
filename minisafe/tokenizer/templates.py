"""A tokenizer's chat template: found among its settings, run by a `Runner`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minisafe.errors import SettingError, TokenizerError
from minisafe.files.display import one_line
from minisafe.tokenizer import runner
from minisafe.tokenizer.child import MOST_TEXTS
from minisafe.tokenizer.options import GIVEN, Scalar

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
MOST_CHARACTERS = 1 << 20  # of a template; the longest in use has about 20,000
Part = runner.Part


class Template:
    """The chat template of a tokenizer, with the special tokens and options that it may use.

    Raises `TokenizerError` if there is none; errors in the template show when it first runs.
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

    def __getstate__(self) -> dict[str, Any]:
        """The state for a copy or another process: without the runner, which is per program."""
        return {name: value for name, value in vars(self).items() if name != "runner"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state, runner=runner.shared())

    def check(self) -> None:
        """Compile the template; raises `TokenizerError`."""
        self.ask([], [])

    def write(
        self, messages: Sequence[Message], parts: Sequence[Part], required: int = 1
    ) -> list[str | None]:
        """One text per part: the first `length` messages, with some contents replaced, with or
        without generation prompt. None for a part after the first `required` for which the
        template raises an error.

        Raises `TokenizerError`, and `PromptError` if the messages are not valid text.
        """
        texts: list[str | None] = []
        for start in range(0, len(parts), MOST_TEXTS):
            for text in self.ask(messages, parts[start : start + MOST_TEXTS]):
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
        """The runner's result for at most `MOST_TEXTS` parts."""
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
    """The template in a tokenizer's settings; raises `TokenizerError`."""
    if isinstance(source, list):  # named templates: [{"name": ..., "template": ...}]
        named = [each for each in source if isinstance(each, dict)]
        if len(named) < len(source) or not all(isinstance(e.get("name"), str) for e in named):
            raise TokenizerError(
                f"{where}: chat_template is a list of other things than named templates; "
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
            f"{where}: the chat template is malformed (it contains half of a surrogate pair)"
        ) from None
    return source
