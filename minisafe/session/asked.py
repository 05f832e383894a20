"""What is asked for, before anything is loaded: settings from every source, never half-safe.

A setting has the value of the first source that gives one: flag, profile, the vector's metadata,
the model's `generation_config.json`, its default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minisafe.checkpoint.vectors import load_vector
from minisafe.errors import SafetyError, SettingError
from minisafe.gate import Calibration
from minisafe.guidance import RULES
from minisafe.session.generation_config import from_generation_config
from minisafe.session.named import find_profile
from minisafe.session.others import SOURCES, check_others
from minisafe.session.profile import Profile, default_profile, load_profile
from minisafe.session.settings import Settings, resolve
from minisafe.vectors import SafetyVector


@dataclass(frozen=True)
class Asked:
    """What is asked for: the settings; for each one that was given, its source ("flag", "profile"
    or "vector"); the vector that they name; the ids that end an answer; the profile's
    calibration."""

    settings: Settings
    origin: Mapping[str, str]
    vector: SafetyVector | None
    eos: frozenset[int]
    calibration: Calibration | None


def gather(profile: str | Path | None, flags: Mapping[str, Any]) -> Asked:
    """Collect the settings from all sources; raises `SafetyError` if a part is missing."""
    if profile is None and flags.get("base") is None:
        profile = default_profile()
    found = load_profile(find_profile(profile)) if profile is not None else Profile()
    given = dict(found.settings)
    for name, ways in SOURCES.items():
        if any(flags.get(way) is not None for way in ways):
            for way in ways:
                given.pop(way, None)  # a flag for one kind replaces the profile's other kind
            given.pop("expert_kind" if name == "expert" else "", None)
    if not any(flags.get(name) is not None for name in ("expert", "expert_system")):
        given = {"expert_kind": kind_beside(given)} | given
    first = resolve(flags, given)
    if first.base is None:
        raise SettingError("no base model; give one with --base, or a profile that names one")
    vector = load_vector(first.vector) if first.vector is not None else None
    stated = {} if vector is None else vector.metadata
    made_with = {name: stated[name] for name in ("sa_scale", "sa_positions") if name in stated}
    sampling, eos = from_generation_config(first.base)
    settings = resolve(flags, given, made_with, sampling)
    settings = replace(settings, safe=decide_safe(settings))
    sources = (("vector", made_with), ("profile", given), ("flag", flags))
    origin = {name: source for source, names in sources for name in names}
    return Asked(settings, origin, vector, eos, found.calibration)


def kind_beside(given: Mapping[str, Any]) -> str | None:
    """The kind of a profile's expert if the profile does not say: the one that its rule reads."""
    if given.get("expert") is None and given.get("expert_system") is None:
        return None
    return wanted_kind(given.get("rule", "sgds"))


def wanted_kind(rule: str) -> str:
    """The kind of expert that a rule reads: "safe" or "unsafe"."""
    found = RULES.get(rule)
    return "unsafe" if found is None else found.expert


# ---- never half-safe ------------------------------------------------------------------------


def decide_safe(settings: Settings) -> bool:
    """Whether decoding is safe; raises `SafetyError` if it is asked for and a part is missing."""
    has_expert = settings.expert is not None or settings.expert_system is not None
    safe = settings.safe
    if safe is None:
        safe = has_expert or settings.vector is not None
    if not safe:
        return False
    if settings.expert is not None and settings.expert_system is not None:
        raise SettingError("both an expert and an expert's system prompt are given; expected one")
    strength = settings.strength
    if settings.sa_scale == 0 and not settings.guided:
        raise SafetyError(
            f"safe decoding with sa_scale 0 and {strength} 0 does nothing; use --no-safe"
        )
    if settings.sa_scale != 0 and settings.vector is None:
        raise SafetyError(
            "safe decoding needs a safety vector; give one with --vector, or --sa-scale 0 for "
            "guidance alone"
        )
    if settings.guided and not has_expert:
        raise SafetyError(
            f"safe decoding needs {a(wanted_kind(settings.rule))} expert; give one with --expert "
            f"or --expert-system, or --{strength.replace('_', '-')} 0 for amplification alone"
        )
    if settings.guided:
        check_others(replace(settings, safe=True))
    if settings.gate and not settings.guided:
        raise SafetyError("a gate needs an expert to compare the base with; use --no-gate")
    return True


def check_asked(settings: Settings, origin: Mapping[str, str]) -> None:
    """Raise `SafetyError` if what is asked for cannot be safe.

    origin: the source of each setting that was given: "flag", "profile" or "vector".
    """
    if not settings.safe:
        return
    _check_scale(settings, origin)
    _check_named_parts_act(settings, origin)
    if settings.guided:
        _check_kind(settings)


def _check_scale(settings: Settings, origin: Mapping[str, str]) -> None:
    """Refuse a negative scale, unless flags give it and `reverse_sa`. From a vector's metadata, 0
    is refused too."""
    scale, source = settings.sa_scale, origin.get("sa_scale", "default")
    if source == "vector" and scale <= 0:
        raise SafetyError(
            f"{settings.vector}: its metadata says sa_scale {scale:g}, which does not steer "
            "towards safety; expected a number above 0; give --sa-scale, or make the vector again"
        )
    if scale >= 0:
        return
    if source == "profile" or not settings.reverse_sa:
        raise SafetyError(
            f"sa_scale is {scale:g}: a negative scale steers towards harm; expected a number above "
            "0 (for research on that, give --reverse-sa beside --sa-scale)"
        )


def _check_named_parts_act(settings: Settings, origin: Mapping[str, str]) -> None:
    """Refuse a part that is named, in any source, but that the profile switches off. A flag may
    switch a part off."""
    named = settings.vector is not None and settings.sa_scale == 0
    if named and origin.get("sa_scale") == "profile":
        raise SafetyError(
            f"the vector {settings.vector} is named, but the profile sets sa_scale 0, so the "
            "vector would do nothing; remove one of the two, or give --sa-scale"
        )
    strength = settings.strength
    named = settings.expert is not None or settings.expert_system is not None
    if named and not settings.guided and origin.get(strength) == "profile":
        raise SafetyError(
            f"an expert is named, but the profile sets {strength} 0, so the expert would do "
            f"nothing; remove one of the two, or give --{strength.replace('_', '-')}"
        )


def _check_kind(settings: Settings) -> None:
    """Refuse an expert of the wrong kind. An unsafe one would amplify harm under a rule that moves
    towards its expert, and a safe one under a rule that moves away from it."""
    wanted, kind = wanted_kind(settings.rule), settings.expert_kind
    if kind is not None and kind != wanted:
        raise SafetyError(
            f"the rule {settings.rule} reads {a(wanted)} expert, but this one is {kind}; give "
            "another with --expert or --expert-system, or say what it is with --expert-kind"
        )


def a(word: str) -> str:
    """The word with "a" or "an"."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
