"""From settings to parts: the device, the steering, the streams and the rule that they ask for."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from minisafe.checkpoint import (
    ADAPTER_CONFIG,
    fingerprint,
    load_adapter,
    load_model,
    read_tensors,
    sample,
)
from minisafe.errors import SafetyError, SafetyWarning, SettingError
from minisafe.gate import Calibration, Gate
from minisafe.guidance import RULES
from minisafe.lockstep import Stream
from minisafe.lora import LoraAdapter
from minisafe.model import Llama
from minisafe.session.settings import Settings
from minisafe.session.vouched import TOKENIZER_FILES
from minisafe.tokenizer import (
    Tokenizer,
    check_same_vocabulary,
    check_tokenizer,
    load_tokenizer,
)
from minisafe.vectors import SafetyVector, Steering, check_vector


def check_device(device: str) -> str:
    """Raise `SettingError` for a device that torch does not know or that is not there."""
    try:
        torch.zeros(1, device=torch.device(device)).item()  # "meta" has no values to give
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise SettingError(f"device {device!r} cannot be used ({first}); try cpu") from None
    return device


def make_steering(
    settings: Settings, vector: SafetyVector, model: Llama, tokenizer: Tokenizer
) -> Steering:
    """The steering that the settings ask for; raises `VectorError` or `SettingError`."""
    source, config = str(settings.vector), model.config
    check_vector(vector, source, config.hidden, config.n_layers, tokenizer.fingerprint)
    layers = vector.at(settings.sa_layer)
    for layer in layers:
        if not 0 <= layer < config.n_layers:
            raise SettingError(
                f"sa_layer is {layer}; the model has layers 0 to {config.n_layers - 1}"
            )
    made_for = vector.metadata.get("weights")
    if made_for is not None and not has_fingerprint(model, settings, made_for):
        warnings.warn(
            f"{source} was made with other weights of the same shape; its effect is not measured "
            "on these",
            SafetyWarning,
            stacklevel=2,
        )
    placed = {layer: values.to(model.device) for layer, values in layers.items()}
    return Steering(placed, settings.sa_scale, settings.sa_positions)


def has_fingerprint(model: Llama, settings: Settings, wanted: str) -> bool:
    """Whether these are the weights with fingerprint `wanted`, be it before a change of dtype."""
    if fingerprint(model) == wanted:
        return True
    if settings.dtype is None or settings.edit is not None or settings.base is None:
        return False
    return fingerprint(load_model(settings.base)) == wanted


def make_expert(settings: Settings, model: Llama, tokenizer: Tokenizer) -> tuple[Stream, str]:
    """The expert's stream, and which of the three kinds it is."""
    return make_stream(settings.expert, settings, model, tokenizer)


def make_streams(
    settings: Settings, model: Llama, tokenizer: Tokenizer
) -> tuple[tuple[Stream, ...], tuple[str, ...]]:
    """All streams that the settings ask for, the base first, and the kinds of those after it."""
    sources: tuple[Path | None, ...] = ()
    if settings.safe and settings.guided:
        sources = (settings.expert, settings.anti_expert)[: RULES[settings.rule].n_streams - 1]
    made = [make_stream(source, settings, model, tokenizer) for source in sources]
    return (Stream(model), *(stream for stream, _ in made)), tuple(kind for _, kind in made)


def make_stream(
    source: Path | None, settings: Settings, model: Llama, tokenizer: Tokenizer
) -> tuple[Stream, str]:
    """A stream of a model or adapter directory, or of the base itself where there is none."""
    if source is None:
        return Stream(model), "system prompt"
    if (source / ADAPTER_CONFIG).is_file():
        return Stream(model, load_adapter(source, model)), "adapter"
    expert = load_model(source, settings.dtype or str(model.dtype).split(".")[-1], settings.device)
    its_own = load_tokenizer(source)
    check_same_vocabulary(tokenizer, its_own)
    ours, theirs = model.config.vocab_size, expert.config.vocab_size
    check_tokenizer(its_own, theirs)
    if ours != theirs and not settings.allow_padding:
        raise SafetyError(
            f"the base embeds {ours} ids and the expert {theirs}; if the rest is unused padding at "
            "the end, say so with --allow-padding"
        )
    return Stream(expert), "checkpoint"


