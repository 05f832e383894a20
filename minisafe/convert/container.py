"""The container of a GGUF file: metadata and a table of tensors, read from front to back.

The `gguf` library's own reader trusts every count in the file and makes an array of every string.
So this file reads the container; the library knows the types of the values and dequantises them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from minisafe.checkpoint import limits
from minisafe.errors import CheckpointError
from minisafe.files.display import shown
from minisafe.files.foreign import LFS, LFS_WORDS

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
# struct's letter for the other types of metadata, by their number
NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
MOST_DIMS = 4
ALIGNMENT, ARCHITECTURE = "general.alignment", "general.architecture"
NOT_WHOLE = "not a complete GGUF file; is the download complete?"


@dataclass(frozen=True)
class Stored:
    """One tensor as the table states it.

    shape: in PyTorch's order, rows first. kind: the number of its type. start: its first byte in
    the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int


@dataclass(frozen=True)
class Container:
    """What a GGUF file holds besides the values; `size` is that of the file, in bytes."""

    path: Path
    size: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Stored]

    @property
    def architecture(self) -> str:
        """`general.architecture`, or "" if the file states none."""
        found = self.metadata.get(ARCHITECTURE)
        return found if isinstance(found, str) else ""


def is_gguf(path: Path) -> bool:
    """Whether a file starts as GGUF does."""
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def read_container(path: Path) -> Container:
    """Metadata and tensors of a GGUF file of version 2 or 3; raises `CheckpointError`."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a model in GGUF")
    try:
        with path.open("rb", buffering=1 << 20) as file:
            return _read(_Cursor(file, path))
    except OSError as wrong:
        raise CheckpointError(f"{path}: cannot be read ({wrong.strerror or wrong})") from None


class _Cursor:
    """Reads a file from front to back, at most `limits.GGUF_HEADER_BYTES` of it."""

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path, self.at = file, path, 0
        self.size = path.stat().st_size

    def fail(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {message}")

    def take(self, n: int) -> bytes:
        """The next n bytes."""
        if n > self.size - self.at:
            raise self.fail(NOT_WHOLE)
        self.at += n
        if self.at > limits.GGUF_HEADER_BYTES:
            raise self.fail(
                f"its header has more than {limits.GGUF_HEADER_BYTES:,} bytes; expected at most "
                "that much metadata"
            )
        data = self.file.read(n)
        if len(data) < n:
            raise self.fail(NOT_WHOLE)
        return data

    def number(self, letter: str) -> Any:
        """A number of one of struct's types."""
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}")))[0]

    def text(self) -> str:
        data = self.take(self.number("Q"))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{shown(data)} is not valid UTF-8; expected UTF-8 text") from None

    def name(self) -> str:
        """The name of a key or a tensor."""
        text = self.text()
        if not text or len(text.encode()) > limits.GGUF_NAME_BYTES:
            raise self.fail(
                f"a name of {len(text):,} characters; expected 1 to {limits.GGUF_NAME_BYTES} bytes"
            )
        return text

    def value(self, kind: int) -> Any:
        """A value of metadata: a number, a truth value, a text, or a list of one of these."""
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self.items(self.number("I"), self.number("Q"))
        if kind not in NUMBERS:
            raise self.fail(f"metadata of type {kind}, which GGUF does not have")
        return self.number(NUMBERS[kind])

    def items(self, kind: int, count: int) -> list[Any]:
        """The items of a list."""
        if count > limits.GGUF_ITEMS:
            raise self.fail(f"a list of {count:,} items; expected at most {limits.GGUF_ITEMS:,}")
        if kind == STRING:
            return [self.text() for _ in range(count)]
        if kind not in NUMBERS:
            raise self.fail(f"a list of items of type {kind}; expected texts or numbers")
        data = self.take(count * struct.calcsize(f"<{NUMBERS[kind]}"))
        found: list[Any] = np.frombuffer(data, f"<{NUMBERS[kind]}").tolist()
        return found


def _read(cursor: _Cursor) -> Container:
    n_tensors, n_keys = _counts(cursor)
    metadata: dict[str, Any] = {}
    for _ in range(n_keys):
        key, kind = cursor.name(), cursor.number("I")
        if key in metadata:
            raise cursor.fail(f"the key {shown(key)} is given twice; expected each key once")
        metadata[key] = cursor.value(kind)
    alignment = metadata.get(ALIGNMENT, 32)
    powers = [1 << n for n in range(limits.GGUF_ALIGNMENT.bit_length())]
    if isinstance(alignment, bool) or alignment not in powers:
        raise cursor.fail(
            f"{ALIGNMENT} is {shown(alignment)}; expected a power of two up to "
            f"{limits.GGUF_ALIGNMENT:,}"
        )
    table = [_entry(cursor) for _ in range(n_tensors)]
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, Stored] = {}
    for name, shape, kind, offset in table:
        if name in tensors:
            raise cursor.fail(f"the tensor {shown(name)} is given twice; expected each name once")
        tensors[name] = Stored(name, shape, kind, start + offset)
    return Container(cursor.path, cursor.size, metadata, tensors)


def _counts(cursor: _Cursor) -> tuple[int, int]:
    """How many tensors and keys the file states; raises `CheckpointError` if it is not GGUF."""
    start = cursor.file.read(len(LFS))
    if start == LFS:
        raise cursor.fail(f"{LFS_WORDS}; expected a model in GGUF")
    if start[: len(MAGIC)] != MAGIC:
        raise cursor.fail("not a GGUF file; expected a model in GGUF")
    cursor.file.seek(0)
    cursor.take(len(MAGIC))
    version = cursor.number("I")
    if version not in VERSIONS:
        swapped = " (of a big-endian machine)" if version in (2 << 24, 3 << 24) else ""
        raise cursor.fail(f"GGUF of version {version}{swapped}; expected version 2 or 3")
    n_tensors, n_keys = cursor.number("Q"), cursor.number("Q")
    if n_tensors > limits.TENSORS or n_keys > limits.GGUF_KEYS:
        raise cursor.fail(
            f"states {n_tensors:,} tensors and {n_keys:,} keys; expected at most "
            f"{limits.TENSORS:,} and {limits.GGUF_KEYS:,}"
        )
    return n_tensors, n_keys


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and offset of the next tensor; GGUF states the shape columns first."""
    name, n_dims = cursor.name(), cursor.number("I")
    if not 1 <= n_dims <= MOST_DIMS:
        raise cursor.fail(
            f"the tensor {shown(name)} has {n_dims} dimensions; expected 1 to {MOST_DIMS}"
        )
    shape = tuple(cursor.number("Q") for _ in range(n_dims))[::-1]
    return name, shape, cursor.number("I"), cursor.number("Q")
