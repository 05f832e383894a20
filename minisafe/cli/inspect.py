"""`minisafe inspect`: what a model, adapter, vector or profile holds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from minisafe.cache import bytes_per_token
from minisafe.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    as_dtype,
    read_file,
    read_tensors,
)
from minisafe.cli.options import PATH
from minisafe.config import LlamaConfig
from minisafe.errors import BadInput, TokenizerError
from minisafe.files import read_json
from minisafe.lora import check_adapter_config
from minisafe.profile import PATHS, Profile, load_profile, resolve
from minisafe.tokenizer import load_tokenizer
from minisafe.vectors import load_vector


@click.command()
@click.argument("path", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(path: Path, as_json: bool) -> None:
    """Say what PATH holds: a model or LoRA directory, a safety vector, or a profile.

    \b
    Example:
      minisafe inspect weights/tiny
    """
    found = describe_path(path)
    if as_json:
        click.echo(json.dumps(found, default=str))
        return
    for line in as_lines(found):
        click.echo(line)


def describe_path(path: Path) -> dict[str, Any]:
    """What a file or directory holds; raises `BadInput` where it is none of ours."""
    if path.suffix in (".npy", ".safetensors", ".gguf") and path.is_file():
        return describe_vector(path)
    if path.suffix == ".json" and path.is_file():
        return describe_profile(path)
    if (path / "profile.json").is_file():
        return describe_profile(path / "profile.json")
    if (path / ADAPTER_CONFIG).is_file():
        return describe_adapter(path)
    if (path / "config.json").is_file():
        return describe_model(path)
    what = "no such file or directory" if not path.exists() else "nothing that minisafe reads"
    raise BadInput(
        f"{path}: {what}; expected a model or adapter directory, a vector (.safetensors, .npy, "
        ".gguf) or a profile (.json)"
    )


def describe_model(path: Path) -> dict[str, Any]:
    """A model directory: its shape, and what its weights take."""
    config = LlamaConfig.from_directory(path)
    parameters = size = 0
    dtypes = set()
    for _, tensor, _ in read_tensors(path):
        parameters += tensor.numel()
        size += tensor.numel() * tensor.element_size()
        dtypes.add(str(tensor.dtype).removeprefix("torch."))
    shape = asdict(config)
    shape.pop("windows")
    windows = sorted({window for window in config.windows if window is not None})
    found = {
        "kind": "model", "path": path, "family": shape.pop("family"), "parameters": parameters,
        "bytes": size, "dtypes": sorted(dtypes),
        "kv_bytes_per_token": config.kv_bytes_per_token, "sliding_windows": windows, **shape,
    }  # fmt: skip
    try:
        tokenizer = load_tokenizer(path)
        found["tokens"] = tokenizer.size
        found["chat_template"] = tokenizer.template_source is not None
    except TokenizerError as error:
        found["tokens"] = f"no tokenizer: {error}"
    return found


def describe_adapter(path: Path) -> dict[str, Any]:
    """A PEFT LoRA directory."""
    config = read_json(path / ADAPTER_CONFIG, "a PEFT adapter directory has one")
    check_adapter_config(config, path / ADAPTER_CONFIG)
    if not (path / ADAPTER_WEIGHTS).is_file():
        raise BadInput(f"{path / ADAPTER_WEIGHTS}: no such file")
    tensors = [(name, tensor) for name, tensor, _ in read_file(path / ADAPTER_WEIGHTS)]
    return {
        "kind": "LoRA adapter", "path": path, "r": config.get("r"),
        "lora_alpha": config.get("lora_alpha"), "target_modules": config.get("target_modules"),
        "tensors": len(tensors),
        "parameters": sum(tensor.numel() for _, tensor in tensors),
        "bytes": sum(tensor.numel() * tensor.element_size() for _, tensor in tensors),
    }  # fmt: skip


def describe_vector(path: Path) -> dict[str, Any]:
    """A safety vector file."""
    vector = load_vector(path)
    norms = {
        "stated nowhere" if layer is None else str(layer): round(float(values.norm()), 4)
        for layer, values in vector.layers.items()
    }
    return {
        "kind": "safety vector", "path": path, "hidden": vector.hidden, "norm_by_layer": norms,
        **{f"metadata.{name}": value for name, value in vector.metadata.items()},
    }  # fmt: skip


def describe_profile(path: Path) -> dict[str, Any]:
    """A profile, and what it names."""
    profile = load_profile(path)
    found: dict[str, Any] = {"kind": "profile", "path": path, **profile.settings}
    found["files_checked"] = len(profile.sha256)
    if profile.calibration is not None:
        found["calibration"] = profile.calibration.to_json()
    for name in PATHS:
        part = profile.settings.get(name)
        if part is not None:
            found[name] = describe_path(part)
    if profile.settings.get("base") and {"dtype", "cache_dtype"} & set(profile.settings):
        found["kv_bytes_per_token"] = cache_bytes(profile)
    return found


def cache_bytes(profile: Profile) -> int:
    """Bytes that a token of one stream takes in the cache under the profile's own dtypes."""
    settings = resolve(profile.settings)
    assert settings.base is not None
    config = LlamaConfig.from_directory(settings.base)
    dtype = as_dtype(settings.dtype or config.dtype) or torch.float32
    return bytes_per_token(config, dtype, settings.cache_dtype)


def as_lines(found: dict[str, Any], indent: str = "") -> list[str]:
    """`name: value` lines; what is nested is indented."""
    lines = []
    for name, value in found.items():
        if isinstance(value, dict) and value and not name.startswith(("norm", "metadata", "rope")):
            lines += [f"{indent}{name}:", *as_lines(value, indent + "  ")]
        else:
            text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
            lines.append(f"{indent}{name}: {text}")
    return lines
