"""How much memory decoding will take, and the largest settings that fit a limit: both before any
weight is read.

Like `faster.py` this file imports `minisafe.fast`, and only where it is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from minisafe.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS, as_dtype, stated_in
from minisafe.checkpoint.config import load_config
from minisafe.checkpoint.rounded import WEIGHTS, Form, read_form
from minisafe.config import LlamaConfig
from minisafe.errors import SettingError
from minisafe.files.sizes import size_words
from minisafe.session.beginnings import PADDED, TOGETHER
from minisafe.session.dtype import count_parameters, decoding_dtype
from minisafe.session.others import source_of
from minisafe.session.settings import Settings

if TYPE_CHECKING:
    from minisafe.fast.memory import Memory, Reader

USUAL, LEAST = 2048, 256  # tokens that a limit should leave room for, and those that it must
STEP = 64  # tokens; a context that fits is a multiple of them
SPARE = 1.1  # measured peaks are within a tenth of their plan (docs/log.md)
INT4 = 16 << 20  # bytes that a small int4 model took beyond its plan (docs/log.md)
TOKENIZER = 28  # bytes in memory per byte of tokenizer.json: 21 to 28 (docs/log.md)


@dataclass(frozen=True)
class Plan:
    """The memory of answers of up to `context` tokens, prompt and all, `rows` at a time."""

    settings: Settings
    dtype: torch.dtype
    weights: str
    context: int
    rows: int
    memory: Memory


# ---- a plan ------------------------------------------------------------------------------------


def plan_of(settings: Settings, rows: int = 1) -> Plan:
    """The plan for settings, up to their `context` or the model's. Reads headers only.

    Raises `SettingError` for settings that are not planned, and as `load` does for files that it
    would refuse.
    """
    from minisafe.fast.memory import planned
    from minisafe.fast.prepare import automatic

    assert settings.base is not None
    if settings.compile or settings.compiled is not None:
        raise SettingError("a compiled step is not planned; leave out compile and compiled")
    config, form = load_config(settings.base), read_form(settings.base)
    context = min(settings.context or config.max_positions, config.max_positions)
    dtype = dtype_of(settings, config, form)
    if form is not None:
        weights = form.format
    elif settings.weights == "auto":
        weights = automatic(dtype, torch.device(settings.device).type)
    else:
        weights = settings.weights
    memory = planned(
        config, dtype, weights, [reader(settings, name) for name in settings.others], context,
        rows, settings.cache_dtype, as_dtype(config.dtype),
        file=(settings.base / WEIGHTS).stat().st_size if form is not None else None,
        parts=(TOGETHER, PADDED) if settings.safe and settings.read_alone else None,
    )  # fmt: skip
    return Plan(settings, dtype, weights, context, rows, memory)


def dtype_of(settings: Settings, config: LlamaConfig, form: Form | None = None) -> torch.dtype:
    """The dtype in which a model decodes under these settings."""
    stored = as_dtype(settings.dtype or (config.dtype if form is None else form.dtype))
    stored = stored or torch.float32
    if settings.dtype is not None or settings.weights == "int8" or form is not None:
        return stored
    return decoding_dtype(stored, count_parameters(config), settings.device)


def reader(settings: Settings, name: str) -> Reader:
    """A stream after the base, as far as it takes memory."""
    from minisafe.fast.memory import Reader

    source = source_of(settings, name)
    if source is None:
        return Reader(name)  # the base again, behind a prompt
    if (source / ADAPTER_CONFIG).is_file():
        stated = stated_in(source / ADAPTER_WEIGHTS)
        return Reader(name, adapter={key: each.shape for key, each in stated.items()})
    return Reader(name, load_config(source))


# ---- a limit -----------------------------------------------------------------------------------


def fitted(settings: Settings) -> Settings:
    """The settings, or others that need less, so that the process stays below `memory_limit` while
    it makes one answer at a time; `context` then says how long prompt and answer can be.

    What rounds nothing comes first: the settings as they are, plain weights instead of packed ones,
    then smaller caches. The first that leaves room for `context` tokens (if it is not set, the
    model's, at most `USUAL`) is taken. If none does and `context` is not set, the last one with
    less room.

    Raises `SettingError` if nothing fits.
    """
    if settings.memory_limit is None:
        return settings
    if torch.device(settings.device).type != "cpu":
        raise SettingError(f"memory_limit is for a CPU, not {settings.device}; leave it out")
    room = left_of(settings.memory_limit, settings)
    config = load_config(Path(str(settings.base)))
    most = min(settings.context or config.max_positions, config.max_positions)
    least = most if settings.context else min(most, LEAST)
    for each in smaller(settings):
        found = longest(each, room, most)
        if found >= min(most, settings.context or USUAL):
            return replace(each, context=found)
    if found >= least:
        return replace(each, context=found)
    needs = settings.memory_limit - room + peak(replace(each, context=least))
    raise SettingError(
        f"memory_limit is {size_words(settings.memory_limit)}, but {least:,} tokens need about "
        f"{size_words(needs)} ({size_words(settings.memory_limit - room)} of it for the libraries "
        "and the tokenizer); give a larger limit, a smaller context, or a model of `minisafe "
        "convert --weights int8`"
    )


def left_of(limit: int, settings: Settings) -> int:
    """What a limit leaves for decoding, beside what the process has now and the tokenizer."""
    tokenizer = Path(str(settings.base)) / "tokenizer.json"
    size = tokenizer.stat().st_size if tokenizer.is_file() else 0
    return limit - resident() - TOKENIZER * size


def smaller(settings: Settings) -> Iterator[Settings]:
    """The settings, then others with less memory, as far as none was chosen."""
    yield settings
    plan = plan_of(settings)
    if plan.weights == "packed" and settings.weights == "auto":
        settings = replace(settings, weights="plain")
        yield settings
    if settings.cache_dtype == "auto":
        if plan.dtype == torch.float32:
            yield replace(settings, cache_dtype="bfloat16")
        yield replace(settings, cache_dtype="int8")


def longest(settings: Settings, room: int, most: int) -> int:
    """The longest context of at most `most` tokens that fits; 0 if none does."""
    if peak(replace(settings, context=most)) <= room:
        return most
    low, high = 0, most // STEP  # in steps; `low` fits
    while low < high:
        middle = (low + high + 1) // 2
        fits = peak(replace(settings, context=middle * STEP)) <= room
        low, high = (middle, high) if fits else (low, middle - 1)
    return low * STEP


def peak(settings: Settings) -> int:
    """Bytes to reckon with at the peak."""
    plan = plan_of(settings)
    return int(plan.memory.total * SPARE) + (INT4 if plan.weights == "int4" else 0)


def resident() -> int:
    """Bytes of memory that this process has now; where the system does not say, at its peak."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most * (1 if os.uname().sysname == "Darwin" else 1024)
    return pages * os.sysconf("SC_PAGE_SIZE")
