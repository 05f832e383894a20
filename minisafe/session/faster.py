"""Which fast paths a session takes. For them only this file imports `minisafe.fast`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from minisafe.checkpoint import load_model
from minisafe.checkpoint.rounded import read_form
from minisafe.engine import Generation, Request
from minisafe.errors import SettingError
from minisafe.gate import Gate
from minisafe.guidance import Rule
from minisafe.lockstep import Lockstep, Stream
from minisafe.model import Llama
from minisafe.session.settings import Settings
from minisafe.vectors import Steering


def check_fast(settings: Settings) -> None:
    """Raise `SettingError` if the step should be compiled, or was compiled ahead of time, and that
    cannot be; needs no model."""
    if settings.compiled is not None:
        check_ahead(settings, settings.compiled)
    elif settings.compile:
        from minisafe.fast.compiled import check_compile

        check_compile(settings.device, settings.weights)


def check_ahead(settings: Settings, package: Path) -> None:
    """Raise `SettingError` if another setting contradicts a package, or it cannot run here."""
    for name, fits, expected in (
        ("compile", not settings.compile, "no; the package is compiled already"),
        ("device", torch.device(settings.device).type == "cpu", "cpu"),
        ("weights", settings.weights in ("auto", "plain"), "auto or plain"),
        ("cache_dtype", settings.cache_dtype == "auto", "auto"),
    ):
        if not fits:
            raise SettingError(
                f"{name} is {getattr(settings, name)!r}, but with compiled it must be {expected}"
            )
    from minisafe.fast.package import read_package

    read_package(package)


def put_in(
    streams: Sequence[Stream], weights: str, compiled: bool, package: Path | None = None
) -> None:
    """Convert the streams' models, in place, as the settings `weights`, `compile` and `compiled`
    (the package) say."""
    if package is None:
        FAST_PATHS["compile" if compiled else weights](streams)
        return
    from minisafe.fast.package import use_package

    use_package(package, streams)


def compile_ahead(
    streams: Sequence[Stream], out: Path, instructions: str, progress: Callable[..., None]
) -> dict[str, Any]:
    """Write a package of the streams' steps, for `compiled`; returns its manifest."""
    from minisafe.fast.package import write_package

    return asdict(write_package(streams, out, instructions, progress))


def read_model(directory: Path, dtype: str | None, device: str, weights: str) -> Llama:
    """The model of a directory: plain, or rounded if it is stored so.

    weights: the setting. Raises `SettingError` if it asks for another form than the stored one.
    """
    form = read_form(directory)
    if form is None:
        return load_model(directory, dtype, device)
    if weights not in ("auto", form.format):
        raise SettingError(
            f"{directory}: its weights are {form.format}, but weights is {weights!r}; give auto, "
            "or the model that it was converted from"
        )
    from minisafe.fast.rounded import load_rounded

    return load_rounded(directory, dtype, device)


def keep_plain(streams: Sequence[Stream]) -> None:
    """The plain models, as they are."""


def store_as(streams: Sequence[Stream], weights: str) -> None:
    """The models' weights stored in this way; "auto" is decided for each model."""
    from minisafe.fast.prepare import prepare

    for stream in streams:
        prepare(stream.model, weights)


def compile_steps(streams: Sequence[Stream]) -> None:
    """The models' decoding step, compiled."""
    from minisafe.fast.compiled import compile_streams

    compile_streams(streams)


# what changes the streams' models, by the value of `weights`, and by `compile`, which precedes it
FAST_PATHS: dict[str, Callable[[Sequence[Stream]], None]] = {
    "plain": keep_plain,
    "auto": partial(store_as, weights="auto"),
    "packed": partial(store_as, weights="packed"),
    "int8": partial(store_as, weights="int8"),
    "compile": compile_steps,
}

Engine = Callable[..., Generation]  # takes what `Generation` takes


def engine_for(speculate: int | None, streams: Sequence[Stream]) -> Engine:
    """What makes generations: `Generation`; with two models, one that drafts if that pays."""
    most = block_limit(speculate, streams)
    return partial(make_generation, most=most) if most else Generation


def block_limit(setting: int | None, streams: Sequence[Stream]) -> int:
    """The most tokens to draft before the expert reads them; 0 unless there are two models.

    setting: None drafts, except in float32 on a CPU, where kernels take much longer for several
    tokens than for one.
    """
    if len(streams) != 2 or streams[0].model is streams[1].model:
        return 0
    if setting is not None:
        return setting
    if any(s.model.device.type == "cpu" and s.model.dtype == torch.float32 for s in streams):
        return 0
    from minisafe.fast.speculation import AUTOMATIC

    return AUTOMATIC


def make_generation(
    lockstep: Lockstep,
    rule: Rule,
    requests: Sequence[Request],
    steering: Steering | None = None,
    eos: frozenset[int] = frozenset(),
    gate: Gate | None = None,
    most: int = 0,
) -> Generation:
    """A `Generation`, with blocks of up to `most` drafts if guidance reads two models."""
    two = rule.n_streams == len(lockstep.streams) == len(lockstep.groups) == 2
    if most and two and all(len(r.prompts) == 2 and all(r.prompts) for r in requests):
        from minisafe.fast.speculation import Speculation

        return Speculation(lockstep, rule, requests, steering, eos, gate, most)
    return Generation(lockstep, rule, requests, steering, eos, gate)
