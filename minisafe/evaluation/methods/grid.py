"""A grid of settings: each point is a method."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minisafe.errors import SettingError
from minisafe.evaluation.methods.method import Method

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
        changes = {**common, **point, "safe": True, "gate": False}
        methods.append(Method(label(point), profile, changes))
    return methods


def label(point: Mapping[str, Any]) -> str:
    """A point's name, such as `sgds_lambda=0.99 sa_scale=0.3`."""
    return " ".join(f"{name}={value}" for name, value in point.items()) or "profile"
