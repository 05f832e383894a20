"""Directories of models whose weights are stored in int8 or int4, as they run.

`config.json` says so in `quantization_config`, and the weights are in a file of another name, so no
program takes them for plain ones. Each rounded weight is two tensors, NAME.weight and NAME.scales
(see `rounding`); norms, biases and an untied embedding keep their dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minisafe.checkpoint.config import OWN_METHOD
from minisafe.checkpoint.files import stated_in
from minisafe.checkpoint.header import Stated
from minisafe.checkpoint.plan import EMBED, HEAD, NAMED, tensor_shapes
from minisafe.config import LlamaConfig
from minisafe.errors import CheckpointError, ConfigError
from minisafe.files import read_json
from minisafe.files.display import shown
from minisafe.rounding import GROUPS, ROUNDED

WEIGHTS = "rounded.safetensors"
VERSION = 1
KEY = "quantization_config"
HASH_LETTERS = 16  # of a fingerprint


@dataclass(frozen=True)
class Form:
    """How a directory stores its weights.

    format: "int8" or "int4". group: inputs per group of int4; 0 for int8. dtype: of the scales and
    of all that is not rounded: bfloat16 or float32.
    fingerprint: of the plain model that was rounded. files: the hash of that model's files.
    rounded: the hash of the rounded tensors, which holds the other two to these weights.
    """

    format: str
    group: int
    dtype: str
    fingerprint: str
    files: str
    rounded: str

    @property
    def identity(self) -> tuple[str, str]:
        """What stands for the weights where parts were made for some: a fingerprint of the model,
        and one of its files.

        int8 in memory keeps those of the plain weights, since it changes what was measured on them
        by little; int8 from a file is the same, bit by bit. int4 is another model.
        """
        if self.format == "int8":
            return self.fingerprint, self.files
        return self.rounded, self.rounded


def read_form(directory: Path) -> Form | None:
    """How a model directory stores its weights; None if they are plain.

    Raises `ConfigError` for a form that this version does not read.
    """
    path = directory / "config.json"
    if not path.is_file():
        return None
    data = read_json(path, "a model directory has one").get(KEY)
    if not isinstance(data, dict) or data.get("quant_method") != OWN_METHOD:
        return None
    return form_of(data, path)


def form_of(data: Mapping[str, Any], path: Path) -> Form:
    """The form in a `quantization_config`; raises `ConfigError`."""
    if data.get("version") != VERSION:
        raise ConfigError(
            f"{path}: {KEY} is of version {shown(data.get('version'))}; this minisafe reads "
            f"version {VERSION}; convert the model again"
        )
    allowed: dict[str, tuple[object, ...]] = {
        "format": ROUNDED, "dtype": ("bfloat16", "float32"),
        "group": GROUPS if data.get("format") == "int4" else (0,),
    }  # fmt: skip
    for key, values in allowed.items():
        value = data.get(key)
        if value not in values or isinstance(value, bool):
            raise ConfigError(
                f"{path}: {KEY}: {key} is {shown(value)}; expected {' or '.join(map(str, values))}"
            )
    hashes = [data.get(key) for key in ("fingerprint", "files", "rounded")]
    for value in hashes:
        if not isinstance(value, str) or len(value) != HASH_LETTERS or not value.isalnum():
            raise ConfigError(f"{path}: {KEY}: {shown(value)} is no hash; convert the model again")
    fingerprint, files, rounded = map(str, hashes)
    form, group, dtype = data["format"], data["group"], data["dtype"]
    return Form(form, group, dtype, fingerprint, files, rounded)


def form_json(form: Form) -> dict[str, Any]:
    """The `quantization_config` of a form."""
    return {"quant_method": OWN_METHOD, "version": VERSION, **asdict(form)}


def refuse_rounded(directory: Path) -> None:
    """Raise `CheckpointError` if a directory holds rounded weights where plain ones are needed."""
    form = read_form(directory)
    if form is not None:
        raise CheckpointError(
            f"{directory}: its weights are {form.format}, for decoding only; give the model that "
            "it was converted from"
        )


def rounding_of(name: str, shape: tuple[int, ...], config: LlamaConfig, form: str) -> str | None:
    """How the tensor `name` is stored: "int8", "int4", or None for as it is.

    An embedding is looked up, so it stays as it is, unless it is the head too. A head is int8 in
    either form.
    """
    if len(shape) == 1:
        return None
    if name == EMBED:
        return "int8" if config.tied else None
    return "int8" if name == HEAD else form


def scales_name(name: str) -> str:
    """`....up_proj.weight` -> `....up_proj.scales`"""
    return name.removesuffix("weight") + "scales"


def stored_shapes(
    config: LlamaConfig, form: str, group: int, dtype: str
) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """(name, shape, dtype) of every tensor of the file, in its order: a model's own, each weight
    before its scales."""
    for name, shape in tensor_shapes(config):
        kind = rounding_of(name, shape, config, form)
        if kind is None:
            yield name, shape, dtype
        elif kind == "int8":
            yield name, shape, "int8"
            yield scales_name(name), shape[:1], dtype
        else:
            yield name, (shape[0], shape[1] // 2), "uint8"
            yield scales_name(name), (shape[0], shape[1] // group, 2), dtype


def check_stored(directory: Path, config: LlamaConfig, form: Form) -> dict[str, Stated]:
    """What the header of the weights' file states, by name. Raises `CheckpointError` unless it is
    what config and form say."""
    path = directory / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; {form.format} weights are in it")
    stated = dict(stated_in(path))
    wanted = {
        name: (shape, dtype)
        for name, shape, dtype in stored_shapes(config, form.format, form.group, form.dtype)
    }
    unexpected, missing = stated.keys() - wanted.keys(), wanted.keys() - stated.keys()
    for names, what in ((unexpected, "unexpected"), (missing, "missing")):
        if names:
            listed = ", ".join(sorted(names)[:NAMED])
            raise CheckpointError(f"{path}: {what} tensors: {listed}; convert the model again")
    for name, (shape, dtype) in wanted.items():
        each = stated[name]
        if (each.shape, each.torch_dtype) != (shape, dtype):
            raise CheckpointError(
                f"{path}: {name} is {each.torch_dtype} of shape {each.shape}; expected {dtype} of "
                f"{shape}; convert the model again"
            )
    return stated
