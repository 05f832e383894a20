"""Messages about a file or path that is not what was expected, and what to do."""

from __future__ import annotations

import re
from pathlib import Path

LFS = b"version https://git-lfs.github.com/spec/"
LFS_WORDS = (
    "a Git LFS pointer to a file that was not downloaded; fetch it with `git lfs pull` in its "
    "repository"
)
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HAS_ONE = "a Hugging Face model directory has one"
MOST_NAMES = 5  # listed in a message


def no_model(path: Path) -> str:
    """Why `path` is not a model directory, and what to do."""
    if path.suffix == ".gguf" and path.is_file():
        return f"{path}: {to_convert(path)}; expected a Hugging Face model directory"
    if path.is_file():
        return f"{path}: a file{_kind(path)}; expected a Hugging Face model directory"
    said = f"{path}: no such directory; expected a Hugging Face model directory"
    if HUB_NAME.fullmatch(str(path)):
        said += (
            f". minisafe does not download from the Hugging Face hub; to get a model from it, run "
            f"`hf download {path} --local-dir DIR` and give DIR"
        )
    return said


def to_convert(path: Path) -> str:
    """What a GGUF file is, and the command that makes a model directory of it."""
    return (
        f"a file in GGUF, llama.cpp's format; convert it once with `minisafe convert {path} --out "
        f"{path.stem}` and give {path.stem}"
    )


def _kind(path: Path) -> str:
    """What a file's suffix says about it, or ""."""
    return {
        ".safetensors": " of weights; give its directory, which also holds config.json and "
        "tokenizer.json",
        ".json": ", perhaps a profile (--profile)",
    }.get(path.suffix, "")


def no_config(directory: Path) -> str:
    """What a directory without `config.json` seems to hold, as the end of a message."""
    if (directory / "adapter_config.json").is_file():
        return "this is a LoRA adapter; give it as the expert, and its base as the base"
    if (directory / "profile.json").is_file():
        return f"this holds a profile; give it with --profile, or its base as {directory / 'base'}"
    for name, what in (("adapter_config.json", "LoRA adapters"), ("config.json", "models")):
        inner = sorted(path.parent.name for path in directory.glob(f"*/{name}"))
        if inner:
            more = ", ..." if len(inner) > MOST_NAMES else ""
            return f"it holds {what}, give one of them: {', '.join(inner[:MOST_NAMES])}{more}"
    files = sorted(directory.glob("*.gguf"))
    if files:
        return f"it holds {to_convert(files[0])}"
    return HAS_ONE
