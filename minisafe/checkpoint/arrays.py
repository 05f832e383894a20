"""Arrays from untrusted files: NumPy's `.npy` and GGUF.

This file parses the bytes itself: NumPy's own reader allocates any shape that a header states, and
the readers of GGUF trust its counts.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minisafe.checkpoint import limits
from minisafe.errors import VectorError
from minisafe.files import read_bytes

Floats = NDArray[np.float32]

# ---- .npy --------------------------------------------------------------------------------------

NPY = b"\x93NUMPY"
NPY_HEADER_BYTES = 10_000  # numpy's own limit for headers that it evaluates
FLOATS = (2, 4, 8)  # bytes per value


def read_npy(path: Path) -> Floats:
    """The array (1, hidden) of a `.npy` file, as float32; raises `VectorError`."""
    content = read_bytes(path, limits.VECTOR_BYTES, VectorError)
    if content[:6] != NPY:
        zipped = "; a .npz archive holds several" if content[:2] == b"PK" else ""
        raise VectorError(f"{path}: not a NumPy array{zipped}; expected one saved with np.save")
    shape, dtype, start = npy_header(path, content)
    if len(shape) != 2 or shape[0] != 1 or dtype.kind != "f" or dtype.itemsize not in FLOATS:
        raise VectorError(f"{path}: {dtype} array of shape {shape}; expected floats of (1, hidden)")
    if not 1 <= shape[1] <= limits.WIDTH or len(content) - start != shape[1] * dtype.itemsize:
        raise VectorError(
            f"{path}: not a NumPy array of the {shape[1]} values that its header states; expected "
            f"1 to {limits.WIDTH:,}; is the file complete?"
        )
    return as_float32(np.frombuffer(content, dtype, offset=start))[None]


def npy_header(path: Path, content: bytes) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and offset of the values."""
    file = io.BytesIO(content[: NPY_HEADER_BYTES + 12])
    try:
        version = np.lib.format.read_magic(file)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, _, dtype = readers[version](file, max_header_size=NPY_HEADER_BYTES)
    except Exception:  # the header is a Python literal, whose parser fails in many ways
        raise VectorError(f"{path}: not a NumPy array; its header is malformed") from None
    return shape, dtype, file.tell()


def as_float32(values: NDArray[Any]) -> Floats:
    """As float32; values beyond its range become infinite, and a later check rejects them."""
    with np.errstate(all="ignore"):
        return values.astype(np.float32)


# ---- GGUF --------------------------------------------------------------------------------------

GGUF = b"GGUF"
VERSIONS = (2, 3)
# bytes of the scalar types of metadata, by their number; 8 is a string, 9 an array
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY, UINT32 = 8, 9, 4
KEYS, STRINGS = 1024, 2**16  # most metadata keys, and most items in one array of strings
ALIGNMENT = "general.alignment"


def _bfloat16(raw: NDArray[np.uint8]) -> Floats:
    """bfloat16 is the upper half of a float32."""
    return (raw.view("<u2").astype("<u4") << 16).view("<f4").astype(np.float32)


def _q8_0(raw: NDArray[np.uint8]) -> Floats:
    """Blocks of 32 signed bytes, each preceded by its float16 scale."""
    blocks = raw.reshape(-1, 34)
    scales = as_float32(blocks[:, :2].copy().view("<f2"))
    return (blocks[:, 2:].copy().view("i1") * scales).astype(np.float32).reshape(-1)


# by the number of the type: name, values per block, bytes per block, reader
KINDS: dict[int, tuple[str, int, int, Callable[[NDArray[np.uint8]], Floats]]] = {
    0: ("F32", 1, 4, lambda raw: raw.view("<f4").astype(np.float32)),
    1: ("F16", 1, 2, lambda raw: as_float32(raw.view("<f2"))),
    8: ("Q8_0", 32, 34, _q8_0),
    28: ("F64", 1, 8, lambda raw: as_float32(raw.view("<f8"))),
    30: ("BF16", 1, 2, _bfloat16),
}


