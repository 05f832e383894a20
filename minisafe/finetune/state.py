"""The state of a training run as a safetensors file: written whole, checked fully when read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from minisafe.checkpoint import fingerprint, finite, first_line, read_file, save_tensors
from minisafe.errors import CheckpointError
from minisafe.model import Llama

ADAMW = ("exp_avg", "exp_avg_sq")  # its moments, shaped as the parameter; its "step" is a number
DIFFERS = {
    "training": "other settings", "data": "other conversations", "base": "another base",
}  # fmt: skip


@dataclass(frozen=True)
class State:
    """The state of a run: completed steps, parameters, and the optimisers' state by parameter."""

    step: int
    parameters: dict[str, Tensor]
    optimizer: dict[str, dict[str, Tensor]]


def identity(
    model: Llama, data: Iterable[object], settings: Mapping[str, object]
) -> dict[str, str]:
    """Identifies a run; another run's state is an error. data: the training data, as values."""
    learned = hashlib.sha256()
    for each in data:
        learned.update(repr(each).encode())
    stated = json.dumps(settings)
    return {"training": stated, "data": learned.hexdigest()[:16], "base": fingerprint(model)}


def write_state(
    path: Path,
    step: int,
    parameters: Mapping[str, nn.Parameter],
    optimizers: Sequence[torch.optim.Optimizer],
    about: Mapping[str, str],
) -> None:
    """Write parameters, optimiser states and step; `about` identifies the run (see `DIFFERS`)."""
    tensors = {f"parameter.{name}": value.detach() for name, value in parameters.items()}
    kept = {value: state for each in optimizers for value, state in each.state.items()}
    for name, value in parameters.items():
        for key, state in kept[value].items():
            tensors[f"optimizer.{key}.{name}"] = state
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    save_tensors(tensors, path, {"step": str(step), **about})


def moments_of(
    parameters: Mapping[str, Tensor], optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, tuple[str, ...]]:
    """The moments that each parameter's optimiser keeps: those it names, or else AdamW's."""
    found: dict[Tensor, tuple[str, ...]] = {}
    for each in optimizers:
        moments: tuple[str, ...] = getattr(each, "moments", ADAMW)
        found |= {value: moments for group in each.param_groups for value in group["params"]}
    return {name: found[value] for name, value in parameters.items()}


def read_state(
    path: Path,
    parameters: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    steps: int,
    about: Mapping[str, str],
) -> State:
    """The state that `write_state` wrote for the same run.

    Raises `CheckpointError` if it belongs to another run, or if anything in it is missing,
    misshapen, not finite, or beyond the end.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({first_line(error)})") from None
    for key, what in DIFFERS.items():
        if metadata.get(key) != about[key]:
            raise CheckpointError(
                f"{path}: the state of a run with {what}; remove it to start again"
            )
    step = metadata.get("step", "")
    if not re.fullmatch(r"[0-9]{1,12}", step) or not 1 <= int(step) <= steps:
        raise damaged(path, f"its step is {step[:40]!r}; expected 1 to {steps}")
    moments = moments_of(parameters, optimizers)
    tensors = checked_tensors(path, parameters, moments)
    for name in parameters:
        if tensors[f"optimizer.step.{name}"].item() != int(step):
            raise damaged(path, f"optimizer.step.{name} is not its step, {step}")
        square = f"optimizer.exp_avg_sq.{name}"
        if square in tensors and bool((tensors[square] < 0).any()):
            raise damaged(path, f"{square} has values below 0")
    optimizer = {
        name: {key: tensors[f"optimizer.{key}.{name}"] for key in ("step", *moments[name])}
        for name in parameters
    }
    return State(int(step), {name: tensors[f"parameter.{name}"] for name in parameters}, optimizer)


def checked_tensors(
    path: Path, parameters: Mapping[str, Tensor], moments: Mapping[str, tuple[str, ...]]
) -> dict[str, Tensor]:
    """The file's tensors: exactly the expected ones, with their shapes and dtypes, all finite."""
    wanted: dict[str, tuple[torch.Size, torch.dtype]] = {}
    for name, value in parameters.items():
        for key in ("parameter", *(f"optimizer.{key}" for key in moments[name])):
            wanted[f"{key}.{name}"] = value.shape, value.dtype
        wanted[f"optimizer.step.{name}"] = torch.Size(()), torch.float32
    found = {}
    for name, tensor, _ in read_file(path):
        if name not in wanted:
            raise damaged(path, f"it holds {name}, which this run does not have")
        if (tensor.shape, tensor.dtype) != wanted[name]:
            shape, dtype = wanted[name]
            raise damaged(
                path,
                f"{name} is {tensor.dtype} {tuple(tensor.shape)}; expected {dtype} {tuple(shape)}",
            )
        if not finite(tensor):
            raise damaged(path, f"{name} has NaN or infinite values")
        found[name] = tensor
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise damaged(path, f"it lacks {missing[0]}")
    return found


def damaged(path: Path, what: str) -> CheckpointError:
    """The error for a damaged state, with what to do."""
    return CheckpointError(f"{path}: {what}; remove it to start again")
