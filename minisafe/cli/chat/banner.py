"""What a chat says first, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minisafe.session.about import About, read_about
from minisafe.session.acted import Acted
from minisafe.session.profile import default_profile

RULE = "words are held back that an unsafe version of the model would choose"
OTHER_RULE = "a second model corrects the words that are chosen"
VECTOR = "the model is turned towards safe answers"
REVERSED = "the model is turned TOWARDS HARM, for research"
QUESTIONS = 3


def about_of(flags: Mapping[str, Any]) -> About:
    """What the profile that the flags name says; nothing of a base that they name instead."""
    if flags.get("base") is not None:
        return About()
    return read_about(flags.get("profile") or default_profile())


def in_plain_words(applied: Acted) -> str:
    """What safety does, for a person who knows nothing of it."""
    if not applied.safe:
        return "Safe decoding is off: the model answers as it is."
    vector = REVERSED if applied.sa is not None and applied.sa.reversed else VECTOR
    parts = [(RULE, applied.sgds), (OTHER_RULE, applied.rule), (vector, applied.sa)]
    return f"Safe decoding is on: {', and '.join(text for text, acts in parts if acts)}."


def banner(applied: Acted, about: About) -> str:
    """The lines that a chat at a terminal begins with."""
    lines = [in_plain_words(applied)]
    if about.knows:
        lines.append(about.knows)
    for number, question in enumerate(about.questions[:QUESTIONS]):
        lines.append(("Try:  " if number == 0 else "      ") + question)
    lines.append("/help lists commands; Ctrl-C ends an answer, Ctrl-D the chat.")
    return "\n".join(lines)
