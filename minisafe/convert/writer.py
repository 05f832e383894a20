"""A safetensors file written from front to back: the header first, then block after block.

The library's writer needs every tensor in memory. A file here takes as much memory as one block.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from minisafe.checkpoint.files import short
from minisafe.convert.values import Floats
from minisafe.errors import CheckpointError, OutputError
from minisafe.files.whole import flush

SPELT = {  # dtypes in safetensors' spelling, with the bytes of a value
    "float32": ("F32", 4), "bfloat16": ("BF16", 2), "float16": ("F16", 2), "int8": ("I8", 1),
    "uint8": ("U8", 1),
}  # fmt: skip
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Entry:
    """One tensor to write: its name and shape, and what gives its values in order."""

    name: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Floats]]


def header(entries: Sequence[Entry], dtype: torch.dtype) -> bytes:
    """The beginning of a file whose tensors have one dtype."""
    return header_of((entry.name, entry.shape, short(dtype)) for entry in entries)[0]


def header_of(
    tensors: Iterable[tuple[str, tuple[int, ...], str]],
) -> tuple[bytes, dict[str, int], int]:
    """The beginning of a file of tensors, each with name, shape and dtype: the length of the JSON
    text, and the text, which ends on a multiple of 8 bytes; where each tensor begins in the file;
    and the size of the file in bytes."""
    stated: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts, start = {}, 0
    for name, shape, dtype in tensors:
        starts[name], (spelt, width) = start, SPELT[dtype]
        stop = start + math.prod(shape) * width
        stated[name] = {"dtype": spelt, "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(stated, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    first = len(text).to_bytes(8, "little") + text
    return first, {name: len(first) + at for name, at in starts.items()}, len(first) + start


def write_weights(
    path: Path, entries: Sequence[Entry], dtype: torch.dtype, source: str, report: Report
) -> int:
    """Write the file; returns its size in bytes.

    report: gets the values written so far and in all, after each block.

    Raises `OutputError` if there is too little room, and `CheckpointError`, with `source` as the
    name, for values that are not finite or beyond the range of `dtype`.
    """
    first, total = header(entries, dtype), sum(math.prod(each.shape) for each in entries)
    size = len(first) + total * dtype.itemsize
    check_room(path.parent, size)
    done = 0
    with path.open("wb") as file:
        file.write(first)
        for entry in entries:
            for values in entry.blocks():
                file.write(as_bytes(values, dtype, entry.name, source))
                done += values.size
                report(done, total)
    flush(path)
    return size


def check_room(directory: Path, size: int) -> None:
    """Raise `OutputError` unless the disk has room for `size` bytes."""
    free = shutil.disk_usage(directory).free
    if size > free:
        raise OutputError(
            f"{directory}: the model needs {size / 1e9:.1f} GB, and the disk has {free / 1e9:.1f} "
            "GB; make room, choose another place, or give --dtype bfloat16"
        )


def as_bytes(values: Floats, dtype: torch.dtype, name: str, source: str) -> memoryview:
    """Values in `dtype`, as bytes; raises `CheckpointError` for those that it cannot hold."""
    tensor = torch.from_numpy(values)
    if not bool(tensor.isfinite().all()):
        raise CheckpointError(f"{source}: {name} has NaN or infinite values")
    placed = tensor.to(dtype)
    if placed.dtype != tensor.dtype and not bool(placed.isfinite().all()):
        raise CheckpointError(
            f"{source}: {name} has values beyond the range of {short(dtype)}; use another dtype"
        )
    return placed.contiguous().view(torch.uint8).numpy().data
