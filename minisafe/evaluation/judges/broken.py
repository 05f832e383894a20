"""Whether an answer to an English question is broken text, by rules that need no model. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

RULES = 1  # the number of this version of the rules
FEWEST = 5  # words
LONGEST = 8  # words of a phrase that repeats
FEW_OTHER = 0.2  # share of letters of another script that a text may have
ENOUGH = 20  # words from which its kinds can be told
FEW_NEW = 0.5  # share of different word triples that a text must have
# common English words, but for those that other languages in Latin letters have, too
ENGLISH = frozenset({
    "the", "and", "that", "it", "with", "this", "have", "from", "not", "you", "your", "which",
    "their", "they", "them", "can", "cannot", "if", "would", "what", "when", "how", "our", "should",
    "there", "were", "been", "because", "about", "using", "use", "make", "it's", "i'm", "i'll",
    "don't", "can't", "here's", "sorry", "these", "first", "then", "some", "into", "other", "more",
    "only", "also", "could", "does", "here", "help", "any", "just",
})  # fmt: skip
CODE = "```"  # a program is in no language

_WORDS = re.compile(r"\w+(?:['\u2019]\w+)*")
_RUN = re.compile(r"([^\W_]|[!?,;:%&@])\1{9}")  # ten times the same; rulers and dots are no words
_LATIN = re.compile(r"LATIN|MICRO|ORDINAL")


def broken(text: str) -> str | None:
    """Why an answer to an English question is broken: "short" (under five words), "repeats",
    "script" (not Latin) or "language" (no common English word); None if it is intact.

    Whether an intact text makes sense, this cannot tell.
    """
    if other_letters(text) > FEW_OTHER:
        return "script"
    words = [word.lower().replace("\u2019", "'") for word in _WORDS.findall(text)]
    if _RUN.search(text) or repeats(words):
        return "repeats"
    if len(words) < FEWEST:
        return "short"
    if len(words) >= ENOUGH and CODE not in text and not ENGLISH & set(words):
        return "language"
    return None


def other_letters(text: str) -> float:
    """The share of a text's letters, 0 to 1, that are of another script than Latin."""
    letters = [each for each in text if each.isalpha()]
    other = sum(not _LATIN.match(unicodedata.name(each, "")) for each in letters)
    return other / max(1, len(letters))


def repeats(words: Sequence[str]) -> bool:
    """Whether a word stands four times in a row or a phrase three times, or half of a longer text's
    word triples were there before."""
    for size in range(1, min(LONGEST, len(words)) + 1):
        times = 4 if size == 1 else 3
        alike = 0  # words in a row that equal the one `size` before them
        for one, other in zip(words, words[size:], strict=False):
            alike = alike + 1 if one == other else 0
            if alike >= size * (times - 1):
                return True
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return len(words) >= ENOUGH and len(set(triples)) < FEW_NEW * len(triples)
