"""The only reader of untrusted JSON.

`json.loads` keeps the last of two equal keys, reads NaN, accepts halves of surrogate pairs, and
recurses as deep as the text is nested. None of this is safe for a file that decides what is
decoded.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minisafe.errors import BadInput, ConfigError
from minisafe.files.foreign import LFS, LFS_WORDS

MAX_JSON_BYTES = 64 << 20  # the largest tokenizer files are near 20 MB
MAX_DEPTH = 64  # nested objects and lists
MAX_VALUES = 4_000_000  # an empty list is 3 bytes of text and 64 of memory
ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a pair needs such an escape


def parse_json(
    text: str, source: str, error: type[BadInput] = ConfigError, most_values: int = MAX_VALUES
) -> Any:
    """The value of a JSON text; `source` names it in errors.

    Raises:
        error: the text is not JSON, or has a repeated key, NaN or infinity, half of a surrogate
            pair, more than `MAX_DEPTH` nested objects and lists, or more than `most_values` values.
    """
    if sum(map(text.count, ",[{")) > most_values:  # an upper bound: strings may contain these
        raise error(f"{source}: holds more than {most_values:,} values, the limit for JSON")

    def refuse_constant(name: str) -> Any:
        raise _Refused(f"it holds {name}; expected finite numbers")

    try:
        value = json.loads(
            text, object_pairs_hook=_distinct, parse_constant=refuse_constant, parse_float=_finite
        )
        check_depth(value)
        if ESCAPED_SURROGATE.search(text):
            _check_surrogates(value)
    except RecursionError:
        raise error(f"{source}: {_too_deep()}") from None
    except _Refused as refused:
        raise error(f"{source}: {refused}") from None
    except ValueError as wrong:
        raise error(f"{source}: not valid JSON ({wrong})") from None
    return value


def read_json(path: Path, hint: str, error: type[BadInput] = ConfigError) -> dict[str, Any]:
    """The JSON object in a file; raises `error`, with `hint` if there is no file."""
    if not path.is_file():
        raise error(f"{path}: no such file; {hint}")
    data = parse_json(read_text(path, error=error), str(path), error)
    if not isinstance(data, dict):
        raise error(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def json_lines(
    path: Path, error: type[BadInput] = ConfigError, limit: int = 1 << 30
) -> Iterator[tuple[int, Any]]:
    """(line number, from 1; value) of each nonblank line of a JSON Lines file."""
    for number, line in enumerate(read_text(path, limit, error).split("\n"), 1):
        if line.strip():
            yield number, parse_json(line, f"{path}, line {number}", error)


def read_text(path: Path, limit: int = MAX_JSON_BYTES, error: type[BadInput] = ConfigError) -> str:
    """A file's text; raises `error` if it cannot be read, is too large or is not UTF-8."""
    data = read_bytes(path, limit, error)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        raise error(f"{path}: byte {wrong.start} is not valid UTF-8; expected UTF-8 text") from None


def read_bytes(
    path: Path, limit: int = MAX_JSON_BYTES, error: type[BadInput] = ConfigError
) -> bytes:
    """A file's bytes; raises `error` if it cannot be read or has more than `limit` bytes."""
    try:
        with path.open("rb") as file:
            # read() reserves the requested size, and a pipe's size is 0 until it is read
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(limit, size) + 1)
            while len(data) <= limit and (more := file.read(1 << 20)):
                data += more
    except OSError as wrong:
        raise error(f"{path}: cannot be read ({wrong.strerror or wrong})") from None
    if data.startswith(LFS):
        raise error(f"{path}: {LFS_WORDS}")
    if len(data) > limit:
        raise error(f"{path}: has more than {limit:,} bytes, the limit for such a file")
    return data


class _Refused(Exception):
    """Why valid JSON is rejected."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's pairs; rejects a repeated key, which could mean either value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Refused(f"the key {twice[:80]!r} is given twice; expected each key once")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _Refused(f"the number {text[:40]} is out of range; expected finite numbers")
    return value


def check_depth(value: Any) -> None:
    """Raise `_Refused` for a value nested deeper than `MAX_DEPTH`."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise _Refused(_too_deep())


def _too_deep() -> str:
    return f"it is nested too deeply; expected at most {MAX_DEPTH} levels"


def _check_surrogates(value: Any) -> None:
    """Raise `_Refused` for half of a surrogate pair, which no text file can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _Refused("it holds half of a surrogate pair; expected valid Unicode") from None
