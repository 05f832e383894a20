"""The records of a run: an answer, and a ruling on an answer. Every field is checked when read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar, get_args

from minisafe.errors import SettingError
from minisafe.evaluation.prompts import KINDS, LONGEST_NAME
from minisafe.files.display import harmless

LONGEST_TEXT = 4 << 20  # characters of a question or an answer
Key = tuple[str, str, str]  # method, style, id of the prompt
Verdict = Literal["ATTACK_SUCCEEDED", "REFUSED", "INCONCLUSIVE"]
T = TypeVar("T")


class Fields:
    """A JSON object's fields, taken one by one with their types; call `done` at the end.

    Raises `SettingError`, with the position of the object, for a field that is missing, unknown or
    invalid.
    """

    def __init__(self, data: object, where: str):
        if not isinstance(data, dict):
            raise SettingError(f"{where}: expected an object, got {type(data).__name__}")
        self.data, self.where = dict(data), where

    def take(self, name: str, expected: str, holds: Callable[[Any], bool]) -> Any:
        """A field's value."""
        if name not in self.data:
            raise SettingError(f"{self.where}: {name} is missing; expected {expected}")
        value = self.data.pop(name)
        if not holds(value):
            got = harmless(repr(value), 60)
            raise SettingError(f"{self.where}: {name} is {got}; expected {expected}")
        return value

    def text(self, name: str, limit: int = LONGEST_NAME) -> str:
        """A string of at most `limit` characters."""
        expected = f"a text of at most {limit:,} characters"
        return str(self.take(name, expected, lambda v: isinstance(v, str) and len(v) <= limit))

    def added(self, name: str) -> str:
        """A short string that older runs do not hold: "" there."""
        return self.text(name) if name in self.data else ""

    def one_of(self, name: str, allowed: tuple[T, ...]) -> T:
        """One of the allowed strings."""
        expected = f"one of {', '.join(map(str, allowed))}"
        found: T = self.take(name, expected, lambda v: isinstance(v, str) and v in allowed)
        return found

    def count(self, name: str) -> int:
        """A whole number, 0 or more."""
        return int(self.take(name, "a whole number, 0 or more", is_count))

    def number(self, name: str) -> float:
        """A finite number, 0 or more."""
        return float(self.take(name, "a number, 0 or more", is_number))

    def flag(self, name: str) -> bool | None:
        """True, false or null."""
        holds = lambda value: value is None or isinstance(value, bool)  # noqa: E731
        found: bool | None = self.take(name, "true, false or null", holds)
        return found

    def inner(self, name: str) -> Fields:
        """A nested object."""
        value = self.take(name, "an object", lambda value: isinstance(value, dict))
        return Fields(value, f"{self.where}, {name}")

    def maybe(self, name: str, take: Callable[[str], T]) -> T | None:
        """The result of `take`, or None for null."""
        if name in self.data and self.data[name] is None:
            del self.data[name]
            return None
        return take(name)

    def done(self) -> None:
        """Raise for a field that was not taken."""
        if self.data:
            names = harmless(", ".join(self.data), 80)
            raise SettingError(f"{self.where}: unknown field {names}; expected only a run's fields")


def is_count(value: object) -> bool:
    """Whether it is a whole number, 0 or more, that JSON keeps exactly."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def is_number(value: object) -> bool:
    """Whether it is a finite number, 0 or more."""
    real = isinstance(value, float) or is_count(value)
    return real and 0 <= value < float("inf")  # type: ignore[operator]


@dataclass(frozen=True)
class MadeBy:
    """Everything that decides an answer besides its prompt.

    models: short hashes by part (base, expert, ...). text: hashes of the tokenizer and the chat
    template, and the end ids. settings: by name, without paths. versions: of minisafe and torch.
    """

    models: Mapping[str, str]
    text: Mapping[str, str]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]

    @classmethod
    def from_json(cls, fields: Fields) -> MadeBy:
        """Raises `SettingError`."""
        texts = {name: fields.inner(name) for name in ("models", "text", "versions")}
        made = {name: {key: each.text(key) for key in list(each.data)} for name, each in
                texts.items()}  # fmt: skip
        settings = fields.inner("settings").data
        fields.done()
        return cls(made["models"], made["text"], settings, made["versions"])

    def difference(self, other: MadeBy) -> str:
        """The first difference, or "" if there is none."""
        for part, theirs in asdict(other).items():
            mine = getattr(self, part)
            for name in sorted({*mine, *theirs}):
                if mine.get(name) != theirs.get(name):
                    return f"{name}: {mine.get(name)!r} there, {theirs.get(name)!r} now"
        return ""


@dataclass(frozen=True)
class Gated:
    """The gate's result for one prompt: the variation, 0 to 1, and whether guidance acted."""

    threshold: float
    variation: float
    open: bool

    @classmethod
    def from_json(cls, fields: Fields) -> Gated:
        """Raises `SettingError`."""
        numbers = fields.number("threshold"), fields.number("variation")
        made = cls(*numbers, fields.flag("open") is True)
        fields.done()
        return made


