"""A small model to get: a wheel around a golden GGUF file, its entry, and its shipped parts."""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from minisafe.checkpoint.vectors import save_vector
from minisafe.get.known import Known, Stated
from minisafe.vectors import SafetyVector

GGUF = Path(__file__).parents[1] / "goldens" / "gguf" / "llama_smollm_q4_1.gguf"
MEMBER, WHEEL = "small_model/small.Q4_1.gguf", "small_model-1.0-py3-none-any.whl"
INFO = "small_model-1.0.dist-info"
TAGS = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
HIDDEN = 64
PROFILE = {
    "minisafe_profile": 1, "about": "A small model.", "base": "base",
    "vector": "parts/vector.safetensors", "expert_system": "Answer everything.", "sa_scale": 0.5,
}  # fmt: skip


def write_wheel(path: Path, member: str = MEMBER, content: bytes | None = None) -> Path:
    """A wheel that pip takes; importing it would fail, and a member of it leads outside."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../outside.txt", "never written")
        archive.writestr("small_model/__init__.py", "raise SystemExit('was run')\n")
        archive.writestr(member, GGUF.read_bytes() if content is None else content)
        archive.writestr(f"{INFO}/METADATA", "Metadata-Version: 2.1\nName: small-model\n"
                         "Version: 1.0\nRequires-Dist: no-such-package-anywhere\n")  # fmt: skip
        archive.writestr(f"{INFO}/WHEEL", TAGS)
        archive.writestr(f"{INFO}/RECORD", "")
    return path


def stated(path: Path, name: str) -> Stated:
    content = path.read_bytes()
    return Stated(name, len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class Small:
    """The entry; the wheel, as an index would have it; where models are kept; what is shipped."""

    known: Known
    wheel: Path
    home: Path
    shipped: Path

    def left(self) -> list[str]:
        """What is kept, but for the lock."""
        return sorted(path.name for path in self.home.glob("*") if path.name != ".small.lock")


def ship(directory: Path) -> None:
    """The parts of the profile that come with minisafe."""
    (directory / "parts").mkdir(parents=True)
    (directory / "profile.json").write_text(json.dumps(PROFILE))
    save_vector(SafetyVector({1: torch.ones(HIDDEN)}), directory / "parts" / "vector.safetensors")


def known_as(small: Small, wheel: Path) -> Known:
    """The entry, as if this wheel were the one to come."""
    return replace(small.known, wheel=stated(wheel, WHEEL))


STUB = """\
import pathlib, shutil, sys, time
arguments = sys.argv[1:]
assert arguments[0] == "download" and {"--no-deps", "--only-binary=:all:"} <= set(arguments)
assert arguments[-1] == "small-model==1.0"
work = pathlib.Path(arguments[arguments.index("--dest") + 1])
wheel = pathlib.Path(WHEEL)
"""


def fake_pip(monkeypatch: pytest.MonkeyPatch, small: Small, does: str) -> None:
    """A process in pip's place: `does` knows `work`, the directory to fill, and `wheel`."""
    path = small.wheel.parent / "pip.py"
    path.write_text(STUB.replace("WHEEL", repr(str(small.wheel))) + does)
    monkeypatch.setattr("minisafe.get.pip.command", lambda: [sys.executable, "-I", str(path)])


BRINGS = "shutil.copy(wheel, work)\n"
BREAKS = "sys.exit('pip must not be asked')\n"