# ---- the gate ----------------------------------------------------------------------------------


def fingerprints(streams: Sequence[Stream], steering: Steering | None) -> dict[str, str]:
    """Short hashes of what decodes: `base`, `expert`, `anti_expert`, `vector`, as far as used."""
    found = {}
    for name, stream in zip(("base", "expert", "anti_expert"), streams, strict=False):
        found[name] = fingerprint(stream.model)
        if stream.adapter is not None:
            found[name] += "+" + adapter_fingerprint(stream.adapter)
    if steering is not None and steering.scale != 0:
        vectors = {layer: digest(values) for layer, values in sorted(steering.vectors.items())}
        found["vector"] = hashlib.sha256(json.dumps(vectors).encode()).hexdigest()[:16]
    return found


def made_for(settings: Settings, steering: Steering | None) -> str:
    """A hash of what the variation at the answer's first token depends on: weights as their files
    hold them, tokenizer and chat template, the vector, where it acts, and system prompts.

    Neither dtype nor cache_dtype is in it: either moves a variation by about 0.003, at most 0.04,
    where harmful prompts lie 0.08 above the shipped gate's threshold (docs/log.md).
    """
    sources = (settings.base, settings.edit, settings.expert)
    parts: list[object] = [None if each is None else files_hash(each) for each in sources]
    assert settings.base is not None
    parts += [text_hash(settings.base), settings.system, settings.expert_system]
    parts += [dict(sorted(settings.template_options.items()))]
    if steering is not None and steering.scale != 0:
        vectors = {layer: digest(values) for layer, values in sorted(steering.vectors.items())}
        parts += [vectors, steering.scale, steering.positions]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def files_hash(directory: Path) -> str:
    """A hash of a model's or adapter's tensors: names, shapes and 256 values of each, evenly
    spread, so that a large model is not read whole."""
    found = hashlib.sha256()
    if (directory / ADAPTER_CONFIG).is_file():
        found.update((directory / ADAPTER_CONFIG).read_bytes())
    for name, tensor, _ in sorted(read_tensors(directory), key=lambda each: each[0]):
        found.update(f"{name} ".encode() + sample(tensor))
    return found.hexdigest()[:16]


def text_hash(directory: Path) -> str:
    """A hash of the files that turn a chat into ids: the tokenizer and its template."""
    found = hashlib.sha256()
    for name in TOKENIZER_FILES:
        if (directory / name).is_file():
            found.update(f"{name} ".encode() + (directory / name).read_bytes())
    return found.hexdigest()[:16]


def digest(values: torch.Tensor) -> str:
    """A hash of a tensor's values."""
    return hashlib.sha256(values.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()


def adapter_fingerprint(adapter: LoraAdapter) -> str:
    """A hash of an adapter's deltas, taken in bf16, so that it is the same in a wider dtype."""
    parts = [
        [name, delta.scaling, *(digest(each.bfloat16()) for each in (delta.a, delta.b))]
        for name, delta in sorted(adapter.deltas.items())
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def make_gate(
    settings: Settings, calibration: Calibration | None, made_for_these: str
) -> Gate | None:
    """The calibrated gate, if it is on; raises `SafetyError` where it is asked for and cannot be.

    A gate lets answers pass unguided, so it is off unless its calibration is for these very weights
    and settings.
    """
    if not settings.safe or settings.gate is False:
        return None
    if not settings.gate and (calibration is None or not settings.guided):
        return None
    if settings.sa_positions == "all" and settings.sa_scale != 0:
        why = "steering of all positions cannot be taken back, so no gate fits it"
    elif calibration is None:
        why = "the profile holds no calibration; make one with `minisafe calibrate`"
    elif not settings.guided:
        why = "there is no expert to compare the base with"
    elif calibration.made_for != made_for_these:
        why = "its calibration is for other weights or settings; run `minisafe calibrate` again"
    else:
        return calibration.gate
    if settings.gate:
        raise SafetyError(f"the gate cannot be on: {why}")
    warnings.warn(f"the gate is off: {why}", SafetyWarning, stacklevel=2)
    return None
