"""A safety profile: one JSON file that names base, expert, vector and settings.

A setting comes from: flag, then profile, then the vector's metadata, then the model's
`generation_config.json`, then the default here.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from minisafe.cache import CACHE_DTYPES
from minisafe.config import DTYPES, LlamaConfig, shown
from minisafe.errors import (
    CheckpointError,
    ConfigError,
    SafetyError,
    SafetyWarning,
    SettingError,
)
from minisafe.files import read_json, write_text
from minisafe.gate import Calibration
from minisafe.guidance import RULES, check_guidance, check_rule
from minisafe.prepare import WEIGHTS
from minisafe.sampling import Sampling
from minisafe.session.about import About
from minisafe.tokenizer.options import Scalar, check_options
from minisafe.vectors import POSITIONS

PATHS = ("base", "edit", "expert", "anti_expert", "vector")
NOT_SETTINGS = ("minisafe_profile", "sha256", "about", "calibration")
TOKENIZER_FILES = (
    "tokenizer.json", "special_tokens_map.json", "tokenizer_config.json", "chat_template.jinja",
)  # fmt: skip
MODEL_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
VERSION = 1
HINT = "expected a safety profile (see docs/profile.md)"
SAFE_EXPERT = ("safedecoding", "dexperts")  # rules whose expert is the safe one


@dataclass(frozen=True)
class Settings:
    """Everything that a flag or a profile can set. Raises `SettingError` when made out of range.

    base: model directory. edit: a LoRA directory that is merged into the base first, as an edited
    model is shipped. expert: model directory or PEFT adapter directory. expert_system: the
    system prompt that makes the base its own expert. vector: safety vector file. safe: None means
    safe if there is an expert or a vector. stop: strings that end an answer. dtype: None keeps the
    checkpoint's. threads: None keeps torch's. allow_padding: base and expert may differ in unused
    ids at the vocabulary's end. `sa_layer` None means the vector's own.

    rule: a name of `guidance.RULES`; for `safedecoding` and `dexperts` the expert is the safe one.
    alpha, first_tokens: None means the rule's own default. anti_expert, anti_system: the third
    stream of `dexperts`. gate: None means on if the profile holds a calibration for these weights.
    speculate: most tokens that the base drafts for an expert with weights of its own (see
    `speculate`); 0 means none, None decides by itself. weights: how they are kept (see `prepare`).
    cache_dtype: in which keys and values are held (see `cache`).
    compile: run the decoding step as one compiled graph (see `compiled`).
    template_options: names and values that the chat template is given, such as
    {"enable_thinking": False}.
    expert_kind: "unsafe" or "safe", what the expert is; None: what the rule beside it reads.
    reverse_sa: for research, let a negative `sa_scale` steer towards harm; never from a file.
    """

    base: Path | None = None
    edit: Path | None = None
    expert: Path | None = None
    expert_system: str | None = None
    vector: Path | None = None
    safe: bool | None = None
    sa_layer: int | None = None
    sa_scale: float = 1.5
    sa_positions: str = "prompt"
    sgds_lambda: float = 0.99
    margin: float = 0.0
    rule: str = "sgds"
    alpha: float | None = None
    first_tokens: int | None = None
    common_tokens: int = 5
    anti_expert: Path | None = None
    anti_system: str | None = None
    gate: bool | None = None
    system: str | None = None
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    dtype: str | None = None
    device: str = "cpu"
    threads: int | None = None
    allow_padding: bool = False
    speculate: int | None = None
    weights: str = "auto"
    cache_dtype: str = "auto"
    compile: bool = False
    template_options: Mapping[str, Scalar] = field(default_factory=dict)
    expert_kind: str | None = None
    reverse_sa: bool = False

    def __post_init__(self) -> None:
        check_options(self.template_options)
        check_guidance(self.sgds_lambda, self.margin)
        check_rule(self.alpha or 0.0, self.first_tokens)
        self.sampling()  # checks its own ranges
        checks = {
            "rule": (self.rule in RULES, f"one of {', '.join(RULES)}"),
            "common_tokens": (self.common_tokens >= 1, "1 or more"),
            "sa_positions": (self.sa_positions in POSITIONS, f"one of {', '.join(POSITIONS)}"),
            "sa_scale": (abs(self.sa_scale) < float("inf"), "a finite number"),
            "sa_layer": (
                self.sa_layer is None or self.sa_layer >= 0,
                "a layer's number, 0 or more",
            ),
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "threads": (self.threads is None or self.threads >= 1, "1 or more"),
            "dtype": (self.dtype is None or self.dtype in DTYPES, f"one of {', '.join(DTYPES)}"),
            "stop": (all(self.stop), "strings that are not empty"),
            "weights": (self.weights in WEIGHTS, f"one of {', '.join(WEIGHTS)}"),
            "cache_dtype": (
                self.cache_dtype in CACHE_DTYPES,
                f"one of {', '.join(CACHE_DTYPES)}",
            ),
            "expert_kind": (self.expert_kind in (None, "unsafe", "safe"), "unsafe or safe"),
            "speculate": (0 <= (self.speculate or 0) <= 64, "0 (off) to 64"),
        }
        for name, (holds, expected) in checks.items():
            if not holds:
                raise SettingError(f"{name} is {getattr(self, name)!r}; expected {expected}")

    @property
    def guided(self) -> bool:
        """Whether a guidance rule acts, if decoding is safe."""
        return self.sgds_lambda > 0 if self.rule == "sgds" else self.alpha != 0

    def sampling(self) -> Sampling:
        """The part that chooses tokens."""
        return Sampling(**{each.name: getattr(self, each.name) for each in fields(Sampling)})


FIELDS = {each.name: each for each in fields(Settings)}


@dataclass(frozen=True)
class Profile:
    """A profile file: settings by name, the SHA-256 of files that it vouches for, its gate."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None
    calibration: Calibration | None = None


