"""Low-rank deltas as values: `W x` becomes `W x + scaling * B (A x)` on chosen rows of a batch.

Also peft's rules for which modules an adapter is for, and which of its features are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from minisafe.errors import AdapterError


@dataclass(frozen=True)
class LoraDelta:
    """One module's delta. a: (r, in_features), b: (out_features, r). Source: Hu et al., 2021."""

    a: Tensor
    b: Tensor
    scaling: float

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        x = x.to(self.a.dtype)  # while it is trained, a delta may be finer than its base
        return F.linear(F.linear(x, self.a), self.b) * self.scaling

    def weight(self) -> Tensor:
        """The delta as a matrix (out_features, in_features), in float32."""
        return self.b.float() @ self.a.float() * self.scaling


@dataclass(frozen=True)
class LoraAdapter:
    """Deltas by the Hugging Face name of the module they belong to, as
    `model.layers.0.self_attn.q_proj`."""

    deltas: Mapping[str, LoraDelta]
    name: str = "adapter"

    @property
    def n_parameters(self) -> int:
        return sum(delta.a.numel() + delta.b.numel() for delta in self.deltas.values())


@dataclass(frozen=True)
class Applied:
    """An adapter and the rows of a forward's batch that it acts on."""

    adapter: LoraAdapter
    rows: slice


# ---- what peft writes ---------------------------------------------------------------------------

REFUSED = {
    "use_dora": "DoRA",
    "lora_bias": "biases in the low-rank layers",
    "modules_to_save": "whole modules saved beside the low-rank ones",
    "fan_in_fan_out": "transposed weights",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "deltas on bare parameters",
    "alora_invocation_tokens": "activated LoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "routing between adapters",
    "megatron_config": "Megatron's parallel layers",
}
CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
HARMLESS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
    "ensure_weight_tying", "eva_config", "exclude_modules", "inference_mode", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout",
    "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
}  # fmt: skip


def check_adapter_config(config: dict[str, Any], path: Path) -> None:
    """Refuse by name what minisafe would otherwise apply wrongly."""
    if str(config.get("peft_type", "LORA")).upper() != "LORA":
        raise AdapterError(f"{path}: peft_type is {config['peft_type']!r}; expected LORA")
    for key, meaning in REFUSED.items():
        if config.get(key):
            raise AdapterError(f"{path}: {key} ({meaning}) is not supported")
    if config.get("bias", "none") != "none":
        raise AdapterError(f"{path}: bias is {config['bias']!r}; expected 'none'")
    how = config.get("init_lora_weights", True)
    if isinstance(how, str) and how.lower().startswith(CHANGES_BASE):
        raise AdapterError(
            f"{path}: init_lora_weights is {how!r}, which changes the base's own weights; convert "
            "the adapter to a plain LoRA with peft first"
        )
    for key, value in config.items():
        if value and key not in HARMLESS and key not in REFUSED:
            raise AdapterError(f"{path}: {key} is {value!r}, which minisafe does not know")
    check_number(config.get("r", 8), "r", int, path)
    check_number(config.get("lora_alpha", 8), "lora_alpha", float, path)
    check_patterns(config, "rank_pattern", int, path)
    check_patterns(config, "alpha_pattern", float, path)
    layers = config.get("layers_to_transform") or []
    layers = layers if isinstance(layers, list) else [layers]
    if not all(isinstance(layer, int) for layer in layers):
        raise AdapterError(f"{path}: layers_to_transform is {layers!r}; expected layer numbers")


def check_number(value: Any, key: str, kind: type[int] | type[float], path: Path) -> None:
    """Raise `AdapterError` unless `value` is a positive number, and whole where `kind` is int."""
    kinds = (int,) if kind is int else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value < 1e9:
        whole = "whole " if kind is int else ""
        raise AdapterError(f"{path}: {key} is {value!r}; expected a positive {whole}number")


def check_patterns(
    config: dict[str, Any], key: str, kind: type[int] | type[float], path: Path
) -> None:
    """`rank_pattern` and `alpha_pattern` map regular expressions to positive numbers."""
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise AdapterError(f"{path}: {key} is {patterns!r}; expected patterns and numbers")
    for pattern, value in patterns.items():
        check_number(value, f"{key} of {pattern!r}", kind, path)
        try:
            re.compile(rf"(.*\.)?({pattern})$")  # as pattern_value uses it
        except re.error as error:
            raise AdapterError(
                f"{path}: {key} has {pattern!r}, which is no regular expression ({error})"
            ) from None


def is_targeted(name: str, config: dict[str, Any], path: Path) -> bool:
    """Whether peft would put a low-rank layer on module `name`."""
    excluded = config.get("exclude_modules")
    if excluded and names_module(excluded, name, path):
        return False
    target = config.get("target_modules")
    if target == "all-linear":
        chosen = name != "lm_head"
    elif not target:
        raise AdapterError(
            f"{path}: target_modules is {target!r}; expected names, a pattern or all-linear"
        )
    else:
        chosen = names_module(target, name, path)
    layers = config.get("layers_to_transform")
    if chosen and layers not in (None, []):
        layer = re.search(r"\.layers\.(\d+)\.", name)
        chosen = layer is not None and int(layer[1]) in (
            [layers] if isinstance(layers, int) else layers
        )
    return chosen


def names_module(target: Any, name: str, path: Path) -> bool:
    """peft's rule: a string is a regular expression for the whole name, a list holds endings."""
    if isinstance(target, str):
        try:
            return re.fullmatch(target, name) is not None
        except re.error as error:
            raise AdapterError(f"{path}: {target!r} is no regular expression ({error})") from None
    if not isinstance(target, list):
        raise AdapterError(f"{path}: target_modules is {target!r}; expected names or a pattern")
    return any(name == each or name.endswith(f".{each}") for each in target)


def pattern_value(config: dict[str, Any], key: str, name: str, default: Any) -> Any:
    """`rank_pattern` and `alpha_pattern`: the first pattern that ends the module's name decides."""
    for pattern, value in (config.get(key) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default
