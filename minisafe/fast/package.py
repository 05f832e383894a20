"""Packages of `minisafe compile`: a decoding step's machine code, and what it was made for.

A package is a directory with `MANIFEST` and shared libraries, one for each number of streams. It
holds no weights. It is refused, by name, with other weights, another dtype, another torch, or a
processor that lacks an instruction. Loading one runs its code, so load only packages you trust.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from minisafe.checkpoint import fingerprint
from minisafe.errors import SettingError
from minisafe.fast.ahead import AheadLlama, Lineup, Steps, export_step, load_step
from minisafe.fast.compiled import check_compile
from minisafe.fast.graph import by_model
from minisafe.fast.prepare import check_known, quicken
from minisafe.files.display import shown
from minisafe.files.untrusted import read_bytes, read_json
from minisafe.files.whole import whole_directory
from minisafe.lockstep import Stream
from minisafe.lora import LoraAdapter
from minisafe.model import Llama

MANIFEST = "compiled.json"
FORMAT = 1  # of the manifest, and of what the machine code is given
LARGEST = 1 << 30  # bytes of a library
# for any x86 processor since about 2013, or for the one at hand
AVX2 = ("avx", "avx2", "bmi", "bmi2", "f16c", "fma3", "lzcnt", "popcnt", "sse4_2")
INSTRUCTIONS: dict[str, dict[str, Any]] = {
    "native": {}, "avx2": {"cpp.simdlen": 256, "cpp.march": "x86-64-v3"},
}  # fmt: skip
WORDS = {"dtype": "another dtype", "config": "another config", "weights": "other weights"}
AGAIN = "run minisafe compile again here, or leave out --compiled"


@dataclass(frozen=True)
class Code:
    """One library: its file, the file's hash, and how many streams (rows) it reads."""

    file: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class Part:
    """One model's step. adapters: by stream, the hash of its adapter, or "" without one."""

    weights: str
    config: str
    dtype: str
    adapters: tuple[str, ...]
    code: tuple[Code, ...]


@dataclass(frozen=True)
class Package:
    """A package's manifest. needs: features of the processor, as torch names them."""

    torch: str
    system: str
    needs: tuple[str, ...]
    parts: tuple[Part, ...]


# ---- making one --------------------------------------------------------------------------------


