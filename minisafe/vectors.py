"""Safety vectors: what safety amplification adds, its file formats, and whether it fits a model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minisafe import limits
from minisafe.checkpoint.arrays import read_gguf, read_npy
from minisafe.checkpoint.header import FLOATS, read_header
from minisafe.errors import ConfigError, SettingError, VectorError
from minisafe.files import parse_json, whole_file
from minisafe.slots import Add, Slot, Span

LAYER = re.compile("0|[1-9][0-9]{0,3}")
PREFIX = "layer."
GGUF_PREFIX = "direction."


@dataclass(frozen=True)
class SafetyVector:
    """`layers`: 0-based layer -> (hidden,) float32, added after that layer.

    A file that states no layer (the authors' `.npy`) has the key None: the profile or `--sa-layer`
    says where it goes. `metadata` holds scale, positions, heads, fingerprints and the like.
    """

    layers: Mapping[int | None, Tensor]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def hidden(self) -> int:
        return len(next(iter(self.layers.values())))

    def at(self, layer: int | None) -> dict[int, Tensor]:
        """The vectors by layer; `layer` moves a one-layer vector there. Raises `VectorError`."""
        if layer is None:
            if None in self.layers:
                raise VectorError("the vector's file states no layer; give one with --sa-layer")
            return {int(key): vector for key, vector in self.layers.items() if key is not None}
        if len(self.layers) > 1:
            raise VectorError(
                f"the vector has {len(self.layers)} layers; it cannot be moved to layer {layer}"
            )
        return {layer: next(iter(self.layers.values()))}


POSITIONS = ("prompt", "last", "generated", "all")


@dataclass(frozen=True)
class Steering:
    """Add `scale * vectors[layer]` at some positions of a conversation.

    positions: "prompt", the last token of the user's turn as rendered, which predicts the answer's
    first; "last", that one and every generated token (the authors' way); "generated"; "all".
    """

    vectors: Mapping[int, Tensor]
    scale: float
    positions: str

    def __post_init__(self) -> None:
        if self.positions not in POSITIONS:
            raise SettingError(
                f"sa_positions is {self.positions!r}; expected one of {', '.join(POSITIONS)}"
            )

    def spans(self, answers: Sequence[tuple[int, int | None]]) -> tuple[Span, ...]:
        """Steered positions of a text whose answers stand at `[start, stop)`, stop None: open."""
        if self.positions == "all":
            return ((0, None),)
        first = 0 if self.positions == "generated" else -1
        if self.positions == "prompt":
            return tuple((start - 1, start) for start, _ in answers)
        spans = [(start + first, stop) for start, stop in answers]
        return tuple(span for span in spans if span[1] is None or span[0] < span[1])

    def slots(self, row: int, spans: tuple[Span, ...]) -> list[Slot]:
        """What to give a forward whose batch row `row` is steered at `spans`."""
        return [
            Add(layer=layer, spans=spans, rows=(row,), vector=vector, scale=self.scale)
            for layer, vector in self.vectors.items()
            if self.scale != 0 and spans
        ]


def load_vector(path: str | Path) -> SafetyVector:
    """Read a vector: minisafe's `.safetensors`, the authors' `.npy` of shape (1, hidden), or a GGUF
    control vector (F32, F16, BF16, F64, Q8_0), whose `direction.N` is added after 0-based layer N.

    Raises `VectorError`.
    """
    path = Path(path)
    if not path.is_file():
        raise VectorError(
            f"{path}: no such file; expected a safety vector (.safetensors, .npy or .gguf)"
        )
    if path.suffix == ".npy":
        vector = _read_npy(path)
    elif path.suffix == ".safetensors":
        vector = _read_safetensors(path)
    elif path.suffix == ".gguf":
        vector = _read_gguf(path)
    else:
        raise VectorError(f"{path}: unknown format; expected .safetensors, .npy or .gguf")
    for layer, values in vector.layers.items():
        if not bool(values.isfinite().all()):
            raise VectorError(f"{path}: the vector of layer {layer} holds NaN or infinite values")
    stated = vector.metadata.get("values")
    if stated is not None and stated != values_hash(vector.layers):
        raise VectorError(
            f"{path}: its values are not those that it was made with (their hash differs), and a "
            "vector that was turned around steers towards harm; make it again"
        )
    return vector


def values_hash(layers: Mapping[int | None, Tensor]) -> str:
    """A hash of a vector's values, which `minisafe amplify` writes into its metadata."""
    found = hashlib.sha256()
    for _, values in sorted(layers.items(), key=lambda each: -1 if each[0] is None else each[0]):
        found.update(values.float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


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
        raise VectorError(f"{path}: not a whole safetensors file ({error})") from None
    return SafetyVector(_one_size(layers, path), metadata)


def _read_gguf(path: Path) -> SafetyVector:
    layers: dict[int | None, Tensor] = {
        _layer(name, GGUF_PREFIX, path): torch.from_numpy(values)
        for name, values in read_gguf(path).items()
    }
    return SafetyVector(_one_size(layers, path), {"source": path.name})


def _layer(name: str, prefix: str, path: Path) -> int:
    """The layer in a tensor's name; one spelling each, so that two names are never one layer."""
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
            f"{path}: {len(layers)} layers of {len(sizes)} sizes; expected one or more of one "
            f"size, 1 to {limits.WIDTH:,}"
        )
    return layers


def _decoded(value: str) -> Any:
    """A value of metadata: JSON where it is, else the text itself."""
    try:
        return parse_json(value, "")
    except ConfigError:
        return value


def save_vector(vector: SafetyVector, path: str | Path) -> None:
    """Write minisafe's format, whole or not at all: tensors `layer.N`, metadata as JSON values."""
    metadata = {"format": "minisafe-vector"} | {
        # a string stands as it is, unless it would be read as something else, such as "1e5"
        key: value if isinstance(value, str) and _decoded(value) == value else json.dumps(value)
        for key, value in vector.metadata.items()
    }
    tensors = {f"{PREFIX}{layer}": values.contiguous() for layer, values in vector.at(None).items()}
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def save_npy(vector: SafetyVector, path: str | Path) -> None:
    """Write the authors' format, (1, hidden) float32; it has room for one layer and no metadata."""
    if len(vector.layers) != 1:
        raise VectorError(f"{path}: .npy holds one layer; the vector has {len(vector.layers)}")
    (values,) = vector.layers.values()
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, values.numpy()[None])


def save_gguf(vector: SafetyVector, path: str | Path) -> None:
    """Write a llama.cpp control vector; raises `VectorError` for layer 0, which has no place there.

    llama.cpp multiplies by its own scale, so the vector is written unscaled.
    """
    gguf = _gguf()
    layers = vector.at(None)
    if 0 in layers:
        raise VectorError(
            f"{path}: a GGUF control vector starts at layer 1; one for layer 0 cannot be exported"
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


def check_vector(
    vector: SafetyVector, path: str, hidden: int, n_layers: int, tokenizer_fingerprint: str
) -> None:
    """Raise `VectorError` where the vector was made for another shape or tokenizer."""
    if vector.hidden != hidden:
        raise VectorError(
            f"{path}: the vector has {vector.hidden} values; the model's residual stream "
            f"has {hidden}"
        )
    made_for = vector.metadata.get("n_layers")
    if made_for is not None and made_for != n_layers:
        raise VectorError(f"{path}: made for a model of {made_for} layers; this one has {n_layers}")
    tokenizer = vector.metadata.get("tokenizer")
    if tokenizer is not None and tokenizer != tokenizer_fingerprint:
        raise VectorError(f"{path}: made with another tokenizer; make one for this model")
