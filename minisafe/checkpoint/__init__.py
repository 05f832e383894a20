"""Directories to values and back: models and LoRA adapters in Hugging Face's formats.

This file has models and their fingerprints, `adapter` has adapters, and `files` reads and writes
the tensors of both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minisafe.checkpoint.adapter import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    linear_modules,
    load_adapter,
    save_adapter,
)
from minisafe.checkpoint.config import config_json, load_config
from minisafe.checkpoint.files import (
    DTYPES,
    INDEX,
    SINGLE,
    check_finite,
    finite,
    first_line,
    read_file,
    read_one,
    read_tensors,
    save_tensors,
    short,
    stated_in,
    stated_tensors,
    unread,
)
from minisafe.checkpoint.fused import join_tensors, split_stated, split_tensors
from minisafe.checkpoint.header import Stated
from minisafe.checkpoint.plan import EMBED, HEAD, make_plan
from minisafe.checkpoint.rounded import refuse_rounded
from minisafe.config import LlamaConfig
from minisafe.errors import CheckpointError, OutOfMemory, SettingError
from minisafe.files import write_text
from minisafe.model import Llama

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "EMBED",
    "HEAD",
    "INDEX",
    "SINGLE",
    "as_dtype",
    "check_tied",
    "fingerprint",
    "fingerprint_of",
    "finite",
    "first_dtype",
    "first_line",
    "is_out_of_memory",
    "linear_modules",
    "load_adapter",
    "load_model",
    "read_file",
    "read_tensors",
    "sample",
    "samples_of",
    "save_adapter",
    "save_model",
    "save_tensors",
    "stated_in",
    "stated_tensors",
]


def load_model(
    directory: str | Path,
    dtype: str | torch.dtype | None = None,
    device: str = "cpu",
    config: LlamaConfig | None = None,
    make: Callable[[LlamaConfig], Llama] = Llama,
) -> Llama:
    """Load a Hugging Face model directory.

    With the checkpoint's own dtype on the CPU, the weights stay in the mapped file.

    Args:
        dtype: float32, bfloat16 or float16; None keeps the checkpoint's dtype.
        config: the model's shape; by default read from the directory.
        make: what is built of that shape, a subclass where a family differs.

    Raises:
        ConfigError: the config is missing, malformed or not supported.
        CheckpointError: weights are missing, truncated, misshapen, unexpected or not finite.
        OutOfMemory: a conversion or a device had too little memory.
    """
    directory = Path(directory)
    refuse_rounded(directory)
    config = load_config(directory) if config is None else config
    wanted = as_dtype(dtype if dtype is not None else config.dtype)
    stated = split_stated(stated_tensors(directory), config, directory)
    names = make_plan(config, stated, directory, wanted, device)
    wanted = wanted or first_dtype(directory, names)
    check_tied(config, stated, directory, wanted)
    with torch.device("meta"):
        model = make(config)
    missing = model.tensors()
    read = split_tensors(read_tensors(directory), config)
    for name, tensor in checked_tensors(read, names, missing, wanted, device):
        model.put(name, tensor)
        del missing[name]
    if missing:
        raise CheckpointError(f"{directory}: its files changed while they were read; try again")
    return model.requires_grad_(False).eval()


def checked_tensors(
    read: Iterable[tuple[str, Tensor, Path]],
    names: Mapping[str, str],
    missing: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: str,
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of what was read and is `missing`: checked, in `dtype`, on `device`.

    Args:
        read: (name, tensor, file) of what a model directory holds.
        names: the name in the model of each tensor to read, by its name in the files.
        missing: tensors that the model has yet to get, by name; each gives the shape.

    Raises `CheckpointError` for a tensor that is misshapen or not finite, `OutOfMemory` where a
    conversion or a device had too little room.
    """
    for stored, tensor, file in read:
        name = names.get(stored, "")
        if name in missing:
            yield name, fitted(tensor, missing[name].shape, stored, file, dtype, device)


