"""Words that wrap while they stream."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisafe.cli.chat.wrap import Wrap, columns

texts = st.text(st.sampled_from("ab, .-é\u0301漢字\U0001f600\n\t   "), max_size=80)
words = st.lists(st.text("abcdefé", min_size=1, max_size=6), max_size=25).map(" ".join)


def wrapped(text: str, width: int | None, cuts: list[int] | None = None) -> str:
    wrap, pieces, start = Wrap(width), [], 0
    for cut in [*sorted(cuts or []), len(text)]:
        pieces.append(wrap.push(text[start:cut]))
        start = max(start, cut)
    return "".join([*pieces, wrap.finish()])


@given(text=texts | words | st.text(max_size=60), width=st.integers(1, 30))
def test_only_blanks_become_newlines(text: str, width: int) -> None:
    shown = wrapped(text, width)
    assert len(shown) == len(text)
    for before, after in zip(text, shown, strict=True):
        assert before == after or (before in " \t" and after == "\n")


@given(text=words, width=st.integers(6, 30))
def test_lines_fit_and_are_as_long_as_can_be(text: str, width: int) -> None:
    lines = wrapped(text, width).split("\n")
    assert all(len(line) <= width for line in lines)
    for line, after in pairwise(lines):
        assert len(line) + 1 + len(after.split(" ")[0]) > width


@given(text=texts, width=st.integers(1, 30), cuts=st.lists(st.integers(0, 80), max_size=8))
def test_pieces_do_not_matter(text: str, width: int, cuts: list[int]) -> None:
    assert wrapped(text, width, [min(cut, len(text)) for cut in cuts]) == wrapped(text, width)


@given(text=texts)
def test_no_terminal_no_wrapping(text: str) -> None:
    wrap = Wrap(None)
    assert "".join(map(wrap.push, text)) + wrap.finish() == text
    assert Wrap(None).push("half a wo") == "half a wo"  # and nothing is held back


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("one two three", 7, "one two\nthree"),
        ("one two three", 8, "one two\nthree"),
        ("a verylongwords b", 6, "a\nverylongwords b"),
        ("a verylongword b", 6, "a\nverylongword\nb"),
        ("漢字 漢字", 6, "漢字\n漢字"),
        ("e\u0301e\u0301e\u0301 xx", 6, "e\u0301e\u0301e\u0301 xx"),
        ("a\tb c", 9, "a\tb\nc"),
        ("one\n\n  two three", 7, "one\n\n  two\nthree"),
        ("one  two", 5, "one\n two"),
    ],
)
def test_where_lines_break(text: str, width: int, expected: str) -> None:
    assert wrapped(text, width) == expected


def test_columns() -> None:
    assert [columns(c) for c in "a漢\u0301\U0001f600\u200d"] == [1, 2, 0, 2, 0]
