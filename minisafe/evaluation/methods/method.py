"""The methods to compare: each is a profile and changes to its settings.

The built-in methods, such as `base` and `safeinfer+gate`, change the run's profile. Your own method
is a profile file and needs no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import minisafe
from minisafe.errors import SettingError
from minisafe.evaluation.journal import digest
from minisafe.evaluation.methods.built_in import METHODS, Systems, built_in
from minisafe.evaluation.records import MadeBy
from minisafe.session import Session
from minisafe.session.fingerprints import fingerprints
from minisafe.session.profile import load_profile
from minisafe.session.settings import PATHS


@dataclass(frozen=True)
class Method:
    """A name for the report, a profile to start from (None: `base` is among the changes), and
    changes."""

    name: str
    profile: Path | None
    overrides: Mapping[str, Any]


def parse_methods(
    texts: Sequence[str],
    profile: Path | None,
    common: Mapping[str, Any],
    systems: Systems | None = None,
) -> list[Method]:
    """Methods from texts: `NAME`, a built-in one; `NAME@PROFILE`, the same on another profile;
    `PROFILE` or `LABEL=PROFILE`, an unchanged profile.

    common: settings for all methods, such as dtype; a method's own changes override them. Raises
    `SettingError` for an unknown or repeated name.
    """
    systems = systems or Systems()
    found = [parse_method(text.strip(), profile, common, systems) for text in texts]
    names = [method.name for method in found]
    for name in names:
        if names.count(name) > 1:
            raise SettingError(f"the method {name!r} is given twice; name one LABEL=PROFILE")
    if not found:
        raise SettingError("got no methods; expected one or more, such as base,safeinfer")
    return found


def parse_method(
    text: str, profile: Path | None, common: Mapping[str, Any], systems: Systems
) -> Method:
    """One method from its text; see `parse_methods`."""
    name, at, other = text.partition("@")
    if name in METHODS:
        path = Path(other) if at else profile
        stated = dict(load_profile(path).settings) if path is not None else {}
        label = f"{name}@{Path(other).stem}" if at else name
        return Method(label, path, {**common, **built_in(systems, {**stated, **common})[name]})
    label, equals, path_text = text.partition("=")
    own = Path(path_text if equals else text)
    if own.suffix == ".json" or own.is_dir():
        return Method(label if equals else own.stem, own, dict(common))
    raise SettingError(
        f"no method {text!r}; expected one of {', '.join(METHODS)}, one of them with @PROFILE, or "
        "a profile (.json)"
    )


def load_method(method: Method) -> Session:
    """The method's session; raises the errors of `minisafe.load` with the method's name."""
    try:
        return minisafe.load(method.profile, method.overrides)
    except minisafe.MinisafeError as error:
        raise type(error)(f"method {method.name}: {error}") from None


def made_by(session: Session) -> MadeBy:
    """Everything that decides an answer: models, settings, seed, versions. Equal for equal runs."""
    settings = {
        name: value
        for name, value in vars(session.settings).items()
        if name not in (*PATHS, "device", "threads")
    }
    if session.gate is not None:
        settings["gate_threshold"] = session.gate.threshold
    known = session.tokenizer
    return MadeBy(
        models=fingerprints(session.streams, session.steering, session.settings.others),
        text={
            "tokenizer": known.fingerprint,
            "template": digest(known.template_source),
            "end_ids": ",".join(map(str, sorted(session.eos))),
        },
        settings=json.loads(json.dumps(settings, default=str)),  # as read from a journal
        versions={"minisafe": minisafe.__version__, "torch": str(torch.__version__)},
    )
