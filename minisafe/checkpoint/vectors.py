"""Safety vectors in files: minisafe's `.safetensors`, the authors' `.npy`, llama.cpp's GGUF."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minisafe.checkpoint import limits
from minisafe.checkpoint.arrays import read_gguf, read_npy
from minisafe.checkpoint.header import FLOATS, read_header
from minisafe.errors import ConfigError, VectorError
from minisafe.files import parse_json, whole_file
from minisafe.vectors import SafetyVector, values_hash

LAYER = re.compile("0|[1-9][0-9]{0,3}")
PREFIX = "layer."
GGUF_PREFIX = "direction."


def load_vector(path: str | Path) -> SafetyVector:
    """Read a vector: minisafe's `.safetensors`, the authors' `.npy` of shape (1, hidden), or a GGUF
    control vector (F32, F16, BF16, F64, Q8_0), whose `direction.N` acts after 0-based layer N.

    Raises `VectorError`.
    """
    path, formats = Path(path), ", ".join(READERS)
    if not path.is_file():
        raise VectorError(f"{path}: no such file; expected a safety vector ({formats})")
    if path.suffix not in READERS:
        raise VectorError(f"{path}: unknown format; expected one of {formats}")
    vector = READERS[path.suffix](path)
    for layer, values in vector.layers.items():
        if not bool(values.isfinite().all()):
            raise VectorError(f"{path}: the vector of layer {layer} has NaN or infinite values")
    stated = vector.metadata.get("values")
    if stated is not None and stated != values_hash(vector.layers):
        raise VectorError(
            f"{path}: its values changed after it was made (their hash differs), and a reversed "
            "vector steers towards harm; make it again"
        )
    return vector


def _read_npy(path: Path) -> SafetyVector:
    return SafetyVector({None: torch.from_numpy(read_npy(path)[0])}, {"source": path.name})


def _read_safetensors(path: Path) -> SafetyVector:
    header = read_header(path, VectorError)
    for name, stated in header.tensors.items():
        if stated.dtype not in FLOATS or len(stated.shape) != 1:
            raise VectorError(
                f"{path}: tensor {name} is {stated.dtype} of shape {stated.shape}; expected floats "
                f"of shape (hidden,) under the name {PREFIX}N"
            )
    numbers = {_layer(name, PREFIX, path): name for name in header.tensors}
    metadata = {key: _decoded(value) for key, value in header.metadata.items()}
    layers: dict[int | None, Tensor] = {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for layer, name in numbers.items():
                layers[layer] = file.get_tensor(name).float()
    except (SafetensorError, OSError, RuntimeError) as error:
        raise VectorError(f"{path}: not a complete safetensors file ({error})") from None
    return SafetyVector(_one_size(layers, path), metadata)


def _read_gguf(path: Path) -> SafetyVector:
    layers: dict[int | None, Tensor] = {
        _layer(name, GGUF_PREFIX, path): torch.from_numpy(values)
        for name, values in read_gguf(path).items()
    }
    return SafetyVector(_one_size(layers, path), {"source": path.name})


# by the ending of a file's name
READERS: dict[str, Callable[[Path], SafetyVector]] = {
    ".safetensors": _read_safetensors, ".npy": _read_npy, ".gguf": _read_gguf,
}  # fmt: skip


def _layer(name: str, prefix: str, path: Path) -> int:
    """The layer in a tensor's name. Each layer has one spelling, so two names never share one."""
    found = LAYER.fullmatch(name.removeprefix(prefix)) if name.startswith(prefix) else None
    if found is None or int(found[0]) >= limits.LAYERS:
        raise VectorError(
            f"{path}: tensor {name}; expected {prefix}N, with N a layer from 0 to "
            f"{limits.LAYERS - 1} in plain digits"
        )
    return int(found[0])


def _one_size(layers: dict[int | None, Tensor], path: Path) -> dict[int | None, Tensor]:
    """The layers; raises `VectorError` unless they are one or more of the same size."""
    sizes = {len(values) for values in layers.values()}
    if len(sizes) != 1 or not 1 <= min(sizes) <= limits.WIDTH:
        raise VectorError(
            f"{path}: {len(layers)} layers of {len(sizes)} sizes; expected one or more layers of "
            f"one size, 1 to {limits.WIDTH:,}"
        )
    return layers


def _decoded(value: str) -> Any:
    """A value of metadata: parsed if it is JSON, otherwise the text itself."""
    try:
        return parse_json(value, "")
    except ConfigError:
        return value


def save_vector(vector: SafetyVector, path: str | Path) -> None:
    """Write minisafe's format, whole or not at all: tensors `layer.N`, metadata as JSON values."""
    metadata = {"format": "minisafe-vector"} | {
        # a string is written unchanged, unless it would be read as another type, such as "1e5"
        key: value if isinstance(value, str) and _decoded(value) == value else json.dumps(value)
        for key, value in vector.metadata.items()
    }
    tensors = {f"{PREFIX}{layer}": values.contiguous() for layer, values in vector.at(None).items()}
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def save_npy(vector: SafetyVector, path: str | Path) -> None:
    """Write the authors' format, (1, hidden) float32; it holds one layer and no metadata."""
    if len(vector.layers) != 1:
        raise VectorError(f"{path}: .npy holds one layer; the vector has {len(vector.layers)}")
    (values,) = vector.layers.values()
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, values.numpy()[None])


def save_gguf(vector: SafetyVector, path: str | Path) -> None:
    """Write a llama.cpp control vector; raises `VectorError` for layer 0, which the format lacks.

    llama.cpp multiplies by its own scale, so the vector is written unscaled.
    """
    gguf = _gguf()
    layers = vector.at(None)
    if 0 in layers:
        raise VectorError(
            f"{path}: the vector is for layer 0; expected layer 1 or later for a GGUF control "
            "vector"
        )
    with whole_file(path) as temporary:
        writer = gguf.GGUFWriter(str(temporary), "controlvector")
        writer.add_string("controlvector.model_hint", "llama")
        writer.add_uint32("controlvector.layer_count", len(layers))
        for layer, values in sorted(layers.items()):
            writer.add_tensor(f"{GGUF_PREFIX}{layer}", values.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise VectorError("GGUF vectors need a package: pip install 'minisafe[gguf]'") from None
    return gguf
