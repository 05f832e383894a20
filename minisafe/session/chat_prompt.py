"""A conversation that waits for an answer, as a prompt; and what a session makes of any prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from minisafe.errors import PromptError
from minisafe.tokenizer import Message

ROLES = ("system", "user", "assistant")
LONGEST = 4 << 20  # characters of a message


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation that ends with the user's turn, and how the answer begins.

    messages: `{"role": ..., "content": ...}` each. A system message may come first; then user and
    assistant take turns. prefill: text with which the answer begins, as though the model had
    written it; "" for none. Control tokens in any of it stay text.

    Raises `PromptError` for a conversation of another form.
    """

    messages: tuple[Message, ...]
    prefill: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", tuple(dict(each) for each in self.messages))
        check_messages(self.messages)
        check_content(self.prefill, "the prefill", empty=True)

    @classmethod
    def of(cls, text: str) -> ChatPrompt:
        """One message of the user's."""
        return cls(({"role": "user", "content": text},))

    @property
    def system(self) -> str | None:
        """The system message, if there is one."""
        first = self.messages[0]
        return first["content"] if first["role"] == "system" else None

    @property
    def turns(self) -> tuple[Message, ...]:
        """The messages after the system message."""
        return self.messages if self.system is None else self.messages[1:]

    @property
    def question(self) -> str:
        """The user's last message."""
        return self.messages[-1]["content"]

    @property
    def is_first_turn(self) -> bool:
        """Whether it is one message of the user's and nothing else."""
        return len(self.messages) == 1 and not self.prefill

    def asking(self, text: str) -> ChatPrompt:
        """The same with another last message."""
        return replace(self, messages=(*self.messages[:-1], {"role": "user", "content": text}))

    def to_json(self) -> dict[str, Any]:
        """As `from_json` reads it."""
        return {"messages": [dict(each) for each in self.messages], "prefill": self.prefill}

    @classmethod
    def from_json(cls, value: Any, where: str) -> ChatPrompt:
        """From `{"messages": [...], "prefill": ...}`, or from the list of messages alone. Other
        fields are left to the caller. Raises `PromptError`, which says where."""
        if isinstance(value, list):
            value = {"messages": value}
        if not isinstance(value, Mapping) or not isinstance(value.get("messages"), list):
            raise PromptError(
                f'{where}: no conversation; expected {{"messages": [{{"role": "user", "content": '
                "...}]}, or the list alone"
            )
        messages, prefill = value["messages"], value.get("prefill") or ""
        try:
            for each in messages:
                if not isinstance(each, Mapping) or set(each) != {"role", "content"}:
                    raise PromptError("a message is not as expected; give role and content")
            return cls(tuple(messages), prefill)
        except PromptError as error:
            raise PromptError(f"{where}: {error}") from None


def as_chat(prompt: str | ChatPrompt) -> ChatPrompt:
    """A text as a chat's first message."""
    return ChatPrompt.of(prompt) if isinstance(prompt, str) else prompt


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt's ids by stream, and what a request needs to know of it.

    answers: places `[start, stop)` in the base's ids at which answers stand; the last one, which is
    to be given, is open. context: ids whose running text the answer continues. gated: whether it is
    one that a gate is calibrated for. alone: how harmful its worst part is by itself, if that part
    alone is answered, or if it was left to the base. left: whether it was: no part is harmful.
    """

    ids: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[int, int | None], ...]
    context: tuple[int, ...] = ()
    gated: bool = False
    alone: float | None = None
    left: bool = False

    @classmethod
    def of(cls, ids: tuple[tuple[int, ...], ...]) -> EncodedPrompt:
        """Ids by stream, which an answer follows."""
        return cls(ids, ((len(ids[0]), None),))


def check_messages(messages: Sequence[Message]) -> None:
    """Raise `PromptError` unless a conversation waits for an answer."""
    if not messages:
        raise PromptError("the conversation is empty; expected at least one message")
    for number, each in enumerate(messages):
        if each.get("role") not in ROLES:
            raise PromptError(
                f"message {number} has the role {each.get('role')!r}; expected one of "
                f"{', '.join(ROLES)}"
            )
        check_content(each.get("content"), f"message {number}", empty=False)
    roles = [each["role"] for each in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    expected = [("user", "assistant")[number % 2] for number in range(len(turns))]
    if turns != expected or not turns or turns[-1] != "user":
        raise PromptError(
            f"the conversation's roles are {', '.join(roles)}; expected user and assistant by "
            "turns, user first and last, after at most one system message"
        )


def check_content(content: Any, what: str, empty: bool) -> None:
    """Raise `PromptError` unless it is text."""
    if not isinstance(content, str):
        raise PromptError(f"{what} is {type(content).__name__}; expected text")
    if not empty and not content.strip():
        raise PromptError(f"{what} is empty; expected some text")
    if len(content) > LONGEST:
        raise PromptError(f"{what} has {len(content):,} characters; expected at most {LONGEST:,}")
