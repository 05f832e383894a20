"""Chat templates: the Jinja that runs them, and marks that hide text from control tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Any

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
# private-use characters stand in for text that must not be read as control tokens
MARKS = (range(0xE000, 0xF8FF), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


class Marks:
    """Private-use characters, unused in the chat, that stand for text while the template runs."""

    def __init__(self, messages: Sequence[Message]):
        present = set("".join(message["content"] for message in messages))
        codes = chain.from_iterable(MARKS)
        self.free = (chr(code) for code in codes if chr(code) not in present)
        self.texts: dict[str, str] = {}
        self.marks: dict[str, str] = {}  # by the text that they stand for
        self.answers: dict[str, int] = {}

    def hide(self, text: str, control: Mapping[str, Any]) -> str:
        for token in sorted(control, key=len, reverse=True):
            if token in text:
                mark = self.marks.get(token) or next(self.free)
                self.texts[mark], self.marks[token] = token, mark
                text = text.replace(token, mark)
        return text

    def stand_for(self, number: int) -> str:
        mark = next(self.free)
        self.answers[mark] = number
        return mark

    def used(self, text: str) -> bool:
        return any(mark in text for mark in self.texts)

    def show(self, text: str) -> str:
        for mark, token in self.texts.items():
            text = text.replace(mark, token)
        return text

    def split_answers(self, text: str) -> list[tuple[int | None, str]]:
        """(message number or None, the text that follows that answer) in order."""
        if not self.answers:
            return [(None, text)]
        pieces = re.split(f"([{''.join(self.answers)}])", text)
        numbers = [self.answers[mark] for mark in pieces[1::2]]
        return list(zip([None, *numbers], pieces[::2], strict=True))


def template_environment() -> Any:
    """Jinja as chat templates expect it, in a sandbox that cannot change what it is given."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}` marks answers for training; here it is plain."""

        tags = {"generation"}  # noqa: RUF012 (jinja2's own interface)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
