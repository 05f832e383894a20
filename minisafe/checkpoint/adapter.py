"""LoRA adapters in PEFT's format: directories to values and back. See `peft` for the rules."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from minisafe.checkpoint.files import check_finite, read_file, save_tensors
from minisafe.checkpoint.fused import fused_modules, split_deltas
from minisafe.checkpoint.peft import PatternValues, check_adapter_config, targeted_modules
from minisafe.checkpoint.plan import EMBED, tensor_shapes
from minisafe.errors import AdapterError
from minisafe.files import read_json, write_text
from minisafe.lora import LoraAdapter, LoraDelta
from minisafe.model import Llama

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])(?:\.default)?\.weight")
COPY = re.compile(r"base_model\.model\.(?P<module>.+?)(?:\.base_layer)?\.(?P<kind>weight|bias)")


def load_adapter(directory: str | Path, model: Llama) -> LoraAdapter:
    """Load a PEFT LoRA directory for `model`, in the model's dtype and on its device.

    Raises `AdapterError` for an unsupported feature (the error names it), a tensor that does not
    fit, or a module that the config targets but the file lacks.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise AdapterError(f"{directory}: no such directory; expected a PEFT adapter directory")
    path = directory / ADAPTER_CONFIG
    config = read_json(path, "a PEFT adapter directory has one")
    check_adapter_config(config, path)
    modules = linear_modules(model)
    for name, parts in fused_modules(model.config).items():  # as peft knows them
        modules[name] = sum(parts.values()), model.config.hidden
    targeted = targeted_modules(modules, config, path)
    if not targeted:
        raise AdapterError(
            f"{path}: target_modules match nothing in this {model.config.family} model"
        )
    ranks = PatternValues(config, "rank_pattern", config.get("r", 8), path)
    alphas = PatternValues(config, "alpha_pattern", config.get("lora_alpha", 8), path)
    found = read_adapter_tensors(directory, model, modules, targeted)
    deltas = {}
    for name in sorted(targeted):
        a, b = (_require(found, name, part, directory) for part in "AB")
        rank, alpha = ranks.of(name), alphas.of(name)
        _check_delta(name, a, b, rank, modules[name], directory)
        scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
        a, b = (tensor.to(model.device, model.dtype) for tensor in (a, b))
        deltas[name] = LoraDelta(a, b, scaling)
    return LoraAdapter(split_deltas(deltas, model.config), directory.name)


def linear_modules(model: Llama) -> dict[str, tuple[int, int]]:
    """(out_features, in_features) of every linear module, by Hugging Face name."""
    return {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in tensor_shapes(model.config)
        if len(shape) == 2 and name != EMBED
    }


def read_adapter_tensors(
    directory: Path, model: Llama, modules: Mapping[str, tuple[int, int]], targeted: set[str]
) -> dict[tuple[str, str], Tensor]:
    """(module, "A" or "B") -> tensor; each is targeted and finite.

    peft stores copies of the base's own tensors with deltas of the head. This skips them if they
    equal the base's tensors.
    """
    path = directory / ADAPTER_WEIGHTS
    if not path.is_file():
        hint = "; .bin adapters are pickles, save them again with peft as safetensors"
        raise AdapterError(f"{path}: no such file{hint if list(directory.glob('*.bin')) else ''}")
    found = {}
    for name, tensor, _ in read_file(path):
        match = KEY.fullmatch(name)
        if match is None:
            _check_copy(name, tensor, model, path)
            continue
        module = match["module"]
        if module not in modules:
            raise AdapterError(f"{path}: {name} is for {module}, which this model does not have")
        if module not in targeted:
            raise AdapterError(
                f"{path}: {name} is for {module}, which {ADAPTER_CONFIG} does not target"
            )
        check_finite(tensor, name, path)
        found[module, match["part"]] = tensor
    return found


def _check_copy(name: str, tensor: Tensor, model: Llama, path: Path) -> None:
    """Raise `AdapterError` unless the tensor is a copy of one of the base's tensors."""
    match = COPY.fullmatch(name)
    base = _own_tensor(model, f"{match['module']}.{match['kind']}") if match else None
    if match is None or base is None:
        raise AdapterError(f"{path}: unexpected tensor {name}; expected LoRA A and B matrices")
    check_finite(tensor, name, path)
    if not torch.equal(tensor.to(base.dtype), base.cpu()):
        raise AdapterError(
            f"{path}: {name} holds base weights that differ from this base's; if they were "
            "trained, merge the adapter (peft: merge_and_unload) and use the whole model, "
            "otherwise save it with save_pretrained(..., save_embedding_layers=False)"
        )


def _own_tensor(model: Llama, name: str) -> Tensor | None:
    """A tensor of the base; None if it has no such name, or holds its weights in another form."""
    if model.weights != "plain":
        return None
    if name == "lm_head.weight" and model.config.tied:
        name = "model.embed_tokens.weight"
    return model.tensors().get(name)


def _require(found: dict[tuple[str, str], Tensor], name: str, part: str, directory: Path) -> Tensor:
    if (name, part) not in found:
        raise AdapterError(f"{directory / ADAPTER_WEIGHTS}: lacks lora_{part} of {name}")
    return found[name, part]


def _check_delta(
    name: str, a: Tensor, b: Tensor, rank: int, shape: tuple[int, int], directory: Path
) -> None:
    out_features, in_features = shape
    if tuple(a.shape) != (rank, in_features) or tuple(b.shape) != (out_features, rank):
        raise AdapterError(
            f"{directory}: the delta of {name} has A {tuple(a.shape)} and B {tuple(b.shape)}; this "
            f"model and rank need {(rank, in_features)} and {(out_features, rank)}"
        )


def save_adapter(
    adapter: LoraAdapter, directory: str | Path, rank: int, alpha: float, base: str = ""
) -> None:
    """Write a PEFT directory that both minisafe and peft load.

    All deltas must have this rank and the scaling alpha / rank: the file states only these two."""
    directory, modules, tensors = Path(directory), sorted(adapter.deltas), {}
    for name, delta in adapter.deltas.items():
        for part, tensor in (("A", delta.a), ("B", delta.b)):
            tensors[f"base_model.model.{name}.lora_{part}.weight"] = tensor.detach().contiguous()
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank,
        "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
        "inference_mode": True, "target_modules": modules,
    }  # fmt: skip
    save_tensors(tensors, directory / ADAPTER_WEIGHTS)
    write_text(directory / ADAPTER_CONFIG, json.dumps(config, indent=2) + "\n")


def merge_adapter(model: Llama, adapter: LoraAdapter) -> None:
    """Add an adapter's deltas to the model's own weights, computed in float32."""
    tensors = model.tensors()
    for name, delta in adapter.deltas.items():
        weight = tensors[f"{name}.weight"]
        merged = (weight.float() + delta.weight()).to(weight.dtype)  # never into the mapped file
        model.put(f"{name}.weight", merged)
