"""`minisafe inspect`: what a model, adapter, vector or profile holds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import click

from minisafe.cache_dtype import bytes_per_token
from minisafe.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    stated_in,
    stated_tensors,
)
from minisafe.checkpoint.config import load_config
from minisafe.checkpoint.header import read_header
from minisafe.checkpoint.peft import check_adapter_config
from minisafe.checkpoint.probe import FORMAT as PROBE
from minisafe.checkpoint.probe import load_probe
from minisafe.checkpoint.rounded import read_form
from minisafe.checkpoint.vectors import READERS, load_vector
from minisafe.cli.kernels import describe_kernels, kernel_lines
from minisafe.cli.options import PATH, common_flags, offering, option
from minisafe.cli.plan import describe_plan, plan_lines
from minisafe.config import LlamaConfig
from minisafe.convert.container import read_container
from minisafe.convert.shape import holds_model
from minisafe.convert.values import count_types
from minisafe.errors import BadInput, TokenizerError
from minisafe.files import read_json
from minisafe.files.display import one_line
from minisafe.files.foreign import HAS_ONE, no_config, to_convert
from minisafe.session.memory import dtype_of
from minisafe.session.named import find_profile
from minisafe.session.profile import Profile, default_profile, load_profile
from minisafe.session.settings import PATHS, resolve
from minisafe.tokenizer import load_tokenizer

# settings that --plan takes as flags
PLANNED = ("safe", "dtype", "weights", "cache_dtype", "context", "memory_limit")
MOST_LINES = 100  # per file or directory
MOST_LETTERS = 600  # per name or value


@click.command()
@click.argument("path", type=PATH, required=False)
@click.option(
    "--kernels",
    is_flag=True,
    help="Time the CPU's kernels for a model's shapes and show the choices. Without PATH, for the "
    "shipped model.",
)
@click.option(
    "--plan", is_flag=True, help="Show how much memory decoding will take; loads nothing."
)
@click.option("--rows", type=int, help="With --plan: prompts read together.  [default: 1]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@offering([option(name) for name in PLANNED])
def inspect(
    path: Path | None,
    kernels: bool,
    plan: bool,
    rows: int | None,
    as_json: bool,
) -> None:
    """Describe PATH: a model or LoRA directory, a model in GGUF, a safety vector, a profile, or the
    name of a model of `minisafe get`.

    \b
    Examples:
      minisafe inspect weights/tiny
      minisafe inspect weights/tiny --kernels
      minisafe inspect weights/tiny --plan --context 512 --weights int8
    """
    given = {"rows": rows, **common_flags()}
    extra = [name for name, value in given.items() if value is not None]
    if extra and not plan:
        raise click.UsageError(f"--{extra[0].replace('_', '-')} needs --plan")
    if plan and kernels:
        raise click.UsageError("give one of --plan and --kernels")
    if path is None and not kernels:
        raise click.UsageError("Missing argument 'PATH'.")
    path = None if path is None else find_profile(path)
    if kernels:
        raced = describe_kernels(path or default_profile())
        found: dict[str, Any] = {"kernels": raced}
    elif plan:
        assert path is not None
        found = {"plan": describe_plan(path, common_flags(), 1 if rows is None else rows)}
    else:
        assert path is not None
        found = describe_path(path)
    if as_json:  # plain ASCII, except the only control character that JSON does not escape
        click.echo(json.dumps(found, default=str).replace("\x7f", "\\u007f"))
        return
    for line in lines_of(found):
        click.echo(line)


def lines_of(found: Mapping[str, Any]) -> list[str]:
    """The output as text."""
    if "kernels" in found:
        return kernel_lines(found["kernels"])
    return plan_lines(found["plan"]) if "plan" in found else as_lines(found)


def describe_path(path: Path) -> dict[str, Any]:
    """What a file or directory holds; raises `BadInput` if minisafe does not read it."""
    if path.suffix == ".safetensors" and path.is_file() and is_probe(path):
        return describe_probe(path)
    if path.suffix == ".gguf" and holds_model(path):
        return describe_gguf(path)
    if path.suffix in READERS and path.is_file():
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
    hint = no_config(path) if path.is_dir() else HAS_ONE
    what += "" if hint == HAS_ONE else f" itself ({hint})"
    raise BadInput(
        f"{path}: {what}; expected a model or adapter directory, a vector (.safetensors, .npy, "
        ".gguf) or a profile (.json)"
    )


def describe_model(path: Path) -> dict[str, Any]:
    """A model directory: its shape and the size of its weights."""
    config = load_config(path)
    tensors = stated_tensors(path).values()
    shape = asdict(config)
    shape.pop("windows")
    windows = sorted({window for window in config.windows if window is not None})
    found = {
        "kind": "model", "path": path, "family": shape.pop("family"),
        "parameters": sum(tensor.size for tensor in tensors),
        "bytes": sum(tensor.n_bytes for tensor in tensors),
        **rounded_as(path, config),
        "dtypes": sorted({tensor.torch_dtype for tensor in tensors}),
        "kv_bytes_per_token": config.kv_bytes_per_token, "sliding_windows": windows, **shape,
    }  # fmt: skip
    try:
        tokenizer = load_tokenizer(path)
        found["tokens"] = tokenizer.size
        found["chat_template"] = tokenizer.template_source is not None
    except TokenizerError as error:
        found["tokens"] = f"no tokenizer: {error}"
    return found


def rounded_as(path: Path, config: LlamaConfig) -> dict[str, Any]:
    """How rounded weights are stored, and of how many parameters; nothing for plain ones."""
    form = read_form(path)
    if form is None:
        return {}
    groups = {"group": form.group} if form.group else {}
    return {"parameters": config.n_parameters, "weights": form.format, **groups}


def describe_gguf(path: Path) -> dict[str, Any]:
    """A model in GGUF, from its header."""
    container = read_container(path)
    return {
        "kind": "model in GGUF", "path": path, "architecture": container.architecture,
        "name": container.metadata.get("general.name"),
        "license": container.metadata.get("general.license"),
        "parameters": sum(math.prod(each.shape) for each in container.tensors.values()),
        "bytes": container.size, "types": count_types(container), "to use it": to_convert(path),
    }  # fmt: skip


def describe_adapter(path: Path) -> dict[str, Any]:
    """A PEFT LoRA directory."""
    config = read_json(path / ADAPTER_CONFIG, "a PEFT adapter directory has one")
    check_adapter_config(config, path / ADAPTER_CONFIG)
    if not (path / ADAPTER_WEIGHTS).is_file():
        raise BadInput(f"{path / ADAPTER_WEIGHTS}: no such file")
    tensors = stated_in(path / ADAPTER_WEIGHTS).values()
    return {
        "kind": "LoRA adapter", "path": path, "r": config.get("r"),
        "lora_alpha": config.get("lora_alpha"), "target_modules": config.get("target_modules"),
        "tensors": len(tensors),
        "parameters": sum(tensor.size for tensor in tensors),
        "bytes": sum(tensor.n_bytes for tensor in tensors),
    }  # fmt: skip


def is_probe(path: Path) -> bool:
    """Whether a file says of itself that it is a probe."""
    return read_header(path).metadata.get("format") == PROBE


def describe_probe(path: Path) -> dict[str, Any]:
    """What reading alone asks."""
    streams, n_ids = load_probe(path).weight.shape
    return {"kind": "probe", "path": path, "streams": streams, "ids": n_ids}


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
    """A profile and its parts."""
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
    """Bytes per token and stream in the cache, under the profile's dtypes."""
    settings = resolve(profile.settings)
    assert settings.base is not None
    config = load_config(settings.base)
    return bytes_per_token(config, dtype_of(settings, config), settings.cache_dtype)


def as_lines(found: Mapping[str, Any], indent: str = "") -> list[str]:
    """`name: value` lines; nested values are indented.

    Names and values may be untrusted. So each is one line of bounded length without control
    characters, none can look like another line, and their number is bounded.
    """
    lines = []
    for name, value in islice(found.items(), MOST_LINES):
        shown = f"{indent}{one_line(name, MOST_LETTERS)}:"
        if isinstance(value, dict) and value and not name.startswith(("norm", "metadata", "rope")):
            lines += [shown, *as_lines(value, indent + "  ")]
        else:
            number = isinstance(value, int) and not isinstance(value, bool)
            text = f"{value:,}" if number else str(value)
            lines.append(f"{shown} {one_line(text, MOST_LETTERS)}")
    if len(found) > MOST_LINES:
        lines.append(f"{indent}... and {len(found) - MOST_LINES:,} more (--json has all)")
    return lines
