"""Headers of safetensors files: which tensors a file states, before any of it is mapped.

The library checks offsets and sizes. This file checks the rest: the size of the header, the number
of tensors, repeated names, and files that are not safetensors at all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisafe.checkpoint import limits
from minisafe.errors import BadInput, CheckpointError
from minisafe.files import parse_json
from minisafe.files.foreign import LFS, LFS_WORDS

FLOATS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}  # bits per value
BITS = re.compile(r"[A-Z]+([0-9]{1,2})(?:_.*)?")  # as in U8, F32, F8_E4M3
NOT_WHOLE = "not a complete safetensors file"


@dataclass(frozen=True)
class Stated:
    """One tensor as a header states it. dtype: in safetensors' spelling, such as BF16."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Bytes of its values; BOOL and unknown dtypes count as 8 bits."""
        bits = BITS.fullmatch(self.dtype)
        return self.size * (int(bits[1]) if bits else 8) // 8

    @property
    def torch_dtype(self) -> str:
        """The dtype in torch's spelling."""
        known = {"I": "int", "U": "uint", "F": "float", "BF": "bfloat"}
        kind, digits = self.dtype.rstrip("0123456789"), self.dtype.lstrip("ABFIU")
        if kind in known and digits.isdecimal():
            return known[kind] + digits
        return {"F8_E4M3": "float8_e4m3fn"}.get(self.dtype, self.dtype.lower())


@dataclass(frozen=True)
class Header:
    """A file's tensors by name, in file order, and its metadata."""

    tensors: Mapping[str, Stated]
    metadata: Mapping[str, str]


def read_header(path: Path, error: type[BadInput] = CheckpointError) -> Header:
    """The header of a safetensors file; raises `error`."""
    data = parse_json(header_text(path, error), f"{path}: {NOT_WHOLE}: its header", error)
    if not isinstance(data, dict):
        raise error(f"{path}: {NOT_WHOLE}: its header is not a JSON object")
    metadata = data.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise error(f"{path}: {NOT_WHOLE}: its metadata is not a JSON object of strings")
    if len(data) > limits.TENSORS:
        raise error(f"{path}: states {len(data):,} tensors; expected at most {limits.TENSORS:,}")
    tensors = {name: _stated(path, name, entry, error) for name, entry in data.items()}
    return Header(tensors, metadata)


def header_text(path: Path, error: type[BadInput]) -> str:
    """The JSON text of a file's header, whose length is the file's first 8 bytes."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) == 8 and length <= min(limits.HEADER_BYTES, size - 8):
                return file.read(length).decode("utf-8")
            start += file.read(64)
    except UnicodeDecodeError:
        raise error(f"{path}: {NOT_WHOLE} (its header is not UTF-8)") from None
    except OSError as wrong:
        raise error(f"{path}: cannot be read ({wrong.strerror or wrong})") from None
    if start.startswith(LFS):
        raise error(f"{path}: {LFS_WORDS}; expected a safetensors file")
    if len(start) >= 8 and limits.HEADER_BYTES < length <= size - 8:
        raise error(
            f"{path}: its header states {length:,} bytes; expected at most {limits.HEADER_BYTES:,}"
        )
    raise error(f"{path}: {NOT_WHOLE}; is the download complete?")


def _stated(path: Path, name: str, entry: Any, error: type[BadInput]) -> Stated:
    """One tensor of a header."""
    dtype, shape = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else (0, 0)
    whole = isinstance(shape, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**63 for n in shape
    )
    if not isinstance(dtype, str) or not isinstance(shape, list) or not whole or len(shape) > 8:
        raise error(f"{path}: {NOT_WHOLE}: its header states no dtype and shape of {name}")
    return Stated(name, dtype, tuple(shape), path)