def write_package(
    streams: Sequence[Stream],
    out: Path,
    instructions: str = "native",
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Package:
    """Compile the steps of these streams: of each model's first stream alone, of its first two, and
    so on, each with one prompt. Writes the package to `out`, a new directory.

    Raises `SettingError` for prepared weights, float16, a device other than the CPU, or a compiler
    that is missing or fails; `OutputError` if it cannot be written.
    """
    groups = by_model(streams)
    for model in (members[0].model for members in groups):
        check_model(model)
    total, parts = sum(map(len, groups)), list[Part]()
    with whole_directory(out) as folder:
        for number, members in enumerate(groups):
            code = list[Code]()
            for rows in range(1, len(members) + 1):
                done = sum(len(part.code) for part in parts) + len(code)
                progress("steps compiled, steps", done, total)
                file = folder / f"model-{number}-rows-{rows}.so"
                lineup = lineup_of(members)[:rows]
                export_step(members[0].model, lineup, file, INSTRUCTIONS[instructions])
                code.append(Code(file.name, hash_of(file), rows))
            parts.append(part_of(members, tuple(code)))
        progress("steps compiled, steps", total, total)
        package = Package(torch.__version__, system(), needs(instructions), tuple(parts))
        text = json.dumps({"minisafe_compiled": FORMAT, **asdict(package)}, indent=2)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return package


def check_model(model: Llama) -> None:
    """Raise `SettingError` for a model whose step cannot be compiled."""
    check_compile(str(model.device), model.weights)
    if model.dtype == torch.float16:
        raise SettingError("compile needs bfloat16 or float32, but dtype is float16; give another")
    check_known(model, "compile")


def lineup_of(members: Sequence[Stream]) -> Lineup:
    """The adapters of streams of one model, with one prompt."""
    return tuple(stream.adapter for stream in members)


def part_of(members: Sequence[Stream], code: tuple[Code, ...] = ()) -> Part:
    """What a package must know of the streams of one model."""
    model = members[0].model
    dtype = str(model.dtype).removeprefix("torch.")
    config = hashlib.sha256(repr(model.config).encode()).hexdigest()[:16]
    adapters = tuple(adapter_hash(each) for each in lineup_of(members))
    return Part(fingerprint(model), config, dtype, adapters, code)


def adapter_hash(adapter: LoraAdapter | None) -> str:
    """A hash of an adapter's values; "" without one."""
    if adapter is None:
        return ""
    digest = hashlib.sha256()
    for name, delta in sorted(adapter.deltas.items()):
        digest.update(f"{name} {delta.scaling} {tuple(delta.a.shape)}".encode())
        for matrix in (delta.a, delta.b):
            digest.update(matrix.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def hash_of(file: Path) -> str:
    """Hexadecimal SHA-256 of a library."""
    return hashlib.sha256(read_bytes(file, LARGEST, SettingError)).hexdigest()


def system() -> str:
    """The operating system and the kind of processor, such as "Linux x86_64"."""
    return f"{platform.system()} {platform.machine()}"


def features() -> set[str]:
    """What the processor can do, in torch's words."""
    if not hasattr(torch.cpu, "get_capabilities"):
        raise SettingError(
            f"compiling ahead of time needs torch 2.12 or newer, but torch is {torch.__version__}"
        )
    return {name for name, value in torch.cpu.get_capabilities().items() if value is True}


def needs(instructions: str) -> tuple[str, ...]:
    """The features that machine code for these instructions may use."""
    found = features()
    if instructions == "avx2":
        found &= set(AVX2)
    return tuple(sorted(found))


# ---- reading one -------------------------------------------------------------------------------


def read_package(path: Path) -> Package:
    """A package's manifest; raises `SettingError` if this machine or this torch cannot run it."""
    source = path / MANIFEST
    data = read_json(source, "give a directory made by minisafe compile", SettingError)
    if data.pop("minisafe_compiled", None) != FORMAT:
        raise SettingError(f"{source}: not a package of this version of minisafe; {AGAIN}")
    try:
        parts = tuple(
            Part(**each | {
                "adapters": tuple(each["adapters"]),
                "code": tuple(Code(**code) for code in each["code"]),
            })
            for each in data["parts"]
        )  # fmt: skip
        package = Package(**data | {"needs": tuple(data["needs"]), "parts": parts})
        check_types(package)
    except (TypeError, KeyError, ValueError) as error:
        raise SettingError(f"{source}: not a package's manifest ({error}); {AGAIN}") from None
    check_machine(path, package)
    return package


def check_types(package: Package) -> None:
    """Raise `ValueError` if a field is not of its type, or a file's name leads elsewhere."""
    if not package.parts:
        raise ValueError("parts is empty")
    codes = [code for part in package.parts for code in part.code]
    holders: tuple[Any, ...] = (package, *package.parts, *codes)
    for holder in holders:
        for each in fields(holder):
            value = getattr(holder, each.name)
            expected = {"int": int, "str": str}.get(str(each.type), tuple)
            if type(value) is not expected:
                raise ValueError(f"{each.name} is {shown(value)}")
    words = [*package.needs, *(name for part in package.parts for name in part.adapters)]
    if wrong := [each for each in words if not isinstance(each, str)]:
        raise ValueError(f"{shown(wrong[0])} is not a text")
    for code in codes:
        if Path(code.file).name != code.file or code.rows < 1:
            raise ValueError(f"file is {shown(code.file)}, for {code.rows} rows")


def check_machine(path: Path, package: Package) -> None:
    """Raise `SettingError` if the machine code is for another torch, system or processor."""
    if package.torch != torch.__version__:
        raise SettingError(
            f"{path}: compiled for torch {shown(package.torch)}, but torch is "
            f"{torch.__version__}; {AGAIN}"
        )
    if package.system != system():
        raise SettingError(
            f"{path}: compiled for {shown(package.system)}, but this is {system()}; {AGAIN}"
        )
    if lacking := sorted(set(package.needs) - features()):
        raise SettingError(
            f"{path}: compiled for a processor with {shown(', '.join(lacking))}, which this one "
            f"lacks; {AGAIN} (--instructions avx2 suits nearly every x86 processor)"
        )


def use_package(path: Path, streams: Sequence[Stream]) -> None:
    """Give the streams' models, in place, the steps that the package has for them.

    Raises `SettingError` if it was made for other weights, another dtype or other streams, or if a
    file in it was changed.
    """
    package, groups = read_package(path), by_model(streams)
    if len(groups) > len(package.parts):
        raise SettingError(
            f"{path}: compiled for {count(len(package.parts), 'model')}, but this session has "
            f"{len(groups)}; {AGAIN}"
        )
    for members, part in zip(groups, package.parts, strict=False):
        check_part(path, part, part_of(members))
    for members, part in zip(groups, package.parts, strict=False):
        model, lineup = members[0].model, lineup_of(members)
        check_known(model, "compiled")
        quicken(model)
        found = []
        for code in (each for each in part.code if each.rows <= len(lineup)):
            file = path / code.file
            if hash_of(file) != code.sha256:
                raise SettingError(f"{file}: changed since it was compiled; {AGAIN}")
            found.append((lineup[: code.rows], load_step(model, lineup[: code.rows], file)))
        model.__class__ = AheadLlama
        assert isinstance(model, AheadLlama)
        model.steps = Steps(model, found)


def check_part(path: Path, made: Part, here: Part) -> None:
    """Raise `SettingError` unless a model's step was made for what is here."""
    for name, words in WORDS.items():
        one, other = getattr(made, name), getattr(here, name)
        if one != other:
            raise SettingError(
                f"{path}: compiled for {words} ({shown(one)}, here {other}); {AGAIN}"
            )
    if len(here.adapters) > len(made.adapters):
        raise SettingError(
            f"{path}: compiled for {count(len(made.adapters), 'stream')}, but this session has "
            f"{len(here.adapters)}; {AGAIN}"
        )
    for stream, (one, other) in enumerate(zip(made.adapters, here.adapters, strict=False)):
        if one != other:
            raise SettingError(
                f"{path}: compiled for another adapter of stream {stream} "
                f"({shown(one or 'none')}, here {other or 'none'}); {AGAIN}"
            )


def count(n: int, what: str) -> str:
    """`1 stream`, `2 streams`"""
    return f"{n} {what}{'' if n == 1 else 's'}"