def first_dtype(directory: Path, names: Mapping[str, str]) -> torch.dtype:
    """The dtype of the first tensor that the files hold under the model's own name for it."""
    found = (
        each.dtype for stored, each, _ in read_tensors(directory) if names.get(stored) == stored
    )
    return next(found, torch.float32)


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A torch dtype from its name; raises `SettingError` for an unsupported one."""
    if dtype is None:
        return None
    name = short(dtype) if isinstance(dtype, torch.dtype) else dtype
    if name not in DTYPES:
        raise SettingError(f"dtype is {name!r}; expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def fitted(
    tensor: Tensor, shape: torch.Size, name: str, source: Path, dtype: torch.dtype, device: str
) -> Tensor:
    """A checked tensor of a file, in `dtype` on `device`; the same object if nothing changes."""
    if tensor.shape != shape:
        raise CheckpointError(f"{source}: {name} changed while the file was read; try again")
    check_finite(tensor, name, source)
    placed = move(tensor, name, dtype, device)
    if placed is tensor and name == EMBED:
        placed = unread(tensor, name, source)
    if dtype != tensor.dtype and not finite(placed):
        raise CheckpointError(
            f"{source}: {name} has values beyond the range of {short(dtype)}; use another dtype"
        )
    return placed


def check_tied(
    config: LlamaConfig, stated: Mapping[str, Stated], directory: Path, dtype: torch.dtype
) -> None:
    """Raise `CheckpointError` if the config ties the heads and the files hold two that differ in
    `dtype`, the dtype that will be run."""
    if not config.tied or not {EMBED, HEAD} <= stated.keys():
        return
    embed, head = read_one(stated[EMBED]), read_one(stated[HEAD])
    if torch.equal(move(embed, EMBED, dtype, "cpu"), move(head, HEAD, dtype, "cpu")):
        return
    fitted(embed, embed.shape, EMBED, stated[EMBED].file, dtype, "cpu")  # NaN is the better reason
    raise CheckpointError(
        f"{directory}: the config ties the heads, but {HEAD} and {EMBED} differ; set "
        "tie_word_embeddings to false, or remove one"
    )


def move(tensor: Tensor, name: str, dtype: torch.dtype, device: str) -> Tensor:
    """The tensor in `dtype` on `device`; the same object if nothing changes."""
    try:
        return tensor.to(device=device, dtype=dtype)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise CheckpointError(f"cannot move {name} to {device}: {first_line(error)}") from None
        size = tensor.numel() * dtype.itemsize
        raise OutOfMemory(
            f"{name} needs {size / 2**20:.0f} MiB more as {short(dtype)} on {device}, "
            "but there is not enough memory; use a smaller dtype or model"
        ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python ran out of memory (the CPU allocator raises a bare RuntimeError, and
    so does a thread that gets no stack)."""
    memory = (MemoryError, torch.OutOfMemoryError)
    said = ("allocate memory", "can't start new thread")
    return isinstance(error, memory) or any(each in str(error) for each in said)


def save_model(model: Llama, directory: str | Path, extra: dict[str, Any] | None = None) -> None:
    """Write `config.json` (with `extra` keys such as eos_token_id) and `model.safetensors`."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = config_json(model.config) | {"torch_dtype": short(model.dtype)}
    tensors = {name: each.detach().contiguous() for name, each in model.tensors().items()}
    tensors = join_tensors(tensors, model.config)
    save_tensors(tensors, directory / SINGLE)
    write_text(directory / "config.json", json.dumps(config | (extra or {}), indent=2) + "\n")


def fingerprint(model: Llama, samples: int = 256) -> str:
    """A short hash that identifies weights: names, shapes and evenly spaced values of each tensor.

    It is cheap, because it does not read the whole mapped file. Values are taken in float32, so a
    converted copy of the same bf16 weights has the same fingerprint. A prepared model has the
    fingerprint of its original weights.
    """
    if model.fingerprint is not None:
        return model.fingerprint
    return fingerprint_of(samples_of(model, samples))


def fingerprint_of(samples: Mapping[str, bytes]) -> str:
    """The fingerprint of a model with these samples, by tensor name."""
    digest = hashlib.sha256()
    for name, values in sorted(samples.items()):
        digest.update(f"{name} ".encode() + values)
    return digest.hexdigest()[:16]


def samples_of(model: Llama, n: int = 256, without: str | None = None) -> dict[str, bytes]:
    """A `sample` of every tensor of a plain model, except the one named `without`."""
    return {name: sample(each, n) for name, each in model.tensors().items() if name != without}


def sample(tensor: Tensor, n: int = 256) -> bytes:
    """A tensor's shape and about n of its values, evenly spaced, in float32."""
    flat = tensor.detach().flatten()
    picked = flat[:: max(1, len(flat) // n)].float().cpu().contiguous()
    return f"{tuple(tensor.shape)}".encode() + picked.numpy().tobytes()
