"""Rows of an untrusted prompt set: CSV, JSON, JSONL or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from minisafe.errors import PromptError
from minisafe.files import json_lines, parse_json, read_bytes, read_text
from minisafe.files.display import harmless

Record = Mapping[str, object]
Row = tuple[str, Record]  # position, for messages, and content
MAX_BYTES = 256 << 20  # of a file, and of a Parquet file's values
MAX_ROWS = 1_000_000  # of a Parquet file, which can compress many equal rows to a few bytes


def short(value: object) -> str:
    """A value as JSON, for a message."""
    return harmless(json.dumps(value, default=str), 40)


def read_rows(path: Path) -> list[Row]:
    """The rows of a file by its suffix, at least one; raises `PromptError`."""
    if path.suffix.lower() not in READERS:
        raise PromptError(f"{path}: expected a prompt set that ends in {', '.join(READERS)}")
    if not path.is_file():
        raise PromptError(f"{path}: no such file; expected a prompt set")
    values = list(READERS[path.suffix.lower()](path))
    if not values:
        raise PromptError(f"{path}: has no prompts; expected at least one")
    for where, value in values:
        if not isinstance(value, dict):
            raise PromptError(f"{path}, {where}: {short(value)}; expected an object")
    return values


def _csv_rows(path: Path) -> Iterable[tuple[str, Any]]:
    reader = csv.reader(
        io.StringIO(read_text(path, MAX_BYTES, PromptError), newline=""), strict=True
    )
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            names = harmless(", ".join(map(repr, header)), 200)
            raise PromptError(
                f"{path}: two columns have the same name; expected each name once: {names}"
            )
        for cells in filter(None, reader):
            if len(cells) != len(header):
                names = harmless(", ".join(header), 200)
                got = f"{len(cells)} cells; expected {len(header)} ({names})"
                raise PromptError(f"{path}, line {reader.line_num}: {got}; quote text with commas")
            yield f"line {reader.line_num}", dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise PromptError(f"{path}, line {reader.line_num}: malformed CSV ({error})") from None


def _json_rows(path: Path) -> Iterable[tuple[str, Any]]:
    text = read_text(path, MAX_BYTES, PromptError).rstrip()
    try:
        values = parse_json(text or "[]", str(path), PromptError)
    except PromptError as error:
        hint = "; if every line is a separate object, name the file .jsonl"
        raise PromptError(f"{error}{hint if text.startswith('{') else ''}") from None
    if not isinstance(values, list):
        raise PromptError(f"{path}: {short(values)}; expected a list of objects")
    return [(f"row {number}", value) for number, value in enumerate(values, 1)]


def _jsonl_rows(path: Path) -> Iterable[tuple[str, Any]]:
    for number, value in json_lines(path, PromptError, MAX_BYTES):
        yield f"line {number}", value


def _parquet_rows(path: Path) -> Iterable[tuple[str, Any]]:
    try:
        import pyarrow.parquet as parquet  # type: ignore[import-untyped, import-not-found]
    except ImportError:
        raise PromptError("Parquet needs a package: pip install 'minisafe[parquet]'") from None
    data = io.BytesIO(read_bytes(path, MAX_BYTES, PromptError))
    try:
        found, size = [], 0
        for batch in parquet.ParquetFile(data).iter_batches(1000):
            found += batch.to_pylist()
            size += batch.nbytes
            if len(found) > MAX_ROWS or size > MAX_BYTES:
                raise PromptError(
                    f"{path}: expected at most {MAX_ROWS:,} rows and {MAX_BYTES:,} bytes"
                )
    except PromptError:
        raise
    except Exception as error:  # pyarrow raises a dozen kinds, from OSError to OverflowError
        raise PromptError(f"{path}: malformed Parquet ({harmless(str(error), 200)})") from None
    return [(f"row {number}", value) for number, value in enumerate(found, 1)]


READERS: dict[str, Callable[[Path], Iterable[tuple[str, Any]]]] = {
    ".csv": _csv_rows, ".json": _json_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows,
}  # fmt: skip
