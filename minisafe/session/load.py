"""From settings to a session: models, streams, vector, rule and gate, all of them or none."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from minisafe.checkpoint import ADAPTER_CONFIG, fingerprint, load_adapter, load_model
from minisafe.checkpoint.adapter import merge_adapter
from minisafe.checkpoint.probe import load_probe
from minisafe.errors import SafetyError, SafetyWarning, SettingError
from minisafe.gate import Calibration, Gate
from minisafe.lockstep import Stream
from minisafe.model import Llama
from minisafe.probe import Probe
from minisafe.session.asked import Asked, check_asked, gather
from minisafe.session.dtype import widen_small
from minisafe.session.faster import check_fast, engine_for, put_in, read_model
from minisafe.session.fingerprints import made_for
from minisafe.session.others import read_shots, source_of
from minisafe.session.promise import check_parts
from minisafe.session.session import Session
from minisafe.session.settings import Settings
from minisafe.tokenizer import Tokenizer, check_same_vocabulary, check_tokenizer, load_tokenizer
from minisafe.vectors import SafetyVector, Steering, check_vector


def load(
    profile: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    beside: Session | None = None,
) -> Session:
    """Load a model and what makes it safe.

    Args:
        profile: a profile file or its directory, or the name of a model of `minisafe get`. If
            neither it nor `base` is given, the shipped profile is used.
        overrides: fields of `Settings` by name, such as {"sgds_lambda": 0.9}; they take precedence
            over the profile's.
        beside: a session whose base this one reads too, so that its weights are in memory once. All
            else is the new session's own: its safety parts, caches, `cancel` and `close`. Each may
            answer in a thread of its own.

    Raises:
        SafetyError: safe decoding was asked for and a part of it is missing.
        BadInput: a file or setting cannot be used; the message says which and why.
    """
    session = load_unprepared(profile, overrides, beside)
    settings = session.settings
    put_in(session.streams, settings.weights, settings.compile, settings.compiled)
    return session


def load_unprepared(
    profile: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    beside: Session | None = None,
) -> Session:
    """`load`, but the fast paths that the settings ask for are not put in yet."""
    asked = gather(profile, overrides or {})
    settings = asked.settings
    check_asked(settings, asked.origin)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    check_fast(settings)
    check_device(settings.device)
    if settings.memory_limit is not None:
        asked = within_limit(asked, beside)
        settings = asked.settings
    model = load_base(settings) if beside is None else base_of(beside, settings)
    session = make_session(asked, model)
    check_parts(session)
    return session


def within_limit(asked: Asked, beside: Session | None) -> Asked:
    """What is asked for, with settings that fit the memory limit. Raises `SettingError`."""
    if beside is not None:
        raise SettingError("memory_limit is for a load of its own; load this without `beside`")
    from minisafe.session.memory import fitted

    return replace(asked, settings=fitted(asked.settings))


# what decides the tensors of a base
OF_A_BASE = ("base", "edit", "dtype", "weights", "compile", "compiled", "device")


def base_of(session: Session, settings: Settings) -> Llama:
    """The base of a session, for another one with these settings. Raises `SettingError` if they ask
    for another base."""
    for name in OF_A_BASE:
        wanted, there = (getattr(each, name) for each in (settings, session.settings))
        same = wanted == there
        if isinstance(wanted, Path) and isinstance(there, Path):
            same = wanted.resolve() == there.resolve()
        if not same:
            raise SettingError(
                f"{name} is {wanted}, but the session beside it has {there}; give the same, or "
                "load this one without `beside`"
            )
    if settings.compile or settings.compiled is not None:
        raise SettingError(
            "a compiled step is for the streams of one session; load this one without `beside`, or "
            "both without compile and compiled"
        )
    session.running.check_open()
    return session.model


def load_base(settings: Settings) -> Llama:
    """The base in the dtype that it decodes in; if there is an edit, it is merged in."""
    assert settings.base is not None
    model = read_model(settings.base, settings.dtype, settings.device, settings.weights)
    if settings.edit is not None:
        if model.weights != "plain":
            raise SettingError(
                f"{settings.base}: its weights are {model.weights}, so an edit cannot be merged "
                "into them; convert the edited model instead"
            )
        merge_adapter(model, load_adapter(settings.edit, model))
    return widen_small(model, settings.dtype, settings.weights)


def make_session(asked: Asked, model: Llama) -> Session:
    """The session that is asked for, around a loaded base."""
    settings = asked.settings
    assert settings.base is not None
    tokenizer = load_tokenizer(settings.base, settings.template_options)
    check_tokenizer(tokenizer, model.config.vocab_size)
    steering = None
    if settings.safe and settings.sa_scale != 0:
        assert asked.vector is not None
        steering = make_steering(settings, asked.vector, model, tokenizer)
    streams, kinds = make_streams(settings, model, tokenizer)
    alone, probe = make_alone(asked, steering, streams)
    return Session(
        settings=settings, streams=streams, tokenizer=tokenizer, eos=asked.eos,
        rule=settings.make_rule(), steering=steering, kinds=kinds,
        gate=make_gate(settings, asked.calibration, steering),
        engine=engine_for(settings.speculate, streams),
        alone=alone, probe=probe,
        shots=read_shots(settings.anchor_shots) if "anchor" in settings.others else (),
    )  # fmt: skip


def check_device(device: str) -> str:
    """Raise `SettingError` for a device that torch does not know or cannot use; returns it."""
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
    wanted = vector.metadata.get("weights")
    if wanted is not None and not has_fingerprint(model, settings, wanted):
        warnings.warn(
            f"{source} was made with other weights of the same shape; its effect on these was not "
            "measured",
            SafetyWarning,
            stacklevel=2,
        )
    placed = {layer: values.to(model.device) for layer, values in layers.items()}
    return Steering(placed, settings.sa_scale, settings.sa_positions, settings.steered_streams)


def has_fingerprint(model: Llama, settings: Settings, wanted: str) -> bool:
    """Whether the weights have this fingerprint, or had it before the setting `dtype` converted
    them."""
    if fingerprint(model) == wanted:
        return True
    if settings.dtype is None or settings.edit is not None or settings.base is None:
        return False
    if model.weights != "plain":
        return False
    return fingerprint(load_model(settings.base)) == wanted


def make_streams(
    settings: Settings, model: Llama, tokenizer: Tokenizer
) -> tuple[tuple[Stream, ...], tuple[str, ...]]:
    """All streams that the settings ask for, the base first, and the kinds of those after it."""
    made = [make_stream(name, settings, model, tokenizer) for name in settings.others]
    return (Stream(model), *(stream for stream, _ in made)), tuple(kind for _, kind in made)


def make_stream(
    name: str, settings: Settings, model: Llama, tokenizer: Tokenizer
) -> tuple[Stream, str]:
    """The stream of this name: of a model or adapter directory, or of the base itself behind a
    system prompt or demonstrations; its kind."""
    source = source_of(settings, name)
    if source is None:
        shots = name == "anchor" and settings.anchor_shots is not None
        return Stream(model), "demonstrations" if shots else "system prompt"
    if (source / ADAPTER_CONFIG).is_file():
        return Stream(model, load_adapter(source, model)), "adapter"
    dtype = settings.dtype or str(model.dtype).split(".")[-1]
    expert = read_model(source, dtype, settings.device, settings.weights)
    its_own = load_tokenizer(source)
    check_same_vocabulary(tokenizer, its_own)
    ours, theirs = model.config.vocab_size, expert.config.vocab_size
    check_tokenizer(its_own, theirs)
    if ours != theirs and not settings.allow_padding:
        raise SafetyError(
            f"the base embeds {ours} ids and the expert {theirs}; if the others are unused padding "
            "at the end, give --allow-padding"
        )
    return Stream(expert), "checkpoint"


def make_gate(
    settings: Settings, calibration: Calibration | None, steering: Steering | None
) -> Gate | None:
    """The calibrated gate, if it is on; raises `SafetyError` if it is asked for and cannot be on.

    A gate leaves answers unguided, so it is off unless its calibration is for exactly these weights
    and settings.
    """
    if not settings.safe or settings.gate is False:
        return None
    if not settings.gate and (calibration is None or not settings.guided):
        return None
    if settings.read_alone and (settings.gate or settings.probe is not None):
        return None  # the calibration is of what reads messages alone
    if settings.sa_positions == "all" and settings.sa_scale != 0:
        why = "steering at all positions cannot be removed, so no gate works with it"
    else:
        why = why_uncalibrated(settings, calibration, steering)
    if not why and calibration is not None:
        return calibration.gate
    if settings.gate:
        raise SafetyError(f"the gate cannot be on: {why}")
    warnings.warn(f"the gate is off: {why}", SafetyWarning, stacklevel=2)
    return None


def reads_alone(asked: Asked) -> bool:
    """Whether messages are read alone too. A flag that switches guidance off switches this off as
    well, since it needs the expert."""
    settings, origin = asked.settings, asked.origin
    if not settings.safe or not settings.read_alone:
        return False
    unguided_by_flag = not settings.guided and origin.get(settings.strength) == "flag"
    return not unguided_by_flag or origin.get("read_alone") == "flag"


def make_alone(
    asked: Asked, steering: Steering | None, streams: Sequence[Stream]
) -> tuple[Gate | None, Probe | None]:
    """The gate that decides whether a message is harmful by itself, and the probe that it asks;
    None twice if messages are not read alone. Raises `SafetyError` without a calibration for
    exactly these weights and settings."""
    if not reads_alone(asked):
        return None, None
    settings, calibration = asked.settings, asked.calibration
    probe = None
    if settings.probe is not None and settings.guided:
        probe = made_for_streams(settings.probe, streams)
    if why := why_uncalibrated(settings, calibration, steering, probe):
        raise SafetyError(
            f"messages cannot be read alone (read_alone): {why}, or give --no-read-alone"
        )
    assert calibration is not None
    return calibration.gate, probe


def made_for_streams(path: Path, streams: Sequence[Stream]) -> Probe:
    """The probe in a file. Raises `SettingError` if it was made for other streams."""
    probe = load_probe(path)
    size = min(stream.model.config.vocab_size for stream in streams)
    if probe.weight.shape != (len(streams), size):
        raise SettingError(
            f"{path} was made for {probe.weight.shape[0]} streams of {probe.weight.shape[1]:,} "
            f"ids; this session has {len(streams)} of {size:,}; run `minisafe calibrate` again"
        )
    return probe


def why_uncalibrated(
    settings: Settings,
    calibration: Calibration | None,
    steering: Steering | None,
    probe: Probe | None = None,
) -> str:
    """Why the calibration does not hold here; "" if it does."""
    if calibration is None:
        return "the profile holds no calibration; make one with `minisafe calibrate`"
    if not settings.guided:
        return "there is no expert to compare the base with"
    if calibration.made_for != made_for(settings, steering, probe):
        return "its calibration is for other weights or settings; run `minisafe calibrate` again"
    return ""
