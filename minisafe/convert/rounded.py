"""A model becomes a directory of int8 or int4 weights, as they run.

The source is a model directory or a GGUF file. Its values pass by in blocks of rows, so memory is
that of the largest tensor of a directory, or of one block, at most.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from minisafe.checkpoint import (
    as_dtype,
    check_tied,
    fingerprint_of,
    first_dtype,
    read_tensors,
    sample,
    stated_in,
    stated_tensors,
)
from minisafe.checkpoint.config import load_config
from minisafe.checkpoint.files import finite, read_one, short
from minisafe.checkpoint.fused import split_stated, split_tensors
from minisafe.checkpoint.plan import make_plan, tensor_shapes
from minisafe.checkpoint.rounded import (
    KEY,
    WEIGHTS,
    Form,
    check_stored,
    form_json,
    refuse_rounded,
    rounding_of,
    stored_shapes,
)
from minisafe.config import LlamaConfig
from minisafe.convert import Conversion, blocks, write_json, write_small_files
from minisafe.convert.codes import Codes, carried, widened
from minisafe.convert.writer import Report, check_room, header_of
from minisafe.errors import CheckpointError, SettingError
from minisafe.files import read_json, whole_directory
from minisafe.files.whole import flush
from minisafe.rounding import check_dtype, quantize, quantize_groups

AT_ONCE = 1 << 20  # values to round at a time
SAMPLES = 256  # of each tensor, as `checkpoint.sample` takes them
# what a directory has beside its config that is not carried over: weights, in any format
WEIGHT_FILES = (
    ".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".msgpack",
    ".h5", ".npz", ".data",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A model to round.

    path: for messages. dtype: of its values. files: the hash of its files; None: its fingerprint.
    tensors: gives the model's tensors, by name, each in blocks of rows: values in `dtype`, or the
        codes of another program.
    """

    path: Path
    config: LlamaConfig
    dtype: torch.dtype
    files: str | None
    tensors: Callable[[], Iterator[tuple[str, Iterator[Tensor] | Iterator[Codes]]]]
    small_files: Callable[[Path], None]


def round_model(
    source: Source, out: Path, form: str, group: int, dtype: str | None, report: Report
) -> dict[str, Any]:
    """Write the directory `out`, which must not exist; returns what was done.

    form: "int8" or "int4". group: inputs per group of int4; 0 for int8. dtype: of the scales and of
    all that is not rounded; None: bfloat16 for int4, whose kernel needs it, else the source's.
    report: gets the values written so far and in all.

    Raises `SettingError` for a dtype or group that does not fit, `CheckpointError` for values that
    are not finite or beyond the dtype, `OutputError` if the directory cannot be written.
    """
    wanted = as_dtype(dtype) or (torch.bfloat16 if form == "int4" else source.dtype)
    check_dtype(wanted, form)
    check_groups(source, form, group)
    with whole_directory(out) as part:
        source.small_files(part)
        written = write_rounded(source, part / WEIGHTS, form, group, wanted, report)
        files = source.files or written.plain
        made = Form(form, group, short(wanted), written.plain, files, written.rounded)
        config = read_json(part / "config.json", "it was just written")
        config = {key: value for key, value in config.items() if key != "dtype"}
        write_json(part / "config.json", config | {"torch_dtype": made.dtype, KEY: form_json(made)})
        # what was written is held against its own config, as whoever loads it will do
        check_stored(part, load_config(part), made)
    return {
        "source": str(source.path), "weights_bytes": written.size, "codes_kept": written.kept,
        "parameters": source.config.n_parameters, **form_json(made),
    }  # fmt: skip


def check_groups(source: Source, form: str, group: int) -> None:
    """Raise `SettingError` unless groups fill the rows of every weight."""
    for name, shape in tensor_shapes(source.config):
        if rounding_of(name, shape, source.config, form) == "int4":
            try:
                quantize_groups(torch.zeros(1, shape[1]), group)
            except SettingError as error:
                raise SettingError(f"{source.path}: {name}: {error}") from None


# ---- sources -----------------------------------------------------------------------------------


def directory_source(directory: Path) -> Source:
    """A model directory. Raises as `load_model` does for one that is not whole."""
    refuse_rounded(directory)
    config = load_config(directory)
    stated = split_stated(stated_tensors(directory), config, directory)
    names = make_plan(config, stated, directory, None, "cpu")
    dtype = as_dtype(config.dtype) or first_dtype(directory, names)
    check_tied(config, stated, directory, dtype)
    # as sessions hash the files of a model
    files = fingerprint_of({name: sample(each) for name, each, _ in read_tensors(directory)})

    def tensors() -> Iterator[tuple[str, Iterator[Tensor]]]:
        for stored, tensor, _ in split_tensors(read_tensors(directory), config):
            if stored in names:
                yield names[stored], in_rows(tensor.to(dtype))

    return Source(directory, config, dtype, files, tensors, lambda out: copy_beside(directory, out))


