"""A safety profile: one JSON file that names base, expert, vector and settings."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minisafe.checkpoint.probe import save_probe
from minisafe.errors import CheckpointError, ConfigError, SafetyWarning, SettingError
from minisafe.files import read_json, write_text
from minisafe.gate import Calibration
from minisafe.probe import Probe
from minisafe.session.about import About
from minisafe.session.named import shipped
from minisafe.session.settings import PATHS, SETTINGS, checked, path_refused
from minisafe.session.vouched import check_files, files_read, hashes, relative

VERSION = 1
HINT = "expected a safety profile (see docs/profile.md)"
NOT_SETTINGS = {  # what else a profile may hold: its meaning, for docs/profile.md
    "minisafe_profile": f"Version of the format: {VERSION}; required.",
    "calibration": "The gate's threshold and how it was found; `minisafe calibrate` writes it "
    "([evaluation](evaluation.md)).",
    "sha256": "Files, and the hashes that they must have when the profile is loaded; `minisafe "
    "vouch PROFILE` writes them. Where any file is listed, every file that would be read must be.",
    "about": 'For people: a text, or `{"knows": "what the model knows", "try": ["a question", '
    "...]}`, which the chat begins with.",
}


@dataclass(frozen=True)
class Profile:
    """A profile file: settings by name, the SHA-256 of files that it vouches for, calibration."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None
    calibration: Calibration | None = None


def default_profile() -> Path:
    """The shipped profile: `weights/tiny` in a checkout, or in the package of a wheel."""
    directory = shipped("tiny")
    if directory is None:
        raise ConfigError(
            "no shipped profile was found; give one with --profile, or a model with --base"
        )
    return directory / "profile.json"


def load_profile(path: str | Path) -> Profile:
    """Read and check a profile; relative paths in it are relative to its own directory.

    Raises `ConfigError` for a malformed file or unknown key, `SettingError` for a bad value,
    `CheckpointError` if a file is not the one that the profile vouches for.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "profile.json"
    data = read_json(path, HINT)
    settings = profile_settings(data, path)
    vouched = data.get("sha256") or {}
    if not isinstance(vouched, dict):
        raise ConfigError(f"{path}: sha256 is {vouched!r}; expected file names and their SHA-256")
    for name in vouched:
        if wrong := path_refused(name):
            raise SettingError(f"{path}: sha256 {wrong}")
    gate = data.get("calibration")
    calibration = None if gate is None else Calibration.from_json(gate, str(path))
    About.from_json(data.get("about"), str(path))
    profile = Profile(settings, vouched, path, calibration)
    check_files(path, settings, vouched)
    if vouched == {} and "sha256" in data:
        warnings.warn(
            f"{path}: sha256 is empty, so nothing is vouched for; `minisafe vouch {path}` fills it",
            SafetyWarning,
            stacklevel=2,
        )
    return profile


def profile_settings(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The settings in a profile's JSON; relative paths are joined to the profile's directory.

    Raises `ConfigError` for another version or an unknown key, `SettingError` for a bad value.
    """
    if data.get("minisafe_profile") != VERSION:
        raise ConfigError(
            f"{path}: minisafe_profile is {data.get('minisafe_profile')!r}; expected {VERSION}"
        )
    unknown = sorted(set(data) - set(SETTINGS) - set(NOT_SETTINGS))
    if unknown:
        raise ConfigError(f"{path}: unknown setting {unknown[0]!r}; known: {', '.join(SETTINGS)}")
    for name in data:
        if name in SETTINGS and not SETTINGS[name].in_file:
            raise SettingError(f"{path}: {name} is never read from a file; expected as a flag")
    settings = {
        name: checked(name, value, str(path)) for name, value in data.items() if name in SETTINGS
    }
    for name in PATHS:
        if settings.get(name) is not None:
            settings[name] = path.parent / settings[name]
    return settings


def save_profile(
    settings: Mapping[str, Any],
    path: str | Path,
    files: tuple[Path, ...] = (),
    about: About | None = None,
) -> None:
    """Write a profile; paths in `settings` become relative to it, `files` are listed by SHA-256."""
    path = Path(path)
    data: dict[str, Any] = {"minisafe_profile": VERSION}
    if about is not None:
        data["about"] = about.to_json()
    for name, value in settings.items():
        data[name] = relative(Path(value), path.parent) if name in PATHS and value else value
    data["sha256"] = hashes(files, path.parent)
    write_profile(path, data)


def store_calibration(
    path: str | Path, calibration: Calibration, probe: Probe | None = None
) -> None:
    """Put a calibration into a profile file; the rest stays as it is. The probe goes into a file
    beside it first: until the profile names both, nothing is answered with the new one."""
    path = Path(path)
    path = path / "profile.json" if path.is_dir() else path
    data = read_json(path, HINT)
    if probe is not None:
        file = path.with_name(f"{path.stem}-probe.safetensors")
        save_probe(probe, file)
        data["probe"] = file.name
        if data.get("sha256"):
            data["sha256"] |= hashes([file], path.parent)
    write_profile(path, data | {"calibration": calibration.to_json()})


def write_profile(path: Path, data: Mapping[str, Any]) -> None:
    """Write a profile's JSON, whole or not at all."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def vouch(path: str | Path) -> list[Path]:
    """Write the SHA-256 of every file that a profile's parts are read from into the profile;
    returns the files.

    Raises `CheckpointError` if a file is missing.
    """
    path = Path(path)
    path = path / "profile.json" if path.is_dir() else path
    data = read_json(path, HINT)
    found = files_read(profile_settings(data, path))
    missing = [file for file in found if not file.is_file()]
    if missing:
        raise CheckpointError(f"{missing[0]}: no such file, but {path.name} names it")
    write_profile(path, data | {"sha256": hashes(found, path.parent)})
    return found
