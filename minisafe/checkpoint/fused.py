"""Fused projections, as Phi-3 stores them: q, k and v in one tensor, gate and up in another.

The model has them apart, like every other family, so nothing else knows of it: rows are split when
a directory is read, and joined when one is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from minisafe.checkpoint.header import Stated
from minisafe.checkpoint.plan import quantised
from minisafe.config import LlamaConfig
from minisafe.errors import AdapterError, CheckpointError
from minisafe.lora import LoraDelta


def fused_modules(config: LlamaConfig) -> dict[str, dict[str, int]]:
    """The fused modules of a family's checkpoints, each with its parts in order and their rows."""
    if config.family != "phi3":
        return {}
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    inner = config.intermediate
    found = {}
    for layer in range(config.n_layers):
        attn, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        found[f"{attn}.qkv_proj"] = {
            f"{attn}.q_proj": q, f"{attn}.k_proj": kv, f"{attn}.v_proj": kv
        }  # fmt: skip
        found[f"{mlp}.gate_up_proj"] = {f"{mlp}.gate_proj": inner, f"{mlp}.up_proj": inner}
    return found


def split_stated(
    stated: Mapping[str, Stated], config: LlamaConfig, directory: Path
) -> dict[str, Stated]:
    """What headers state, with the parts of fused tensors in their place. Raises `CheckpointError`
    for one that is missing or has another number of rows."""
    found = dict(stated)
    for module, parts in fused_modules(config).items():
        name, rows = f"{module}.weight", sum(parts.values())
        whole = found.pop(name, None)
        if whole is None:
            raise CheckpointError(f"{directory}: missing tensors: {name}{quantised(stated)}")
        if len(whole.shape) != 2 or whole.shape[0] != rows:
            raise CheckpointError(
                f"{whole.file}: {name} has shape {whole.shape}; the config needs "
                f"{(rows, config.hidden)}"
            )
        for part, n in parts.items():
            shape = (n, *whole.shape[1:])
            found[f"{part}.weight"] = replace(whole, name=f"{part}.weight", shape=shape)
    return found


def split_tensors(
    tensors: Iterable[tuple[str, Tensor, Path]], config: LlamaConfig
) -> Iterator[tuple[str, Tensor, Path]]:
    """The same for tensors that were read, each with its name and file. Parts are views, so they
    stay in the mapped file."""
    fused = fused_modules(config)
    for name, tensor, file in tensors:
        parts = fused.get(name.removesuffix(".weight"))
        if parts is None:
            yield name, tensor, file
            continue
        if len(tensor) != sum(parts.values()):
            raise CheckpointError(f"{file}: {name} changed while the file was read; try again")
        cut = tensor.split_with_sizes(list(parts.values()))
        for part, rows in zip(parts, cut, strict=True):
            yield f"{part}.weight", rows, file


def join_tensors(tensors: Mapping[str, Tensor], config: LlamaConfig) -> dict[str, Tensor]:
    """A model's tensors by the names under which its family stores them."""
    found = dict(tensors)
    for module, parts in fused_modules(config).items():
        found[f"{module}.weight"] = torch.cat([found.pop(f"{part}.weight") for part in parts])
    return found


def split_deltas(deltas: Mapping[str, LoraDelta], config: LlamaConfig) -> dict[str, LoraDelta]:
    """An adapter's deltas by the model's modules: the parts of a fused one share its A. Raises
    `AdapterError` if a part has a delta of its own as well."""
    found = dict(deltas)
    for module, parts in fused_modules(config).items():
        whole = found.pop(module, None)
        if whole is None:
            continue
        for part, b in zip(parts, whole.b.split_with_sizes(list(parts.values())), strict=True):
            if part in found:
                raise AdapterError(f"the adapter has deltas of both {module} and its part {part}")
            found[part] = replace(whole, b=b.contiguous())
    return found
