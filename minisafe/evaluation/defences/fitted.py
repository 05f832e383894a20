"""What rivals need from development prompts: read from the directory that `minisafe rivals` fills.

`fitted.safetensors` holds tensors by name; `direction-N.safetensors` the refusal direction of layer
N as a safety vector; `chosen.json` the settings that sweeps chose.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minisafe.checkpoint import fingerprint
from minisafe.checkpoint.vectors import save_vector
from minisafe.errors import SafetyWarning, SettingError
from minisafe.files import parse_json, read_text, whole_file, write_text
from minisafe.session import Session
from minisafe.vectors import SafetyVector, values_hash

FITTED, CHOSEN = "fitted.safetensors", "chosen.json"
FORMAT = "minisafe-rivals-1"
MOST_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Fitted:
    """tensors: by name. weights, tokenizer: fingerprints of what they were fitted on. prompts: a
    hash of the prompts. directory: where the vectors are."""

    tensors: Mapping[str, Tensor]
    weights: str
    tokenizer: str
    prompts: str
    directory: Path

    @property
    def digest(self) -> str:
        """A hash of all values, for the record of what made an answer."""
        found = hashlib.sha256()
        for name, values in sorted(self.tensors.items()):
            found.update(name.encode() + values.contiguous().numpy().tobytes())
        return found.hexdigest()[:16]

    @property
    def n_layers(self) -> int:
        return len(self.tensors["direction"])

    def layer(self, depth: float) -> int:
        """The layer at a share of the depth, 0 to 1."""
        if not 0 <= depth <= 1:
            raise SettingError(f"depth is {depth:g}; expected a share of the layers, 0 to 1")
        return min(self.n_layers - 1, round(depth * self.n_layers))

    def vector(self, depth: float) -> Path:
        """The file of the refusal direction there."""
        return self.directory / f"direction-{self.layer(depth)}.safetensors"

    def check(self, session: Session) -> None:
        """Raise `SettingError` unless it was fitted for this shape and tokenizer; warn if it was
        for other weights."""
        config = session.model.config
        shape = (config.n_layers, config.hidden)
        fits = tuple(self.tensors["direction"].shape) == shape
        if not fits or self.tokenizer != session.tokenizer.fingerprint:
            raise SettingError(
                f"{self.directory} was fitted for another model; run minisafe rivals with this one"
            )
        if self.weights != fingerprint(session.model):
            warnings.warn(
                f"{self.directory} was fitted on other weights of the same shape", SafetyWarning,
                stacklevel=2,
            )  # fmt: skip


def save_fitted(fitted: Fitted) -> None:
    """Write the tensors and the vectors."""
    metadata = {"format": FORMAT, "weights": fitted.weights, "tokenizer": fitted.tokenizer,
                "prompts": fitted.prompts}  # fmt: skip
    for layer, values in enumerate(fitted.tensors["direction"]):
        layers: dict[int | None, Tensor] = {layer: values.clone()}
        stated = {"method": "difference-of-means", "sa_scale": 1.0, "layer": layer,
                  "n_layers": fitted.n_layers, "tokenizer": fitted.tokenizer,
                  "weights": fitted.weights, "values": values_hash(layers)}  # fmt: skip
        path = fitted.directory / f"direction-{layer}.safetensors"
        save_vector(SafetyVector(layers, stated), path)
    with whole_file(fitted.directory / FITTED) as temporary:
        save_file({name: t.contiguous() for name, t in fitted.tensors.items()}, temporary, metadata)


def read_fitted(directory: Path) -> Fitted:
    """What `minisafe rivals` wrote. Raises `SettingError`."""
    path = directory / FITTED
    hint = f"make it with minisafe rivals --out {directory}"
    if not path.is_file():
        raise SettingError(f"{path}: no such file; {hint}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            stated = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:
        raise SettingError(f"{path}: not a complete safetensors file ({error}); {hint}") from None
    if stated.get("format") != FORMAT or "direction" not in tensors:
        raise SettingError(f"{path}: not a file of this version; {hint}")
    for name, values in tensors.items():
        if values.dtype != torch.float32 or bool(values.isnan().any()):
            raise SettingError(f"{path}: {name} is damaged; {hint}")
    weights, tokenizer, prompts = (stated.get(n, "") for n in ("weights", "tokenizer", "prompts"))
    return Fitted(tensors, weights, tokenizer, prompts, directory)


def read_chosen(directory: Path) -> dict[str, dict[str, Any]]:
    """By method, the options that sweeps chose; {} if there was none. Raises `SettingError`."""
    path = directory / CHOSEN
    if not path.is_file():
        return {}
    found = parse_json(read_text(path, MOST_BYTES, SettingError), str(path), SettingError)
    if not isinstance(found, dict) or not all(isinstance(each, dict) for each in found.values()):
        raise SettingError(f"{path}: expected options by method; delete it, and sweep again")
    return found


def write_chosen(directory: Path, chosen: Mapping[str, Mapping[str, Any]]) -> None:
    """Add options to those of other methods."""
    kept = read_chosen(directory) | {name: dict(options) for name, options in chosen.items()}
    write_text(directory / CHOSEN, json.dumps(kept, indent=1, sort_keys=True) + "\n")
