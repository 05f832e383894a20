"""The files that a profile vouches for: which they are, and whether one has changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from minisafe.errors import CheckpointError
from minisafe.session.settings import PATHS

TOKENIZER_FILES = (
    "tokenizer.json", "special_tokens_map.json", "tokenizer_config.json", "chat_template.jinja",
)  # fmt: skip
MODEL_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def relative(path: Path, directory: Path) -> str:
    """`path` as seen from `directory`, with forward slashes."""
    return Path(os.path.relpath(path, directory)).as_posix()


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def files_read(settings: Mapping[str, Any]) -> list[Path]:
    """Every file of the parts in `settings` that decides ids, template, weights or the vector."""
    found: list[Path] = []
    for name in PATHS:
        part = settings.get(name)
        if part is None:
            continue
        if not part.is_dir():
            found.append(part)
        elif (part / ADAPTER_FILES[0]).is_file() and name != "base":
            found += [part / file for file in ADAPTER_FILES]
        else:
            files = [part / file for file in MODEL_FILES if (part / file).is_file()]
            found += files + sorted([*part.glob("*.safetensors"), *part.glob("*.index.json")])
    return found


def hashes(files: Iterable[Path], directory: Path) -> dict[str, str]:
    """SHA-256 by name relative to `directory`."""
    return {relative(file, directory): sha256(file) for file in sorted(files)}


def check_files(path: Path, settings: Mapping[str, Any], vouched: Mapping[str, str]) -> None:
    """Raise `CheckpointError` unless every file that the profile vouches for exists unchanged. If
    it vouches for any, it must vouch for every file that would be read.

    path: the profile. vouched: SHA-256 by the file's name, relative to the profile.
    """
    listed = {(path.parent / name).resolve() for name in vouched}
    for file in files_read(settings) if listed else ():
        if file.exists() and file.resolve() not in listed:
            raise CheckpointError(
                f"{file}: would be read, but {path.name} vouches only for other files; remove it, "
                f"or run `minisafe vouch {path}` if you trust it"
            )
    for name, expected in vouched.items():
        file = path.parent / name
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file, but {path.name} names it")
        if sha256(file) != expected:
            raise CheckpointError(
                f"{file}: not the file that {path.name} was made with (its SHA-256 "
                f"differs); restore it, or run `minisafe vouch {path}` if you trust it"
            )
