"""PEFT's rules: supported features of an adapter's config, its modules, and their values."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisafe.checkpoint.pattern import Pattern, PatternError
from minisafe.errors import AdapterError
from minisafe.files.display import harmless

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
MAX_TARGETS = 10_000  # patterns of ranks or alphas
CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
HARMLESS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
    "ensure_weight_tying", "eva_config", "exclude_modules", "inference_mode", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout",
    "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
}  # fmt: skip


def check_adapter_config(config: dict[str, Any], path: Path) -> None:
    """Raise an `AdapterError` that names a feature that minisafe would otherwise apply wrongly."""
    if str(config.get("peft_type", "LORA")).upper() != "LORA":
        raise AdapterError(f"{path}: peft_type is {short(config['peft_type'])}; expected LORA")
    for key, meaning in REFUSED.items():
        if config.get(key):
            raise AdapterError(f"{path}: {key} ({meaning}) is not supported")
    if config.get("bias", "none") != "none":
        raise AdapterError(f"{path}: bias is {short(config['bias'])}; expected 'none'")
    how = config.get("init_lora_weights", True)
    if isinstance(how, str) and how.lower().startswith(CHANGES_BASE):
        raise AdapterError(
            f"{path}: init_lora_weights is {short(how)}, which changes the base's own weights; "
            "convert the adapter to a plain LoRA with peft first"
        )
    for key, value in config.items():
        if value and key not in HARMLESS and key not in REFUSED:
            raise AdapterError(
                f"{path}: {key} is {short(value)}; minisafe does not know this key, so expected "
                "none"
            )
    check_number(config.get("r", 8), "r", int, path)
    check_number(config.get("lora_alpha", 8), "lora_alpha", float, path)
    check_patterns(config, "rank_pattern", int, path)
    check_patterns(config, "alpha_pattern", float, path)
    layers_of(config, path)


def check_number(value: Any, key: str, kind: type[int] | type[float], path: Path) -> None:
    """Raise `AdapterError` unless `value` is a positive number, a whole one if `kind` is int."""
    kinds = (int,) if kind is int else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value < 1e9:
        whole = "whole " if kind is int else ""
        raise AdapterError(f"{path}: {key} is {short(value)}; expected a positive {whole}number")


def check_patterns(
    config: dict[str, Any], key: str, kind: type[int] | type[float], path: Path
) -> None:
    """Check `rank_pattern` or `alpha_pattern`: regular expressions and positive numbers."""
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict) or len(patterns) > MAX_TARGETS:
        raise AdapterError(
            f"{path}: {key} is {short(patterns)}; expected up to {MAX_TARGETS} patterns and numbers"
        )
    for pattern, value in patterns.items():
        check_number(value, f"{key} of {short(pattern)}", kind, path)
        compiled(pattern, key, path)


def compiled(source: str, key: str, path: Path) -> Pattern:
    """A regular expression from an adapter's config; raises `AdapterError`."""
    try:
        return Pattern(source)
    except PatternError as error:
        raise refused_pattern(source, key, path, error) from None


def refused_pattern(source: str, key: str, path: Path, error: PatternError) -> AdapterError:
    """The error for an unsupported pattern."""
    return AdapterError(f"{path}: {key} has the pattern {short(source)}: {error}")


def short(value: Any) -> str:
    """A value for an error message."""
    return harmless(repr(value), 200)


@dataclass(frozen=True)
class Selection:
    """peft's rule for `target_modules` and `exclude_modules`: a string is a regular expression for
    a module's whole name; a list holds names, or the parts of names after a dot."""

    key: str
    path: Path
    names: frozenset[str] = frozenset()
    pattern: str | None = None

    @classmethod
    def of(cls, value: Any, key: str, path: Path) -> Selection:
        """The selection from a config's value; raises `AdapterError` for other types."""
        if isinstance(value, str):
            return cls(key, path, pattern=value)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise AdapterError(f"{path}: {key} is {short(value)}; expected names or a pattern")
        return cls(key, path, frozenset(value))

    def of_modules(self, modules: Iterable[str]) -> set[str]:
        """The selected modules."""
        if self.pattern is None:
            return {name for name in modules if not self.names.isdisjoint(endings(name))}
        pattern = compiled(self.pattern, self.key, self.path)
        try:
            return {name for name in modules if pattern.fullmatch(name)}
        except PatternError as error:
            raise refused_pattern(self.pattern, self.key, self.path, error) from None


def endings(name: str) -> list[str]:
    """A name, and its parts after each dot."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def targeted_modules(modules: Iterable[str], config: dict[str, Any], path: Path) -> set[str]:
    """The linear modules of a model that get low-rank layers from peft."""
    target, excluded = config.get("target_modules"), config.get("exclude_modules")
    if not target:
        raise AdapterError(
            f"{path}: target_modules is {target!r}; expected names, a pattern or all-linear"
        )
    if target == "all-linear":
        chosen = set(modules) - {"lm_head"}
    else:
        chosen = Selection.of(target, "target_modules", path).of_modules(modules)
    if excluded:
        chosen -= Selection.of(excluded, "exclude_modules", path).of_modules(modules)
    layers = layers_of(config, path)
    return {name for name in chosen if not layers or layer_of(name) in layers}


def layers_of(config: dict[str, Any], path: Path) -> set[int]:
    """The selected layers, from a number or a list; empty for all."""
    given = config.get("layers_to_transform")
    layers = [] if given is None else given if isinstance(given, list) else [given]
    if not all(type(layer) is int for layer in layers):
        raise AdapterError(f"{path}: layers_to_transform is {short(given)}; expected layer numbers")
    return set(layers)


def layer_of(name: str) -> int | None:
    """The layer of a module."""
    found = re.search(r"\.layers\.(\d+)\.", name)
    return None if found is None else int(found[1])


class PatternValues:
    """`rank_pattern` or `alpha_pattern`: the first pattern that matches the module's name, or its
    end after a dot, decides; otherwise the default holds."""

    def __init__(self, config: dict[str, Any], key: str, default: Any, path: Path):
        self.key, self.default, self.path = key, default, path
        given = (config.get(key) or {}).items()
        self.values = [(source, compiled(source, key, path), value) for source, value in given]

    def of(self, name: str) -> Any:
        """The value for one module; raises `AdapterError` for a pattern that takes too long."""
        for source, pattern, value in self.values:
            try:
                if pattern.ends(name):
                    return value
            except PatternError as error:
                raise refused_pattern(source, self.key, self.path, error) from None
        return self.default
