"""The safetensors files of a directory: checked strictly, memory-mapped, written whole or not at
all. Pickles are never read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minisafe.checkpoint import limits
from minisafe.checkpoint.header import NOT_WHOLE, Stated, read_header
from minisafe.errors import CheckpointError, MinisafeError
from minisafe.files import read_json, whole_file

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAPPED_APART = 1000  # most tensors per file to map one by one, which then takes about 2 s
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
CONVERT = (
    'if you trust it, convert it once: python -c "from transformers import '
    "AutoModelForCausalLM as M; M.from_pretrained('{0}').save_pretrained('{0}-safetensors')\""
)


def read_tensors(directory: Path) -> Iterator[tuple[str, Tensor, Path]]:
    """(name, tensor, file) of every tensor of a model directory, shard by shard."""
    for file in dict.fromkeys(tensor.file for tensor in stated_tensors(directory).values()):
        yield from read_file(file)


def stated_tensors(directory: Path) -> dict[str, Stated]:
    """Every tensor of a model directory by name, from the headers of the files."""
    found: dict[str, Stated] = {}
    for file, names in weight_files(directory).items():
        tensors = stated_in(file)
        if names is not None:
            check_shard(file, names, tensors.keys())
        found |= tensors
    return found


def stated_in(path: Path) -> Mapping[str, Stated]:
    """The tensors in the header of one complete safetensors file, by name, without reading them."""
    tensors = read_header(path).tensors
    with opened(path):  # the library checks that they are inside the file
        return tensors


def weight_files(directory: Path) -> dict[Path, frozenset[str] | None]:
    """The safetensors files of a model directory, each with the names that the index assigns to
    it, or None if there is no index."""
    if (directory / SINGLE).exists():
        return {directory / SINGLE: None}
    if (directory / INDEX).is_file():
        return shards(directory)
    files = sorted(directory.glob("*.safetensors"))
    if len(files) == 1:
        return {files[0]: None}
    if files:
        raise CheckpointError(
            f"{directory}: {len(files)} safetensors files without {INDEX}; expected one file, or "
            "an index"
        )
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{directory}: {pickles[0]} is a pickle, which can run code, so minisafe never reads "
            f"it; {CONVERT.format(directory)}"
        )
    raise CheckpointError(f"{directory}: no {SINGLE} and no {INDEX}")


def shards(directory: Path) -> dict[Path, frozenset[str] | None]:
    """The shards that the index names, and the tensors that it assigns to each."""
    path = directory / INDEX
    weight_map = read_json(path, "the index of the shards").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: no weight_map; expected tensor names and their shards")
    names: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        names.setdefault(str(shard), set()).add(name)
    if len(names) > limits.SHARDS:
        raise CheckpointError(f"{path}: {len(names):,} shards; expected at most {limits.SHARDS:,}")
    for shard in names:
        plain = Path(shard).name == shard and "\0" not in shard and len(shard.encode()) < 256
        if not plain or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{path}: shard {shard!r} is not a safetensors file of this directory"
            )
        if not (directory / shard).is_file():
            raise CheckpointError(f"{directory / shard}: no such file, but {INDEX} names it")
    return {directory / shard: frozenset(names[shard]) for shard in sorted(names)}


def check_shard(file: Path, expected: Set[str], held: Set[str]) -> None:
    """Raise `CheckpointError` unless a shard holds exactly what the index assigns to it."""
    if held - expected:
        name = min(held - expected)
        raise CheckpointError(f"{file}: holds {name}, which {INDEX} does not assign to it")
    if expected - held:
        name = min(expected - held)
        raise CheckpointError(f"{file}: lacks {name}, which {INDEX} assigns to it")


def read_file(path: Path) -> Iterator[tuple[str, Tensor, Path]]:
    """(name, memory-mapped tensor, file) of one safetensors file.

    Each tensor gets its own mapping if possible, so that deleting it frees its pages. Every such
    mapping reads the header again, so a file of very many tensors is mapped once.
    """
    apart = len(read_header(path).tensors) <= MAPPED_APART
    with opened(path) as file:
        for name in file.keys():  # noqa: SIM118 (safe_open is not a mapping)
            alone = mapped_alone(path, name) if apart else None
            yield name, file.get_tensor(name) if alone is None else alone, path


def read_one(stated: Stated) -> Tensor:
    """One memory-mapped tensor; let go, it frees its pages. Raises `CheckpointError`."""
    with opened(stated.file) as file:
        tensor: Tensor = file.get_tensor(stated.name)
        return tensor


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file opened by the library; raises `CheckpointError` with its message."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: {NOT_WHOLE} ({first_line(error)}); is the download complete?"
        ) from None
    except (OSError, RuntimeError) as error:
        if isinstance(error, MinisafeError):
            raise
        raise CheckpointError(f"{path}: cannot be read ({first_line(error)})") from None


def mapped_alone(path: Path, name: str) -> Tensor | None:
    """A tensor in a separate mapping; None if there is no address space for another mapping."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor
    except (OSError, RuntimeError):
        return None


def unread(tensor: Tensor, name: str, path: Path) -> Tensor:
    """The tensor in a new mapping. Checking all of `tensor` loaded its pages into this process; of
    an embedding, only the rows that are looked up should be in memory."""
    again = mapped_alone(path, name)
    same = again is not None and (again.shape, again.dtype) == (tensor.shape, tensor.dtype)
    return again if again is not None and same else tensor


def check_finite(tensor: Tensor, name: str, source: Path) -> None:
    """Raise `CheckpointError` for an unsupported dtype, or if a tensor has NaN or infinity."""
    if tensor.dtype not in DTYPES.values():
        raise CheckpointError(
            f"{source}: {name} is {short(tensor.dtype)}; expected one of {', '.join(DTYPES)}"
        )
    if not finite(tensor):
        count = int((~tensor.isfinite()).sum())
        raise CheckpointError(f"{source}: {name} has {count} NaN or infinite values")


def finite(tensor: Tensor) -> bool:
    """Whether every element is finite. The sum needs no memory and goes first; it may overflow."""
    return math.isfinite(tensor.sum().item()) or bool(tensor.isfinite().all())


def short(dtype: torch.dtype) -> str:
    """A dtype's name as in configs."""
    return str(dtype).removeprefix("torch.")


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type if it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def save_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file whole or not at all."""
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"} | (metadata or {}))