def default_profile() -> Path:
    """The shipped profile: in a checkout `weights/tiny`, in an installed wheel the package's."""
    package = Path(__file__).resolve().parent.parent
    for directory in (package / "weights" / "tiny", package.parent / "weights" / "tiny"):
        if (directory / "profile.json").is_file():
            return directory / "profile.json"
    raise ConfigError(
        "no shipped profile was found; give one with --profile, or a model with --base"
    )


def load_profile(path: str | Path) -> Profile:
    """Read and check a profile; relative paths in it are relative to its own directory.

    Raises `ConfigError` for a malformed file or unknown key, `SettingError` for a bad value,
    `CheckpointError` where a file is not the one that the profile vouches for.
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
        check_path(name, "sha256", str(path))
    gate = data.get("calibration")
    calibration = None if gate is None else Calibration.from_json(gate, str(path))
    About.from_json(data.get("about"), str(path))
    profile = Profile(settings, vouched, path, calibration)
    check_files(profile)
    if vouched == {} and "sha256" in data:
        warnings.warn(
            f"{path}: sha256 is empty, so nothing is vouched for; `minisafe vouch {path}` fills it",
            SafetyWarning,
            stacklevel=2,
        )
    return profile


def profile_settings(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The settings in a profile's JSON, its paths seen from here.

    Raises `ConfigError` for another version or an unknown key, `SettingError` for a bad value.
    """
    if data.get("minisafe_profile") != VERSION:
        raise ConfigError(
            f"{path}: minisafe_profile is {data.get('minisafe_profile')!r}; expected {VERSION}"
        )
    unknown = sorted(set(data) - set(FIELDS) - set(NOT_SETTINGS))
    if unknown:
        raise ConfigError(f"{path}: unknown setting {unknown[0]!r}; known: {', '.join(FIELDS)}")
    if "reverse_sa" in data:
        raise SettingError(f"{path}: reverse_sa is for research only; expected it as a flag")
    settings = {
        name: checked(name, value, str(path)) for name, value in data.items() if name in FIELDS
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
    """Write a profile; paths in `settings` are kept relative to it, `files` get their SHA-256."""
    path = Path(path)
    data: dict[str, Any] = {"minisafe_profile": VERSION}
    if about is not None:
        data["about"] = about.to_json()
    for name, value in settings.items():
        data[name] = relative(Path(value), path.parent) if name in PATHS and value else value
    data["sha256"] = hashes(files, path.parent)
    write_profile(path, data)


def store_calibration(path: str | Path, calibration: Calibration) -> None:
    """Put a calibration into a profile file, whole or not at all; the rest stays as it is."""
    path = Path(path)
    path = path / "profile.json" if path.is_dir() else path
    data = read_json(path, HINT)
    write_profile(path, data | {"calibration": calibration.to_json()})


def write_profile(path: Path, data: Mapping[str, Any]) -> None:
    """Write a profile's JSON, whole or not at all."""
    write_text(path, json.dumps(data, indent=2) + "\n")


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


def vouch(path: str | Path) -> list[Path]:
    """Write the SHA-256 of every file that a profile's parts are read from into it; returns them.

    Raises `CheckpointError` where a part is missing.
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


def hashes(files: Iterable[Path], directory: Path) -> dict[str, str]:
    """SHA-256 by name relative to `directory`."""
    return {relative(file, directory): sha256(file) for file in sorted(files)}


def check_files(profile: Profile) -> None:
    """Raise `CheckpointError` unless every vouched-for file is there and unchanged, and, where any
    is vouched for, every file that would be read is."""
    assert profile.path is not None
    listed = {(profile.path.parent / name).resolve() for name in profile.sha256}
    for file in files_read(profile.settings) if listed else ():
        if file.exists() and file.resolve() not in listed:
            raise CheckpointError(
                f"{file}: would be read, but {profile.path.name} vouches for other files and not "
                f"for this one; remove it, or `minisafe vouch {profile.path}` if you trust it"
            )
    for name, expected in profile.sha256.items():
        file = profile.path.parent / name
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file, but {profile.path.name} names it")
        if sha256(file) != expected:
            raise CheckpointError(
                f"{file}: not the file that {profile.path.name} was made with (its SHA-256 "
                "differs); restore it, or make the profile anew"
            )


def checked(name: str, value: Any, source: str) -> Any:
    """A setting's value in its own type; raises `SettingError`."""
    kind = str(FIELDS[name].type)
    if value is None and "None" in kind:
        return None
    wanted, make = value_type(name, kind)
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        raise SettingError(f"{source}: {name} is {value!r}; expected {kind}")
    if name in PATHS:
        check_path(str(value), name, source)
    if name == "stop" and not all(isinstance(each, str) for each in make(value)):
        raise SettingError(f"{source}: stop is {value!r}; expected strings")
    try:
        return make(value)
    except OverflowError:
        raise SettingError(f"{source}: {name} is too large; expected {kind}") from None
    except SettingError as error:
        raise SettingError(f"{source}: {error}") from None


def check_path(text: str, name: str, source: str) -> None:
    """Raise `SettingError` for a path that no system can have, before one is asked for it."""
    if (
        "\0" in text
        or max(len(part.encode("utf-8", "surrogatepass")) for part in text.split("/")) > 255
        or len(text) > 4000
    ):
        raise SettingError(
            f"{source}: {name} names {shown(text)}; expected a path of names up to 255 bytes each"
        )


def value_type(name: str, kind: str) -> tuple[tuple[type, ...], Callable[[Any], Any]]:
    """Which types a setting may come in, and what makes it its own."""
    if name in PATHS:
        return (str, Path), Path
    if name == "stop":
        return (list, tuple), tuple
    if name == "template_options":
        return (dict,), check_options
    if "bool" in kind:
        return (bool,), bool
    if "int" in kind:
        return (int,), int
    if "float" in kind:
        return (int, float), float
    return (str,), str


def from_generation_config(directory: Path) -> tuple[dict[str, Any], frozenset[int]]:
    """Sampling defaults and end-of-text ids of a model directory."""
    vocab_size = LlamaConfig.from_directory(directory).vocab_size
    data: dict[str, Any] = {}
    path = directory / "generation_config.json"
    if path.is_file():
        data = read_json(path, "sampling defaults")
    eos, source = data.get("eos_token_id"), path
    if eos is None:
        source = directory / "config.json"
        eos = read_json(source, "a model has one").get("eos_token_id")
    ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
    if not all(type(id_) is int and 0 <= id_ < vocab_size for id_ in ids):
        raise ConfigError(
            f"{source}: eos_token_id is {shown(eos)}; expected a token id or several, 0 to "
            f"{vocab_size - 1}"
        )
    if not isinstance(data.get("do_sample") or False, bool):
        raise ConfigError(
            f"{path}: do_sample is {shown(data['do_sample'])}; expected true or false"
        )
    settings: dict[str, Any] = {}
    if data.get("do_sample"):
        names = ("temperature", "top_k", "top_p", "min_p")
        settings = {"temperature": 1.0} | {
            name: checked(name, data[name], str(path))
            for name in names
            if data.get(name) is not None
        }
    try:
        Sampling(**settings)
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from None
    return settings, frozenset(ids)


def resolve(*sources: Mapping[str, Any]) -> Settings:
    """One `Settings` from mappings of given settings, the first that has a name decides.

    Raises `SettingError` for an unknown name or a value out of range.
    """
    merged: dict[str, Any] = {}
    for source in reversed(sources):
        for name, value in source.items():
            if name not in FIELDS:
                raise SettingError(f"unknown setting {name!r}; known: {', '.join(FIELDS)}")
            merged[name] = checked(name, value, "setting")
    return Settings(**merged)


def decide_safe(settings: Settings) -> bool:
    """Whether decoding is safe; raises `SafetyError` if it is asked for and cannot be in full."""
    has_expert = settings.expert is not None or settings.expert_system is not None
    safe = settings.safe
    if safe is None:
        safe = has_expert or settings.vector is not None
    if not safe:
        return False
    if settings.expert is not None and settings.expert_system is not None:
        raise SettingError("both an expert and an expert's system prompt are given; expected one")
    strength = "sgds_lambda" if settings.rule == "sgds" else "alpha"
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
        kind = "a safe" if settings.rule in SAFE_EXPERT else "an unsafe"
        raise SafetyError(
            f"safe decoding needs {kind} expert; give one with --expert or --expert-system, or "
            f"--{strength.replace('_', '-')} 0 for amplification alone"
        )
    if settings.guided:
        check_anti(settings)
    if settings.gate and not settings.guided:
        raise SafetyError("a gate needs an expert to compare the base with; use --no-gate")
    return True


def check_anti(settings: Settings) -> None:
    """Raise unless an anti-expert is given exactly where the rule reads one."""
    given = [each for each in (settings.anti_expert, settings.anti_system) if each is not None]
    if settings.rule == "dexperts" and len(given) != 1:
        raise SafetyError(
            f"dexperts reads one anti-expert, and {len(given)} are given; expected one of "
            "--anti-expert and --anti-system"
        )
    if settings.rule != "dexperts" and given:
        raise SettingError(f"an anti-expert is given, but the rule {settings.rule} reads none")
