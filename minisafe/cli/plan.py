"""The output of `minisafe inspect --plan`: what decoding will take of memory; it loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from minisafe.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS, as_dtype, stated_in
from minisafe.checkpoint.config import load_config
from minisafe.checkpoint.rounded import read_form
from minisafe.cli.kernels import dtype_of
from minisafe.errors import SettingError
from minisafe.fast.memory import Reader, planned
from minisafe.fast.prepare import automatic
from minisafe.files.display import one_line
from minisafe.session.asked import gather
from minisafe.session.others import source_of
from minisafe.session.settings import Settings


def describe_plan(
    path: Path, flags: Mapping[str, Any], context: int | None, rows: int
) -> dict[str, Any]:
    """The plan for a profile, or for a model directory alone, under flags that take precedence.

    context: tokens of prompt and answer together; None: all that the model reads. Raises
    `SettingError` for numbers below 1, and as `minisafe.load` does for what it would refuse.
    """
    for name, number in (("context", context), ("rows", rows)):
        if number is not None and number < 1:
            raise SettingError(f"{name} is {number}; expected 1 or more")
    is_profile = path.suffix == ".json" or (path / "profile.json").is_file()
    asked = gather(path, flags) if is_profile else gather(None, {"base": path, **flags})
    settings = asked.settings
    assert settings.base is not None
    if settings.compile:
        raise SettingError("a compiled step is not planned; give --no-compile")
    config, form = load_config(settings.base), read_form(settings.base)
    if form is not None:
        raise SettingError(
            f"{settings.base}: its weights are {form.format}, which is not planned; give the model "
            "that it was converted from, with --weights int8"
        )
    dtype = dtype_of(settings, config)
    device = torch.device(settings.device).type
    weights = automatic(dtype, device) if settings.weights == "auto" else settings.weights
    context = config.max_positions if context is None else min(context, config.max_positions)
    memory = planned(
        config, dtype, weights, [reader(settings, name) for name in settings.others], context,
        rows, settings.cache_dtype, as_dtype(config.dtype),
    )  # fmt: skip
    return {
        "path": str(path), "context": context, "rows": rows, "weights": weights,
        "dtype": str(dtype).removeprefix("torch."), "cache_dtype": settings.cache_dtype,
        "bytes": asdict(memory) | {"total": memory.total},
    }  # fmt: skip


def reader(settings: Settings, name: str) -> Reader:
    """A stream after the base, as far as it takes memory."""
    source = source_of(settings, name)
    if source is None:
        return Reader(name)  # the base again, behind a prompt
    if (source / ADAPTER_CONFIG).is_file():
        stated = stated_in(source / ADAPTER_WEIGHTS)
        return Reader(name, adapter={key: each.shape for key, each in stated.items()})
    return Reader(name, load_config(source))


def plan_lines(found: Mapping[str, Any]) -> list[str]:
    """Lines of text: what it is for, then bytes in MiB."""
    parts = found["bytes"]
    table = {"weights": parts["weights"]}
    table |= {f"{name} weights": size for name, size in parts["others"].items() if size}
    table |= {f"{name} cache": size for name, size in parts["caches"].items()}
    table |= {"workspace": parts["workspace"], "kept by kernels": parts["kernels"]}
    table |= {"only while loading": parts["loading"]}
    width = max(map(len, table))
    return [
        f"{one_line(found['path'], 600)}: {found['context']:,} tokens, rows {found['rows']}, "
        f"weights {found['weights']}, {found['dtype']}, cache {found['cache_dtype']}",
        *(f"  {name:{width}}  {mib(size)}" for name, size in table.items()),
        f"  {'peak':{width}}  {mib(parts['total'])}, beside the libraries and the tokenizer",
    ]


def mib(size: int) -> str:
    """A size in MiB, aligned for the table."""
    return f"{size / 2**20:9,.1f} MiB"
