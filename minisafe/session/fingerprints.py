"""Short hashes of what decodes: streams, vector, and all that a calibration depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from minisafe.checkpoint import ADAPTER_CONFIG, fingerprint, sample, stated_tensors
from minisafe.checkpoint.files import read_one
from minisafe.checkpoint.rounded import read_form
from minisafe.lockstep import Stream
from minisafe.lora import LoraAdapter
from minisafe.probe import Probe
from minisafe.session.settings import Settings
from minisafe.session.vouched import TOKENIZER_FILES
from minisafe.vectors import Steering


def fingerprints(
    streams: Sequence[Stream], steering: Steering | None, others: Sequence[str]
) -> dict[str, str]:
    """Short hashes of what decodes: `base`, `vector` if used, and `others`, the streams after the
    base."""
    found = {}
    for name, stream in zip(("base", *others), streams, strict=True):
        found[name] = fingerprint(stream.model)
        if stream.adapter is not None:
            found[name] += "+" + adapter_fingerprint(stream.adapter)
    if steering is not None and steering.scale != 0:
        vectors = {layer: tensor_hash(values) for layer, values in sorted(steering.vectors.items())}
        found["vector"] = hashlib.sha256(json.dumps(vectors).encode()).hexdigest()[:16]
    return found


def made_for(settings: Settings, steering: Steering | None, probe: Probe | None = None) -> str:
    """A hash of what the variation at the answer's first token depends on: weights as stored in
    their files, tokenizer and chat template, the vector with its scale and positions, and system
    prompts; and of the probe that is asked instead, if there is one.

    It leaves out dtype, cache_dtype and weights: each changes a variation by about 0.003, at most
    0.04, and a probe's value by 0.0004, at most 0.03 (docs/log.md).
    """
    sources = (settings.base, settings.edit, settings.expert)
    parts: list[object] = [None if each is None else files_hash(each) for each in sources]
    assert settings.base is not None
    system = "read alone" if settings.read_alone else settings.system  # parts are behind none
    parts += [text_hash(settings.base), system, settings.expert_system]
    parts += [dict(sorted(settings.template_options.items()))]
    if "anchor" in settings.others:
        files = (settings.anchor, settings.anchor_shots)
        parts += [settings.rule, settings.anchor_system, list(settings.steered_streams)]
        parts += [None if each is None else part_hash(each) for each in files]
    if probe is not None:
        parts += [tensor_hash(probe.weight), tensor_hash(probe.bias)]
    if steering is not None and steering.scale != 0:
        vectors = {layer: tensor_hash(values) for layer, values in sorted(steering.vectors.items())}
        parts += [vectors, steering.scale, steering.positions]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def part_hash(path: Path) -> str:
    """A hash of a directory's tensors, or of a file."""
    return files_hash(path) if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def files_hash(directory: Path) -> str:
    """A hash of a model's or adapter's tensors: names, shapes and about 256 values of each, evenly
    spaced, so that a large model is not read whole. Of rounded weights, the hash that stands for
    them (`Form.identity`)."""
    form = read_form(directory)
    if form is not None:
        return form.identity[1]
    found = hashlib.sha256()
    if (directory / ADAPTER_CONFIG).is_file():
        found.update((directory / ADAPTER_CONFIG).read_bytes())
    for name, stated in sorted(stated_tensors(directory).items()):
        # one mapping at a time: the pages around each value count as this process's memory
        found.update(f"{name} ".encode() + sample(read_one(stated)))
    return found.hexdigest()[:16]


def text_hash(directory: Path) -> str:
    """A hash of the files that turn a chat into ids: the tokenizer and its template."""
    found = hashlib.sha256()
    for name in TOKENIZER_FILES:
        if (directory / name).is_file():
            found.update(f"{name} ".encode() + (directory / name).read_bytes())
    return found.hexdigest()[:16]


def tensor_hash(values: torch.Tensor) -> str:
    """A hash of a tensor's values."""
    return hashlib.sha256(values.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()


def adapter_fingerprint(adapter: LoraAdapter) -> str:
    """A hash of an adapter's deltas, converted to bf16 so that a wider dtype gives the same."""
    parts = [
        [name, delta.scaling, *(tensor_hash(each.bfloat16()) for each in (delta.a, delta.b))]
        for name, delta in sorted(adapter.deltas.items())
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
