"""The streams after the base: what each is made from, and what stands before its conversation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minisafe.errors import SafetyError, SettingError
from minisafe.files import parse_json, read_text
from minisafe.guidance import RULES
from minisafe.session.settings import Settings
from minisafe.tokenizer import Message

# by a stream's name, the settings that may say what it is; the first names weights
SOURCES = {
    "expert": ("expert", "expert_system"),
    "anti_expert": ("anti_expert", "anti_system"),
    "anchor": ("anchor", "anchor_system", "anchor_shots"),
}
SYSTEMS = {"expert": "expert_system", "anti_expert": "anti_system", "anchor": "anchor_system"}
MOST_BYTES = 4 << 20


def given_for(settings: Any, name: str) -> list[str]:
    """The settings that are given for a stream."""
    return [each for each in SOURCES[name] if getattr(settings, each) is not None]


def flags_of(names: Iterable[str]) -> str:
    """Settings as flags: "--anchor or --anchor-system"."""
    flags = [f"--{name.replace('_', '-')}" for name in names]
    return f"{', '.join(flags[:-1])} or {flags[-1]}" if len(flags) > 1 else flags[0]


def check_others(settings: Settings) -> None:
    """Raise unless each stream that the rule reads is given once, and no other one is."""
    for name in SOURCES:
        given, plain = given_for(settings, name), name.replace("_", "-")
        if name in settings.others and len(given) != 1:
            raise SafetyError(
                f"the rule {settings.rule} reads one {plain}, but {len(given)} are given; expected "
                f"one of {flags_of(SOURCES[name])}"
            )
        if name not in settings.others and given and name != "expert":
            raise SettingError(
                f"{flags_of(given)} is given, but the rule {settings.rule} reads no {plain}"
            )


def source_of(settings: Settings, name: str) -> Path | None:
    """The directory that a stream's weights are in; None: the base itself."""
    found: Path | None = getattr(settings, name)
    return found


def fronts(
    settings: Settings, shots: tuple[Message, ...], n_streams: int
) -> list[tuple[Message, ...]]:
    """The messages before the conversation, for the base and each stream after it."""
    names = ("base", *RULES[settings.rule].others)[:n_streams]

    def front(name: str) -> tuple[Message, ...]:
        own = None if name == "base" else getattr(settings, SYSTEMS[name])
        system = settings.system if own is None else own
        first: tuple[Message, ...] = ({"role": "system", "content": system},) if system else ()
        return (*first, *shots) if name == "anchor" else first

    return [front(name) for name in names]


def read_shots(path: Path | None) -> tuple[Message, ...]:
    """Demonstrations as turns; raises `SettingError` for another form of file."""
    if path is None:
        return ()
    found = parse_json(read_text(path, MOST_BYTES, SettingError), str(path), SettingError)
    messages: list[Message] = []
    for each in found if isinstance(found, list) else [None]:
        texts = [each.get(name) for name in ("input", "output")] if isinstance(each, dict) else []
        if len(texts) != 2 or not all(isinstance(text, str) and text.strip() for text in texts):
            raise SettingError(
                f'{path}: expected a list of {{"input": question, "output": answer}}, one or more'
            )
        for role, text in zip(("user", "assistant"), texts, strict=True):
            messages.append({"role": role, "content": str(text)})
    if not messages:
        raise SettingError(f"{path}: holds no demonstrations; expected one or more")
    return tuple(messages)
