"""Regular expressions from files, matched in bounded time.

Python's own matcher tries one alternative after another, so a pattern of twenty characters can run
for years. This matcher follows all alternatives at once: for each part of a pattern and each
position in a text, it computes the positions where that part may end only once. It does not support
back references, look-behind, possessive repeats and flags.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

try:
    from re import _parser  # type: ignore[attr-defined]
except ImportError:  # Python 3.10
    import sre_parse as _parser  # type: ignore[no-redef]

MAX_PATTERN = 2000  # characters
MAX_STEPS = 50_000  # trials of a part of a pattern at a position of one text
ONE = ("LITERAL", "NOT_LITERAL", "ANY", "IN")  # operators that take one character
REPEATS, AHEAD = ("MAX_REPEAT", "MIN_REPEAT"), ("ASSERT", "ASSERT_NOT")
CATEGORIES: dict[str, Callable[[str], bool]] = {
    "CATEGORY_DIGIT": str.isdecimal,
    "CATEGORY_SPACE": str.isspace,
    "CATEGORY_WORD": lambda character: character.isalnum() or character == "_",
}
EMPTY_IS_INSIDE = re.fullmatch(r"\B", "") is not None  # as Python means it since 3.14
Node = tuple[Any, Any]  # an operator of Python's parser and its argument
Ends = frozenset[int]


class PatternError(ValueError):
    """A pattern is not a regular expression, or uses an unsupported feature."""


class Pattern:
    """A regular expression over module names.

    Raises `PatternError` for a malformed or unsupported pattern, at once or during a match.
    """

    def __init__(self, source: str):
        if len(source) > MAX_PATTERN:
            raise PatternError(f"it has {len(source)} characters; expected at most {MAX_PATTERN}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about syntax that Python may change later
                tree = _parser.parse(source)
        except (re.error, OverflowError, RecursionError) as error:
            raise PatternError(f"it is not a regular expression ({error})") from None
        if tree.state.flags != re.UNICODE:
            raise PatternError("it sets flags, as (?i) does; write both cases out")
        self.nodes: list[Node] = list(tree)
        check(self.nodes)
        straight = all(str(operator) in ONE for operator, _ in self.nodes)
        self.straight = re.compile(source) if straight else None  # no alternatives, so it is fast

    def fullmatch(self, name: str) -> bool:
        """Whether the whole name matches, as with `re.fullmatch`."""
        return self._ends_with(name, (0,))

    def ends(self, name: str) -> bool:
        """Whether the name matches from its beginning or from after a dot to its end."""
        return self._ends_with(name, (0, *(at + 1 for at, each in enumerate(name) if each == ".")))

    def _ends_with(self, name: str, starts: Sequence[int]) -> bool:
        if self.straight is not None:
            return any(self.straight.fullmatch(name, start) is not None for start in starts)
        return len(name) in Matcher(name).sequence(self.nodes, frozenset(starts))


def check(nodes: Iterable[Node]) -> None:
    """Raise `PatternError` for an operator that `Matcher` does not support."""
    for operator, argument in nodes:
        name = str(operator)
        if name in REPEATS:
            check(argument[2])
        elif name == "SUBPATTERN" and not (argument[1] or argument[2]):
            check(argument[3])
        elif name == "SUBPATTERN":
            raise PatternError("it sets flags, as (?i:...) does; write both cases out")
        elif name == "BRANCH":
            for each in argument[1]:
                check(each)
        elif name in AHEAD and argument[0] > 0:
            check(argument[1])
        elif name not in (*ONE, "AT"):
            kind = "look-behind" if name in AHEAD else name.lower().replace("_", " ")
            raise PatternError(f"it has a {kind}, which minisafe does not support")


class Matcher:
    """One text, with the results found so far; raises `PatternError` after `MAX_STEPS`."""

    def __init__(self, text: str):
        self.text, self.steps = text, 0
        self.known: dict[tuple[int, int], Ends] = {}  # (id of a node, start) -> ends

    def sequence(self, nodes: Iterable[Node], starts: Ends) -> Ends:
        """The positions where a sequence of nodes may end."""
        for node in nodes:
            starts = frozenset().union(*(self.node(node, start) for start in starts))
        return starts

    def node(self, node: Node, start: int) -> Ends:
        """The positions where one node may end."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise PatternError("it takes too long to match; use a simpler one")
        key = (id(node), start)
        if key not in self.known:
            self.known[key] = self._node(str(node[0]), node[1], frozenset((start,)), start)
        return self.known[key]

    def _node(self, name: str, argument: Any, here: Ends, start: int) -> Ends:
        if name in REPEATS:
            least, most, nodes = argument
            return self.repeat(least, int(most), nodes, here)
        if name == "SUBPATTERN":
            return self.sequence(argument[3], here)
        if name == "BRANCH":
            return frozenset().union(*(self.sequence(each, here) for each in argument[1]))
        if name in AHEAD:
            found = bool(self.sequence(argument[1], here))
            return here if found == (name == "ASSERT") else frozenset()
        if name == "AT":
            return here if self.at(str(argument), start) else frozenset()
        fits = start < len(self.text) and fits_one(name, argument, self.text[start])
        return frozenset((start + 1,)) if fits else frozenset()

    def repeat(self, least: int, most: int, nodes: Iterable[Node], starts: Ends) -> Ends:
        """Ends after `least` to `most` rounds. A round that ends where it began may be left out or
        repeated, so rounds beyond the text's length + 1 add nothing new."""
        rounds = len(self.text) + 1
        for _ in range(min(least, rounds)):
            before, starts = starts, self.sequence(nodes, starts)
            if starts == before:
                break
        found = new = starts
        for _ in range(min(most - least, rounds)):
            new = self.sequence(nodes, new) - found
            if not new:
                break
            found |= new
        return found

    def at(self, name: str, place: int) -> bool:
        """Whether an anchor matches at a position."""
        if name in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            return place == 0
        if name == "AT_END":  # a newline may follow
            return self.text[place:] in ("", "\n")
        if name == "AT_END_STRING":
            return place == len(self.text)
        if not self.text:
            return name == "AT_NON_BOUNDARY" and EMPTY_IS_INSIDE
        word = CATEGORIES["CATEGORY_WORD"]
        left, right = self.text[max(0, place - 1) : place], self.text[place : place + 1]
        return (word(left) != word(right)) == (name == "AT_BOUNDARY")


def fits_one(name: str, argument: Any, character: str) -> bool:
    """Whether an operator for one character matches this character."""
    if name == "ANY":
        return character != "\n"
    if name in ("LITERAL", "NOT_LITERAL"):
        return bool(ord(character) == argument) == (name == "LITERAL")
    negated = str(argument[0][0]) == "NEGATE"
    return any(in_set(str(kind), value, character) for kind, value in argument) != negated


def in_set(kind: str, value: Any, character: str) -> bool:
    """Whether one item of a [set] contains a character."""
    if kind == "LITERAL":
        return bool(ord(character) == value)
    if kind == "RANGE":
        return bool(value[0] <= ord(character) <= value[1])
    if kind == "CATEGORY":
        name = str(value)
        return CATEGORIES[name.replace("NOT_", "")](character) != ("NOT_" in name)
    return False  # NEGATE, which `fits_one` handles