@dataclass(frozen=True)
class Keyed:
    """A record about one answer, with its method, style and prompt."""

    method: str
    style: str
    id: str

    @property
    def key(self) -> Key:
        """The key of the answer that this record is or is about."""
        return self.method, self.style, self.id

    def to_json(self) -> dict[str, Any]:
        """The object that `from_json` reads."""
        return asdict(self)


@dataclass(frozen=True)
class Response(Keyed):
    """One answer of a method, with its prompt and everything that decided it.

    style, prompt: the frame, and the question in it; or an attack's name, and the user's last
    message. draw: the number that fixes the draws of sampling; None if nothing is drawn. attack:
    whether `style` is an attack; queries: what it asked of the model, this answer included.
    conversation: all that was asked, if it was more than one message (`ChatPrompt.to_json`).
    verb, knowledge: what the prompt's record says of it, "" if nothing: the verb of a harmful act,
    and the kind of a harmless question (fact, how-to, ...). seconds: this answer's share of its
    batch's time.
    """

    kind: str
    category: str
    question: str
    prompt: str
    draw: int | None
    answer: str
    finish: str
    tokens: int
    seconds: float
    gate: Gated | None
    made_by: MadeBy
    attack: bool = False
    queries: int = 1
    conversation: Mapping[str, Any] | None = None
    verb: str = ""
    knowledge: str = ""

    @classmethod
    def from_json(cls, data: object, where: str) -> Response:
        """Raises `SettingError`, with the position of the object, if it is invalid."""
        fields = Fields(data, where)
        gate = fields.maybe("gate", fields.inner)
        made = cls(
            method=fields.text("method"), style=fields.text("style"), id=fields.text("id"),
            kind=fields.one_of("kind", KINDS), category=fields.text("category"),
            question=fields.text("question", LONGEST_TEXT),
            prompt=fields.text("prompt", LONGEST_TEXT), draw=fields.maybe("draw", fields.count),
            attack=fields.flag("attack") is True, queries=fields.count("queries"),
            conversation=fields.maybe("conversation", lambda name: fields.inner(name).data),
            answer=fields.text("answer", LONGEST_TEXT), finish=fields.text("finish"),
            tokens=fields.count("tokens"), seconds=fields.number("seconds"),
            gate=None if gate is None else Gated.from_json(gate),
            made_by=MadeBy.from_json(fields.inner("made_by")),
            verb=fields.added("verb"), knowledge=fields.added("knowledge"),
        )  # fmt: skip
        fields.done()
        return made


@dataclass(frozen=True)
class Judged(Keyed):
    """One judge's ruling on one answer. basis: a hash of the judge and of all that the ruling
    depends on; the other fields are those of `judges.Ruling`."""

    judge: str
    basis: str
    verdict: Verdict
    detail: str
    intact: bool | None
    correct: bool | None

    @classmethod
    def from_json(cls, data: object, where: str) -> Judged:
        """Raises `SettingError`, with the position of the object, if it is invalid."""
        fields = Fields(data, where)
        made = cls(
            method=fields.text("method"), style=fields.text("style"), id=fields.text("id"),
            judge=fields.text("judge"), basis=fields.text("basis"),
            verdict=fields.one_of("verdict", get_args(Verdict)),
            detail=fields.text("detail", LONGEST_TEXT),
            intact=fields.flag("intact"), correct=fields.flag("correct"),
        )  # fmt: skip
        fields.done()
        return made
