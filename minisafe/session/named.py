"""Profiles by name: those that are shipped, and those that `minisafe get` made."""

from __future__ import annotations

import os
import re
from pathlib import Path

from minisafe.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)


def home() -> Path:
    """Where models are kept: MINISAFE_HOME, else XDG_CACHE_HOME/minisafe, else ~/.cache/minisafe.

    As its specification says, an XDG_CACHE_HOME that is not absolute is ignored.
    """
    if own := os.environ.get("MINISAFE_HOME"):
        return Path(own).absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else Path("~/.cache").expanduser()) / "minisafe"


def shipped(name: str) -> Path | None:
    """The directory of a shipped profile, or None: `weights/NAME` in the package of a wheel, or
    beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for directory in (package / "weights" / name, package.parent / "weights" / name):
        if (directory / "profile.json").is_file():
            return directory
    return None


def find_profile(given: str | Path) -> Path:
    """The path of a profile. A bare name that is no path here is one of `minisafe get`'s.

    Raises `ConfigError` if `minisafe get` knows the name and was not run.
    """
    name, path = str(given), Path(given)
    if not NAME.fullmatch(name) or path.exists():
        return path
    kept, parts = home() / name, shipped(name)
    if (kept / "profile.json").is_file():
        return kept
    if parts is not None and not (parts / "base").exists():
        raise ConfigError(f"{name}: not on this machine yet ({kept}); run: minisafe get {name}")
    return path
