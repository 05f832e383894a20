"""Text as judges compare it: lower case, plain apostrophes, single spaces, no contractions."""

from __future__ import annotations

import re

_CONTRACTIONS = (
    (r"\bcan(?:'t| not)\b", "cannot"), (r"\bwon't\b", "will not"), (r"\bshan't\b", "shall not"),
    (r"n't\b", " not"), (r"'m\b", " am"), (r"'re\b", " are"), (r"'ll\b", " will"),
    (r"'d\b", " would"), (r"'ve\b", " have"), (r"\b(it|that|this)'s\b", r"\1 is"),
)  # fmt: skip
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u00b4\u0060\uff07", "'"))


def plain(text: str) -> str:
    """The text in lower case, with plain apostrophes, single spaces and no contractions."""
    found = " ".join(text.translate(_APOSTROPHES).lower().split())
    for contraction, words in _CONTRACTIONS:
        found = re.sub(contraction, words, found)
    return found
