"""What is made of a directory that another program quantised: plain weights, or our own form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from minisafe.checkpoint import SINGLE, as_dtype, stated_tensors
from minisafe.checkpoint.config import load_config
from minisafe.checkpoint.files import short
from minisafe.checkpoint.fused import fused_modules, split_stated
from minisafe.checkpoint.plan import make_plan, tensor_shapes
from minisafe.checkpoint.rounded import KEY
from minisafe.convert import write_json
from minisafe.convert.codes import Codes, widened
from minisafe.convert.quantised import Quantised
from minisafe.convert.rounded import AT_ONCE, Source, copy_beside, in_rows
from minisafe.convert.values import Floats
from minisafe.convert.writer import Entry, Report, write_weights
from minisafe.files import read_json, whole_directory

SETTINGS = ("quantize_config.json", "quant_config.json")  # older programs' own files


def quantised_source(read: Quantised, dtype: str) -> Source:
    """What `round_model` rounds, or carries over where its own form holds the same codes. dtype: of
    the values that are rounded."""
    wanted = as_dtype(dtype)
    assert wanted is not None

    def tensors() -> Iterator[tuple[str, Iterator[Tensor] | Iterator[Codes]]]:
        for name, _ in tensor_shapes(read.config):
            value = read.value(name)
            if isinstance(value, Tensor):
                yield name, in_rows(value.to(wanted))
            else:
                yield name, code_rows(value)

    config = replace(read.config, dtype=dtype)
    return Source(read.directory, config, wanted, None, tensors, partial(copy_rest, read))


def code_rows(codes: Codes) -> Iterator[Codes]:
    """Codes in blocks of rows."""
    n = max(1, AT_ONCE // codes.codes.shape[1])
    return (codes.rows(at, at + n) for at in range(0, len(codes.codes), n))


def widen(read: Quantised, out: Path, dtype: str, report: Report) -> dict[str, Any]:
    """Write the directory `out`, which must not exist, with plain weights; returns what was done.

    Raises `CheckpointError` for values that are not finite or beyond the dtype, `OutputError` if
    the directory cannot be written.
    """
    wanted, config = as_dtype(dtype), read.config
    assert wanted is not None
    entries = entries_of(read)
    with whole_directory(out) as part:
        copy_rest(read, part)
        size = write_weights(part / SINGLE, entries, wanted, str(read.directory), report)
        data = read_json(part / "config.json", "it was just written")
        data = {key: value for key, value in data.items() if key not in (KEY, "dtype")}
        write_json(part / "config.json", data | {"torch_dtype": short(wanted)})
        # what was written is held against its own config, as whoever loads it will do
        written = split_stated(stated_tensors(part), load_config(part), part)
        make_plan(load_config(part), written, part, None, "cpu")
    return {
        "source": str(read.directory), "weights_bytes": size, "dtype": dtype,
        "parameters": config.n_parameters, "quantised": read.settings["quant_method"],
    }  # fmt: skip


def entries_of(read: Quantised) -> list[Entry]:
    """The tensors to write, as the family stores them: the parts of a fused module in one."""
    shapes, fused = dict(tensor_shapes(read.config)), fused_modules(read.config)
    joined = {f"{part}.weight": module for module in fused for part in fused[module]}
    found = {}
    for name, shape in shapes.items():
        module = joined.get(name)
        if module is None:
            found[name] = Entry(name, shape, partial(floats, read, (name,)))
            continue
        rows, names = fused[module].values(), tuple(f"{part}.weight" for part in fused[module])
        stored = f"{module}.weight"
        found[stored] = Entry(stored, (sum(rows), shape[1]), partial(floats, read, names))
    return list(found.values())


def floats(read: Quantised, names: Sequence[str]) -> Iterator[Floats]:
    """The values of tensors one below the other, some rows at a time."""
    for name in names:
        value = read.value(name)
        plain = in_rows(value) if isinstance(value, Tensor) else map(widened, code_rows(value))
        for block in plain:
            yield block.float().numpy()


def copy_rest(read: Quantised, out: Path) -> None:
    """Carry over what is neither weights nor a quantising program's own settings."""
    copy_beside(read.directory, out)
    for name in SETTINGS:
        (out / name).unlink(missing_ok=True)
