"""LoRA adapters in PEFT's format: directories to values and back. `minisafe.lora` has its rules."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from torch import Tensor

from minisafe.checkpoint.files import check_finite, read_file, save_tensors
from minisafe.errors import AdapterError
from minisafe.files import read_json, write_text
from minisafe.lora import (
    LoraAdapter,
    LoraDelta,
    check_adapter_config,
    is_targeted,
    pattern_value,
)
from minisafe.model import Llama, projections

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])(?:\.default)?\.weight")


def load_adapter(directory: str | Path, model: Llama) -> LoraAdapter:
    """Load a PEFT LoRA directory for `model`, in the model's dtype and on its device.

    Raises `AdapterError` for features that are not applied (by name), tensors that do not fit, and
    modules that the config targets and the file lacks.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise AdapterError(f"{directory}: no such directory; expected a PEFT adapter directory")
    path = directory / ADAPTER_CONFIG
    config = read_json(path, "a PEFT adapter directory has one")
    check_adapter_config(config, path)
    modules = linear_modules(model)
    targeted = {name for name in modules if is_targeted(name, config, path)}
    if not targeted:
        raise AdapterError(
            f"{path}: target_modules match nothing in this {model.config.family} model"
        )
    found = read_adapter_tensors(directory, modules, targeted)
    deltas = {}
    for name in sorted(targeted):
        a, b = (_require(found, name, part, directory) for part in "AB")
        rank = pattern_value(config, "rank_pattern", name, config.get("r", 8))
        _check_delta(name, a, b, rank, modules[name], directory)
        alpha = pattern_value(config, "alpha_pattern", name, config.get("lora_alpha", 8))
        scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
        a, b = (tensor.to(model.device, model.dtype) for tensor in (a, b))
        deltas[name] = LoraDelta(a, b, scaling)
    return LoraAdapter(deltas, directory.name)


def linear_modules(model: Llama) -> dict[str, tuple[int, int]]:
    """(out_features, in_features) of every linear module, by Hugging Face name."""
    return {
        name: (size, projection.in_features)
        for projection in projections(model)
        for name, size in projection.sizes.items()
    }


def read_adapter_tensors(
    directory: Path, modules: dict[str, tuple[int, int]], targeted: set[str]
) -> dict[tuple[str, str], Tensor]:
    """(module, "A" or "B") -> tensor, each one known to be wanted and finite."""
    path = directory / ADAPTER_WEIGHTS
    if not path.is_file():
        hint = "; .bin adapters are pickles, save them again with peft as safetensors"
        raise AdapterError(f"{path}: no such file{hint if list(directory.glob('*.bin')) else ''}")
    found = {}
    for name, tensor, _ in read_file(path):
        match = KEY.fullmatch(name)
        if match is None:
            raise AdapterError(f"{path}: unexpected tensor {name}; expected LoRA A and B matrices")
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
            f"model and rank ask for {(rank, in_features)} and {(out_features, rank)}"
        )


def save_adapter(
    adapter: LoraAdapter, directory: str | Path, rank: int, alpha: float, base: str = ""
) -> None:
    """Write a PEFT directory that both minisafe and peft load. The deltas
    must share the rank, and have the scaling alpha / rank, which the file states in their place."""
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
