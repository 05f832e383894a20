"""The output of `minisafe inspect --kernels`: races on a model's shapes, and the choices."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from minisafe.checkpoint.config import load_config
from minisafe.errors import BadInput, SettingError
from minisafe.fast.kernels import choices
from minisafe.fast.prepare import automatic
from minisafe.files.display import one_line
from minisafe.session.memory import dtype_of
from minisafe.session.profile import load_profile
from minisafe.session.settings import resolve

KINDS = ("plain", "packed", "int8")


def describe_kernels(path: Path) -> dict[str, Any]:
    """The kernels' times for a model directory or a profile's base: for every way to store weights
    (`choices`), and which one is the default."""
    is_profile = path.suffix == ".json" or (path / "profile.json").is_file()
    if is_profile:
        settings = resolve(load_profile(path).settings)
    else:
        settings = resolve({"base": path})
    if settings.base is None:
        raise BadInput(
            f"{path}: names no base model; give a model directory, or a profile with a base"
        )
    config = load_config(settings.base)
    dtype = dtype_of(settings, config)
    if dtype == torch.float16:
        raise SettingError("dtype is float16; expected bfloat16 or float32 for kernels")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    weights = automatic(dtype) if settings.weights == "auto" else settings.weights
    return {
        "path": str(path), "dtype": str(dtype).removeprefix("torch."), "weights": weights,
        "threads": torch.get_num_threads(),
        **{kind: [asdict(each) for each in choices(config, dtype, kind)] for kind in KINDS},
    }  # fmt: skip


def kernel_lines(found: dict[str, Any]) -> list[str]:
    """Lines of text: one per shape and one per lap."""
    lines = [
        f"{one_line(found['path'], 600)}: {found['dtype']}, weights {found['weights']}, threads "
        f"{found['threads']}; times in ms, the minimum of several"
    ]
    for kind in KINDS:
        lines.append(f"{kind}:{' (used)' if kind == found['weights'] else ''}")
        for each in found[kind]:
            rows, columns = each["shape"]
            lines.append(f"  {', '.join(each['names'])} ({rows} x {columns}): {each['uses']}")
            lines += [f"    {lap_line(lap)}" for lap in each["laps"]]
    return lines


def lap_line(lap: dict[str, Any]) -> str:
    """One race: times and verdict."""
    name = f"{lap['kernel']}, {lap['rows']} row{'' if lap['rows'] == 1 else 's'}"
    if lap["ms"] is None:
        return f"{name}: does not run here"
    times = f"{lap['ms']:.3f}, F.linear {lap['linear_ms']:.3f}"
    return f"{name}: {times}, error {lap['error']:.0e}{'' if lap['fits'] else ', excluded'}"
