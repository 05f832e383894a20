"""The values of a GGUF file's tensors: dequantised by the `gguf` library, some rows at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from minisafe.convert.container import NOT_WHOLE, Container, Stored
from minisafe.errors import CheckpointError
from minisafe.files.display import shown

Floats = NDArray[np.float32]
# values that are dequantised at once: 8 MB as float32, and a few times as much for the arithmetic
AT_ONCE = 1 << 21
PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # the types that are not quantised


@dataclass(frozen=True)
class Kind:
    """A type of values: its name, and the values and bytes of one block."""

    number: int
    name: str
    block: int
    n_bytes: int


def library() -> Any:
    """The `gguf` library; raises `CheckpointError` if it is not installed."""
    try:
        import gguf
    except ImportError:
        raise CheckpointError("GGUF models need a package: pip install 'minisafe[gguf]'") from None
    return gguf


def kind_of(tensor: Stored, container: Container) -> Kind:
    """The type of a tensor; raises `CheckpointError` if the library cannot dequantise it."""
    gguf = library()
    try:
        kind = gguf.GGMLQuantizationType(tensor.kind)
        block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
        dequantised(np.zeros((1, n_bytes), np.uint8), tensor.kind)
    except (ValueError, KeyError, NotImplementedError):
        known = {each.value: each.name for each in gguf.GGMLQuantizationType}
        name = known.get(tensor.kind, f"number {tensor.kind}")
        raise CheckpointError(
            f"{container.path}: the tensor {shown(tensor.name)} has the type {name}, which the "
            "installed gguf library cannot dequantise; expected F32, F16, BF16 or a quantised type "
            "such as Q8_0 or Q4_K"
        ) from None
    return Kind(tensor.kind, kind.name, block, n_bytes)


def check_inside(tensor: Stored, kind: Kind, container: Container) -> None:
    """Raise `CheckpointError` unless a tensor's values are whole blocks inside the file."""
    if tensor.shape[-1] % kind.block:
        raise CheckpointError(
            f"{container.path}: the tensor {shown(tensor.name)} has rows of {tensor.shape[-1]:,} "
            f"values; expected a multiple of {kind.block} for {kind.name}"
        )
    n_bytes = math.prod(tensor.shape) // kind.block * kind.n_bytes
    if tensor.start + n_bytes > container.size:
        raise CheckpointError(
            f"{container.path}: {NOT_WHOLE} {shown(tensor.name)} ends at byte "
            f"{tensor.start + n_bytes:,}, and the file has {container.size:,}"
        )


def count_types(container: Container) -> dict[str, int]:
    """How many tensors the file holds of each type, the most frequent first."""
    kinds = dict.fromkeys({each.kind for each in container.tensors.values()}, "")
    for tensor in container.tensors.values():
        kinds[tensor.kind] = kinds[tensor.kind] or kind_of(tensor, container).name
    return dict(Counter(kinds[each.kind] for each in container.tensors.values()).most_common())


def plain_dtype(container: Container) -> str | None:
    """The dtype of all matrices of the file, or None if any is quantised or they differ.

    One-dimensional tensors do not count: files keep norms and biases in float32.
    """
    kinds = {each.kind: each for each in container.tensors.values() if len(each.shape) > 1}
    names = {PLAIN.get(kind_of(each, container).name) for each in kinds.values()}
    return names.pop() if len(names) == 1 else None


def dequantised(raw: NDArray[np.uint8], kind: int) -> Floats:
    """Blocks as float32: (rows, bytes per row) to (rows, values per row)."""
    gguf = library()
    with np.errstate(all="ignore"):  # what overflows becomes infinite, and is refused later
        found: Floats = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(kind))
    return found


def read_rows(file: BinaryIO, tensor: Stored, kind: Kind, together: int = 1) -> Iterator[Floats]:
    """The values of a tensor in blocks of whole rows, (rows, columns) each; a tensor of one
    dimension is one row.

    together: rows that must not be parted, such as those of a head.

    Raises `CheckpointError` if the file has become shorter.
    """
    columns = tensor.shape[-1]
    n_rows = math.prod(tensor.shape[:-1])
    row_bytes = columns // kind.block * kind.n_bytes
    step = max(1, AT_ONCE // (columns * together)) * together
    file.seek(tensor.start)
    for first in range(0, n_rows, step):
        raw = bytearray(min(step, n_rows - first) * row_bytes)
        if file.readinto(raw) < len(raw):  # type: ignore[attr-defined]
            raise CheckpointError(f"{file.name}: {NOT_WHOLE}")
        yield dequantised(np.frombuffer(raw, np.uint8).reshape(-1, row_bytes), kind.number)


def whole(container: Container, tensor: Stored) -> Floats:
    """All values of a small tensor, in its shape."""
    with container.path.open("rb") as file:
        blocks = list(read_rows(file, tensor, kind_of(tensor, container)))
    return np.concatenate(blocks).reshape(tensor.shape)
