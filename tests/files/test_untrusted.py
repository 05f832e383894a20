"""The one reader of JSON that someone else wrote."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisafe.errors import ConfigError, PromptError
from minisafe.files import MAX_DEPTH, MAX_VALUES, json_lines, parse_json, read_json, read_text

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab"), inner, max_size=4),
    max_leaves=20,
)


@given(values, st.booleans())
def test_what_is_sound_is_read_as_json_reads_it(value: object, ascii: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii), "x") == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"margin": 0.5, "margin": 1e9}', "'margin' is given twice"),
        ('[{"a": {"b": 1, "b": 1}}]', "'b' is given twice"),
        ("NaN", "NaN"),
        ('{"missed": -Infinity}', "-Infinity"),
        ("1e999", "out of range"),
        ('"\\ud800"', "surrogate"),
        ('{"\\uDC00": 1}', "surrogate"),
        ("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "nested too deep"),
        ("[" * 200_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("9" * 10_000, "not valid JSON"),
    ],
)
def test_what_is_not_is_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(PromptError) as caught:
        parse_json(text, "here", PromptError)
    assert says in str(caught.value)
    assert str(caught.value).startswith("here: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_many_small_values_take_no_memory() -> None:
    """12 MB of empty lists would be 256 MB of them."""
    text = "[" + "[]," * MAX_VALUES + "[]]"
    tracemalloc.start()
    with pytest.raises(ConfigError, match="more than 4,000,000 values"):
        parse_json(text, "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_whole_pairs_and_the_deepest_level_are_read() -> None:
    assert parse_json('"\\ud83d\\ude00"', "x") == "\U0001f600"
    parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH, "x")


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 100)
    assert read_text(path, 100) == "x" * 100
    with pytest.raises(ConfigError, match="more than 99 bytes"):
        read_text(path, 99)
    path.write_bytes(b"ab\xff")
    with pytest.raises(ConfigError, match="byte 2 is not valid UTF-8"):
        read_text(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_text(tmp_path)


def test_a_mark_of_byte_order_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf{}")
    assert read_json(tmp_path / "a", "hint") == {}


def test_a_missing_file_gives_the_hint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; a model has one"):
        read_json(tmp_path / "a", "a model has one")


def test_lines_are_numbered(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"a": 1}\n\n[2]\n')
    assert list(json_lines(tmp_path / "a")) == [(1, {"a": 1}), (3, [2])]
    (tmp_path / "a").write_text('{"a": 1}\n{"a": 1, "a": 2}\n')
    with pytest.raises(ConfigError, match=r"a, line 2: .*twice"):
        list(json_lines(tmp_path / "a"))
