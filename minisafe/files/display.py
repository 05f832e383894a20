"""Text that is safe to show, in a terminal or on a page: it cannot command either."""

from __future__ import annotations

import re

# What may steer a terminal or the order of letters: C0 and C1 controls but for newline and tab,
# delete, the bidirectional controls (Unicode, annex 9), and halves of surrogate pairs, which no
# file can hold as UTF-8.
CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


LONGEST = 4000  # characters of one message: a name or an error may hold a file's whole content


def harmless(text: str, limit: int | None = None) -> str:
    """The text with its control characters shown, not sent; as many characters as before.

    limit: most characters; of a longer text the middle is left out.
    """
    if limit is not None and len(text) > limit:
        half = max(1, (limit - 5) // 2)
        text = f"{text[:half]} ... {text[-half:]}"
    return CONTROLS.sub(_shown, text)


def one_line(text: str, limit: int = LONGEST) -> str:
    """A message for a terminal: one line, no control characters, bounded."""
    return harmless(" ".join(text.split()), limit)


def shown(value: object) -> str:
    """A foreign value as an error message quotes it, in at most about 60 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # of very long numbers, of very deep lists
        text = type(value).__name__
    return harmless(text, 60)


def _shown(match: re.Match[str]) -> str:
    """A control character's picture where Unicode has one, else the replacement character."""
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)  # the control pictures block
    return "\u2421" if code == 0x7F else "\ufffd"