class _Cursor:
    """Reads a GGUF file's bytes from front to back; raises `struct.error` at the end."""

    def __init__(self, content: bytes):
        self.content, self.at = content, 0

    def number(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self.content, self.at)
        self.at += struct.calcsize(form)
        return int(value)

    def skip(self, size: int) -> None:
        if size > len(self.content) - self.at:
            raise struct.error("the file ends within a value")
        self.at += size

    def string(self) -> str:
        size, start = self.number("<Q"), self.at
        self.skip(size)
        return self.content[start : self.at].decode("utf-8", "replace")

    def pass_value(self, kind: int) -> None:
        """Skip a value of metadata."""
        if kind == STRING:
            self.skip(self.number("<Q"))
        elif kind == ARRAY:
            inner, count = self.number("<I"), self.number("<Q")
            if inner == STRING and count <= STRINGS:
                for _ in range(count):
                    self.skip(self.number("<Q"))
            else:
                self.skip(SCALARS[inner] * count)  # no known file has arrays of arrays
        else:
            self.skip(SCALARS[kind])


def read_gguf(path: Path) -> dict[str, Floats]:
    """The one-dimensional tensors of a GGUF file by name, as float32.

    Reads F32, F16, BF16, F64 and Q8_0. Raises `VectorError` for other types and shapes, and for a
    file that is not a complete GGUF file.
    """
    content = read_bytes(path, limits.VECTOR_BYTES, VectorError)
    if content[:4] != GGUF:
        raise VectorError(f"{path}: not a GGUF file")
    try:
        return _read_tensors(path, content)
    except (struct.error, KeyError):
        raise VectorError(
            f"{path}: not a GGUF file of a control vector, or an incomplete one; is the download "
            "complete?"
        ) from None


def _read_tensors(path: Path, content: bytes) -> dict[str, Floats]:
    cursor = _Cursor(content)
    cursor.skip(4)
    version, n_tensors, n_keys = (cursor.number(form) for form in ("<I", "<Q", "<Q"))
    if version not in VERSIONS or n_tensors > limits.LAYERS or n_keys > KEYS:
        raise VectorError(
            f"{path}: not a GGUF file of a control vector: version {version}, {n_tensors:,} "
            f"tensors, {n_keys:,} keys; expected version 2 or 3, up to {limits.LAYERS} and {KEYS}"
        )
    alignment = 32
    for _ in range(n_keys):
        key, kind, start = cursor.string(), cursor.number("<I"), cursor.at
        cursor.pass_value(kind)
        if key == ALIGNMENT and kind == UINT32:
            (alignment,) = struct.unpack_from("<I", content, start)
    stated = [_tensor_info(path, cursor) for _ in range(n_tensors)]
    start = -(-cursor.at // max(1, alignment)) * max(1, alignment)
    found: dict[str, Floats] = {}
    for name, size, kind, offset in stated:
        if name in found:
            raise VectorError(f"{path}: not a valid GGUF file: it has {name} twice")
        found[name] = _values(path, content, name, size, kind, start + offset)
    return found


def _tensor_info(path: Path, cursor: _Cursor) -> tuple[str, int, int, int]:
    """Name, number of values, type and offset of the next tensor."""
    name, n_dims = cursor.string(), cursor.number("<I")
    if n_dims != 1:
        raise VectorError(f"{path}: tensor {name} has {n_dims} dimensions; expected (hidden,)")
    return name, cursor.number("<Q"), cursor.number("<I"), cursor.number("<Q")


def _values(path: Path, content: bytes, name: str, size: int, kind: int, start: int) -> Floats:
    """A tensor's values, as float32."""
    if kind not in KINDS:
        names = ", ".join(each[0] for each in KINDS.values())
        raise VectorError(
            f"{path}: tensor {name} has GGUF type number {kind}; expected one of {names}"
        )
    _, per_block, block_bytes, read = KINDS[kind]
    n_bytes = size // per_block * block_bytes
    if not 1 <= size <= limits.WIDTH or size % per_block or start + n_bytes > len(content):
        raise VectorError(
            f"{path}: not a complete GGUF file: tensor {name} states {size:,} values; expected 1 "
            f"to {limits.WIDTH:,} values inside the file"
        )
    return read(np.frombuffer(content, np.uint8, n_bytes, start))