def in_rows(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor in blocks of whole rows; one of one dimension is one row."""
    rows = tensor if tensor.dim() > 1 else tensor[None]
    return iter(torch.split(rows, max(1, AT_ONCE // rows.shape[1])))


def copy_beside(directory: Path, out: Path) -> None:
    """Carry over every file of a model directory that holds no weights; not its folders."""
    for path in sorted(directory.iterdir()):
        if path.is_file() and not path.name.endswith(WEIGHT_FILES):
            shutil.copyfile(path, out / path.name)


def gguf_source(plan: Conversion, dtype: str, file: BinaryIO) -> Source:
    """A model in GGUF, whose values have `dtype` first, as in a plain directory made of it.

    file: the opened file."""
    wanted = as_dtype(dtype)
    assert wanted is not None

    def tensors() -> Iterator[tuple[str, Iterator[Tensor]]]:
        for name, _ in tensor_shapes(plan.config):
            yield name, (torch.from_numpy(each).to(wanted) for each in blocks(plan, name, file))

    config = replace(plan.config, dtype=dtype)
    path = plan.container.path
    return Source(
        path, config, wanted, None, tensors, lambda out: write_small_files(plan, config, out)
    )


# ---- the file ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """What was written: the hashes of the plain and of the rounded weights, the size of the file in
    bytes, and how many weights kept the codes that another program gave them."""

    plain: str
    rounded: str
    size: int
    kept: int


def write_rounded(
    source: Source, path: Path, form: str, group: int, dtype: torch.dtype, report: Report
) -> Written:
    """Write the weights."""
    stated = stored_shapes(source.config, form, group, short(dtype))
    first, starts, size = header_of(stated)
    check_room(path.parent, size)
    shapes, samples = dict(tensor_shapes(source.config)), {}
    kept, done, total = 0, 0, source.config.n_parameters
    with path.open("wb") as file:
        file.write(first)
        for name, values in source.tensors():
            kind = rounding_of(name, shapes[name], source.config, form)
            taken = Samples(shapes[name])
            file.seek(starts[name])
            scales = []
            for block in values:
                plain = block if isinstance(block, Tensor) else widened(block).to(source.dtype)
                taken.add(plain)
                placed = checked(plain, dtype, name, source)
                same = None if isinstance(block, Tensor) else carried(block, kind, group, dtype)
                rounded, scale = same or rounded_block(placed, kind, group)
                file.write(as_bytes(rounded))
                scales += [] if scale is None else [scale]
                kept += plain.numel() if same else 0
                done += plain.numel()
                report(done, total)
            file.write(b"".join(as_bytes(each) for each in scales))  # the scales follow
            samples[name] = taken.sample()
    flush(path)
    return Written(fingerprint_of(samples), hash_of(path), size, kept)


def rounded_block(block: Tensor, kind: str | None, group: int) -> tuple[Tensor, Tensor | None]:
    """Some rows of a weight, and their scales if they are rounded."""
    if kind is None:
        return block, None
    return quantize(block) if kind == "int8" else quantize_groups(block, group)


def checked(block: Tensor, dtype: torch.dtype, name: str, source: Source) -> Tensor:
    """Values in `dtype`; raises `CheckpointError` for those that it cannot hold."""
    if not finite(block):
        raise CheckpointError(f"{source.path}: {name} has NaN or infinite values")
    placed = block.to(dtype)
    if placed.dtype != block.dtype and not finite(placed):
        raise CheckpointError(
            f"{source.path}: {name} has values beyond the range of {short(dtype)}; use another "
            "dtype"
        )
    return placed


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's values, in order."""
    return tensor.contiguous().view(torch.uint8).numpy().data


def hash_of(path: Path) -> str:
    """The hash of the tensors of a safetensors file."""
    return fingerprint_of({name: sample(read_one(each)) for name, each in stated_in(path).items()})


class Samples:
    """What `checkpoint.sample` takes of a tensor, taken from its blocks in order."""

    def __init__(self, shape: tuple[int, ...]):
        self.shape, self.at, self.taken = shape, 0, list[Tensor]()
        self.step = max(1, math.prod(shape) // SAMPLES)

    def add(self, block: Tensor) -> None:
        """The next block."""
        self.taken.append(block.flatten()[-self.at % self.step :: self.step].float())
        self.at += block.numel()

    def sample(self) -> bytes:
        """As `checkpoint.sample` of the whole tensor."""
        return f"{self.shape}".encode() + torch.cat(self.taken).numpy().tobytes()
