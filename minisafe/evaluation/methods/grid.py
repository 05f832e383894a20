"""Grids to sweep: SafeInfer's settings, or built-in methods' options; each point is a method."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minisafe.errors import SettingError
from minisafe.evaluation.methods.built_in import METHODS, has_anchor
from minisafe.evaluation.methods.materials import Materials
from minisafe.evaluation.methods.method import Method, built_in, settings_in

AXES = ("sgds_lambda", "margin", "sa_scale", "sa_layer", "sa_positions")


def grid(
    axes: Mapping[str, Sequence[Any]], profile: Path | None, common: Mapping[str, Any]
) -> list[Method]:
    """The base, then one method per point; an axis without values keeps the profile's value.

    Raises `SettingError` for an unknown axis. The point with both stages off is left out, because
    it is the base.
    """
    for name in axes:
        if name not in AXES:
            raise SettingError(f"no axis {name!r}; expected some of {', '.join(AXES)}")
    given = {name: values for name, values in axes.items() if values}
    methods = [Method("base", profile, {**common, "safe": False})]
    for values in itertools.product(*given.values()):
        point = dict(zip(given, values, strict=True))
        if point.get("sgds_lambda") == 0 and point.get("sa_scale") == 0:
            continue
        # a calibration is for the profile's own settings, so nothing that needs one is on
        changes = {**common, **point, "safe": True, "gate": False, "read_alone": False}
        methods.append(Method(label(point), profile, changes))
    return methods


def points(
    names: Sequence[str], profile: Path | None, common: Mapping[str, Any], materials: Materials
) -> list[Method]:
    """The base, then one method per combination of the options of each of these built-in methods; a
    method without options is one point. "all" are those with more than one point, without those
    that need an anchor if the profile names none.

    Raises `SettingError` for an unknown method, or one whose materials are missing.
    """
    stated = settings_in(profile)
    if list(names) == ["all"]:
        found = has_anchor({**stated, **common})
        names = [
            name for name in METHODS
            if n_points(name) > 1 and (found or not METHODS[name].anchored)
        ]  # fmt: skip
    methods = [built_in("base", {}, profile, common, materials, "base", stated)]
    for name in dict.fromkeys(names):
        if name not in METHODS or name == "base":
            known = ", ".join(each for each in METHODS if each != "base")
            raise SettingError(f"no method {name!r} to sweep; expected all, or some of {known}")
        axes = METHODS[name].options
        for values in itertools.product(*axes.values()):
            options = dict(zip(axes, values, strict=True))
            text = ":".join([name, *(f"{option}={value}" for option, value in options.items())])
            methods.append(built_in(name, options, profile, common, materials, text, stated))
    return methods


def n_points(name: str) -> int:
    """How many points a built-in method has."""
    return math.prod(map(len, METHODS[name].options.values()))


def label(point: Mapping[str, Any]) -> str:
    """A point's name, such as `sgds_lambda=0.99 sa_scale=0.3`."""
    return " ".join(f"{name}={value}" for name, value in point.items()) or "profile"
