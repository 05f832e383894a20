"""The readers of models, vectors, adapters, tokenizers and profiles, each in a tiny world."""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from mutate import LFS
from safetensors.torch import save_file
from target import Target

from minisafe.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    SINGLE,
    load_adapter,
    load_model,
    save_adapter,
    save_model,
)
from minisafe.checkpoint.config import load_config
from minisafe.checkpoint.rounded import KEY, WEIGHTS
from minisafe.checkpoint.vectors import load_vector, save_npy, save_vector
from minisafe.cli.inspect import as_lines, describe_path
from minisafe.convert import convert, plan_conversion
from minisafe.convert.rounded import directory_source, round_model
from minisafe.convert.values import library
from minisafe.errors import SettingError
from minisafe.fast.package import MANIFEST, read_package, system
from minisafe.files import read_json
from minisafe.files.display import CONTROLS
from minisafe.gate import Calibration
from minisafe.session.asked import decide_safe
from minisafe.session.faster import read_model
from minisafe.session.generation_config import from_generation_config
from minisafe.session.profile import load_profile
from minisafe.session.settings import resolve
from minisafe.tokenizer import load_tokenizer
from minisafe.vectors import SafetyVector
from tests.checkpoint.test_arrays import AS_BF16, VALUES, gguf, one
from tests.support.templates import TEMPLATES
from tests.support.tiny import random_adapter, random_model, tiny_config
from tests.support.worlds import tokenizer, write_json, write_tokenizer

ROOT = Path(tempfile.mkdtemp(prefix="fuzz-"))
atexit.register(shutil.rmtree, ROOT, ignore_errors=True)
IDS = torch.arange(3)[None]
MODEL = random_model(
    tiny_config(vocab_size=tokenizer("llama3").size, n_layers=1, hidden=8, intermediate=8,
                n_heads=2, n_kv_heads=1, head_dim=4)
)  # fmt: skip
ADAPTER = random_adapter(MODEL, rank=2, endings=("q_proj", "down_proj"))


def directory(name: str) -> Path:
    """A model directory of this reader's own, with tokenizer and template."""
    path = ROOT / name
    save_model(MODEL, path, {"eos_token_id": 3})
    write_tokenizer(path, *TEMPLATES["llama3"])
    return path


def placed(path: Path, then: Callable[[], object]) -> Callable[[Path], object]:
    """A reader that gets the input as `path`."""

    def read(given: Path) -> object:
        shutil.copyfile(given, path)
        return then()

    return read


def spelt(data: object) -> bytes:
    return json.dumps(data).encode()


# ---- models ------------------------------------------------------------------------------------


def model_runs(path: Path) -> None:
    """A config that fits these weights gives finite logits."""
    logits = load_model(path)(IDS)
    assert bool(logits.isfinite().all()), "logits that are not finite"


def config() -> Target:
    path = directory("config")
    data = json.loads((path / "config.json").read_text())
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
            "attention_factor": 1.1, "beta_fast": 32, "beta_slow": 1, "truncate": True}  # fmt: skip
    seeds = (
        data,
        data | {"rope_scaling": llama3},
        data | {"rope_scaling": yarn},
        data | {"rope_parameters": llama3 | {"rope_theta": 5e5}, "dtype": "float16"},
        data | {"model_type": "mistral", "sliding_window": 2},
        data | {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0},
        data | {"model_type": "granite", "attention_multiplier": 0.2, "logits_scaling": 8.0},
        data | {"model_type": "smollm3", "no_rope_layers": [1, 0, 1, 0]},
        data | {"model_type": "phi3", "sliding_window": 2},
        data | {"model_type": "qwen3", "head_dim": data["head_dim"], "attention_bias": True},
    )
    read = placed(path / "config.json", lambda: model_runs(path))
    return Target("config.json", tuple(map(spelt, seeds)), ".json", read)


def generation_config() -> Target:
    path = directory("generation")
    seeds = (
        {"eos_token_id": [3, 5], "do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 50},
        {"eos_token_id": 3, "do_sample": False, "min_p": 0.1},
        {},
    )
    file = path / "generation_config.json"
    read = placed(file, lambda: resolve(from_generation_config(path)[0]))
    return Target(file.name, tuple(map(spelt, seeds)), ".json", read)


def weights() -> Target:
    path = directory("weights")
    seed = (path / SINGLE).read_bytes()
    save_file({"model.norm.weight": torch.ones(8)}, path / "x")
    seeds = (seed, (path / "x").read_bytes(), LFS)
    return Target(SINGLE, seeds, ".safetensors", placed(path / SINGLE, lambda: load_model(path)))


def index() -> Target:
    path = directory("index")
    with (path / SINGLE).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    (path / SINGLE).rename(path / "model-00001-of-00001.safetensors")
    names = {name: "model-00001-of-00001.safetensors" for name in header if name[0] != "_"}
    seed = spelt({"metadata": {"total_size": 5}, "weight_map": names})
    file = path / f"{SINGLE}.index.json"
    return Target(file.name, (seed,), ".json", placed(file, lambda: model_runs(path)))


def rounded(name: str) -> Path:
    """A directory of int8 weights, as `minisafe convert --weights` writes it."""
    path = ROOT / name
    round_model(
        directory_source(directory(f"{name}-plain")), path, "int8", 0, "float32",
        lambda done, total: None,
    )  # fmt: skip
    return path


def rounded_runs(path: Path) -> None:
    """A model that loads, rounded or not, gives finite logits."""
    logits = read_model(path, None, "cpu", "auto")(IDS)
    assert bool(logits.isfinite().all()), "logits that are not finite"


def rounded_config() -> Target:
    path = rounded("rounded-config")
    data = json.loads((path / "config.json").read_text())
    int4 = data | {KEY: data[KEY] | {"format": "int4", "group": 32}}
    seeds = (data, int4, {name: value for name, value in data.items() if name != KEY})
    read = placed(path / "config.json", lambda: rounded_runs(path))
    return Target("config.json, rounded", tuple(map(spelt, seeds)), ".json", read)


def rounded_weights() -> Target:
    path = rounded("rounded-weights")
    seeds = ((path / WEIGHTS).read_bytes(), LFS)
    read = placed(path / WEIGHTS, lambda: rounded_runs(path))
    return Target(WEIGHTS, seeds, ".safetensors", read)


def compiled() -> Target:
    """The manifest alone: the libraries beside it are programs, which are run."""
    path = ROOT / "compiled"
    path.mkdir()
    code = {"file": "model-0-rows-1.so", "sha256": "0" * 64, "rows": 1}
    part = {"weights": "0" * 16, "config": "0" * 16, "dtype": "float32", "adapters": ["", "0" * 16],
            "code": [code, code | {"rows": 2}]}  # fmt: skip
    here = {"minisafe_compiled": 1, "torch": torch.__version__, "system": system(), "needs": []}
    seeds = (here | {"parts": [part]}, here | {"needs": ["avx2"], "parts": [part, part]})
    read = placed(path / MANIFEST, lambda: read_package(path))
    return Target(MANIFEST, tuple(map(spelt, seeds)), ".json", read)


# ---- adapters ----------------------------------------------------------------------------------


def adapter(name: str) -> Path:
    path = ROOT / name
    save_adapter(ADAPTER, path, rank=2, alpha=1.0)
    return path


def adapter_config() -> Target:
    path = adapter("adapter-config")
    data = json.loads((path / ADAPTER_CONFIG).read_text())
    seeds = (
        data,
        data | {"target_modules": r".*\.(q_proj|down_proj)", "rank_pattern": {"q_proj": 2}},
        data | {"target_modules": ["q_proj", "down_proj"], "alpha_pattern": {".*down.*": 3}},
        data | {"layers_to_transform": [0], "use_rslora": True, "exclude_modules": ["v_proj"]},
    )
    read = placed(path / ADAPTER_CONFIG, lambda: load_adapter(path, MODEL))
    return Target(ADAPTER_CONFIG, tuple(map(spelt, seeds)), ".json", read)


def adapter_weights() -> Target:
    path = adapter("adapter-weights")
    seeds = ((path / ADAPTER_WEIGHTS).read_bytes(), LFS)
    read = placed(path / ADAPTER_WEIGHTS, lambda: load_adapter(path, MODEL))
    return Target(ADAPTER_WEIGHTS, seeds, ".safetensors", read)


# ---- vectors -----------------------------------------------------------------------------------


def vector_safetensors() -> Target:
    path = ROOT / "v.safetensors"
    metadata = {"sa_scale": 1.5, "sa_positions": "last", "heads": [[3, 1]], "n_layers": 4}
    save_vector(SafetyVector({1: torch.ones(8)}, metadata), path)
    seeds = [path.read_bytes()]
    save_vector(SafetyVector({1: torch.ones(8), 4: torch.zeros(8)}, metadata), path)
    return Target("vector.safetensors", (*seeds, path.read_bytes(), LFS), path.suffix, load_vector)


def vector_npy() -> Target:
    path, seeds = ROOT / "v.npy", []
    save_npy(SafetyVector({1: torch.ones(8)}), path)
    seeds.append(path.read_bytes())
    np.save(path, np.ones((1, 8)).astype(">f8"))
    seeds.append(path.read_bytes())
    with path.open("wb") as file:
        np.savez(file, np.ones((1, 8), np.float32))
    return Target("vector.npy", (*seeds, path.read_bytes(), LFS), path.suffix, load_vector)


def vector_gguf() -> Target:
    key = b"\x01\x00\x00\x00\x00\x00\x00\x00x" + b"\x04\x00\x00\x00" + bytes(4)
    seeds = (
        gguf(one(0, 64, VALUES.tobytes()), keys=key, n_keys=1),
        gguf(one(30, 64, AS_BF16), ("direction.5", (64,), 1, bytes(128))),
        gguf(one(8, 64, bytes(68))),
        LFS,
    )
    return Target("vector.gguf", seeds, ".gguf", load_vector)


# ---- models in GGUF ----------------------------------------------------------------------------


def model_gguf() -> Target:
    """A file that is converted gives a directory that chats."""
    goldens = Path(__file__).resolve().parent.parent / "goldens" / "gguf"
    names = ("llama_smollm_q4_1", "qwen2_q8_0", "llama_sentencepiece_f16")
    seeds = tuple((goldens / f"{name}.gguf").read_bytes() for name in names)
    library()  # importing it takes seconds on a busy machine, which are not the first input's

    def read(path: Path) -> None:
        with tempfile.TemporaryDirectory(dir=ROOT) as place:
            out = Path(place) / "out"
            convert(plan_conversion(path), out, "float32", lambda done, total: None)
            load_config(out)
            load_tokenizer(out).encode("Hello there")

    return Target("model.gguf", (*seeds, LFS), ".gguf", read)


# ---- profiles ----------------------------------------------------------------------------------

CALIBRATION = Calibration(
    threshold=0.4, epsilon=0.05, made_for="0" * 16, data="0" * 64, n=100, touched=0.05,
    n_harmful=50, missed=0.0, missed_low=0.0, missed_high=0.07, max_miss=0.1,
).to_json()  # fmt: skip


def sealed(data: dict[str, object]) -> dict[str, object]:
    """With a seal that fits, as one may make who knows how: the ranges must hold by themselves."""
    plain = {name: value for name, value in data.items() if name != "seal"}
    text = json.dumps(plain, sort_keys=True)
    return plain | {"seal": hashlib.sha256(text.encode()).hexdigest()[:16]}


def profile() -> Target:
    path = directory("profile")
    known = {"minisafe_profile": 1, "base": ".", "expert": "adapter", "vector": "v.safetensors"}
    seeds = (
        known,
        known | {"sa_scale": 1.5, "sa_positions": "last", "sgds_lambda": 0.9, "margin": 0.5,
                 "stop": ["###"], "temperature": 0.7, "calibration": CALIBRATION,
                 "sha256": {}, "about": "a test", "dtype": "bfloat16"},
        known | {"rule": "dexperts", "anti_system": "x", "safe": True, "max_new_tokens": 5},
    )  # fmt: skip
    file = path / "profile.json"
    read = placed(file, lambda: decide_safe(resolve(load_profile(file).settings)))
    return Target(file.name, tuple(map(spelt, seeds)), ".json", read)


def calibration() -> Target:
    def read(path: Path) -> object:
        data = read_json(path, "")
        with suppress(SettingError):
            return Calibration.from_json(data, str(path)).gate
        return Calibration.from_json(sealed(data), str(path)).gate

    seeds = (CALIBRATION, sealed(CALIBRATION | {"threshold": 0, "missed_high": 1}))
    return Target("calibration", tuple(map(spelt, seeds)), ".json", read)


# ---- tokenizers --------------------------------------------------------------------------------

CHAT = [
    {"role": "user", "content": "Hello <|eot|> there"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Bye"},
]


def chats(path: Path) -> None:
    """A tokenizer that loads encodes a chat and decodes what it encoded."""
    found = load_tokenizer(path)
    found.decode(found.encode("Hello there"))
    found.encode_chat(CHAT, {1: [5, 6]})


def tokenizer_json() -> Target:
    path = directory("tokenizer")
    goldens = Path(__file__).resolve().parent.parent / "goldens" / "chat" / "tokenizers"
    seeds = tuple(file.read_bytes() for file in sorted(goldens.glob("*.json")))
    return Target(
        "tokenizer.json", seeds, ".json", placed(path / "tokenizer.json", lambda: chats(path))
    )


def tokenizer_config() -> Target:
    path = directory("tokenizer-config")
    names = ("llama3", "chatml", "llama2")
    seeds = tuple(spelt(TEMPLATES[name][1]) for name in names if name in TEMPLATES)
    read = placed(path / "tokenizer_config.json", lambda: chats(path))
    return Target("tokenizer_config.json", seeds, ".json", read)


def chat_template() -> Target:
    path = directory("template")
    found = [settings.get("chat_template") for _, settings in TEMPLATES.values()]
    seeds = tuple(each.encode() for each in found if isinstance(each, str))
    read = placed(path / "chat_template.jinja", lambda: chats(path))
    return Target("chat_template.jinja", seeds, ".jinja", read)


# ---- what is shown -----------------------------------------------------------------------------


def inspected() -> Target:
    """Whatever a vector's file says, `inspect` shows lines that are safe and bounded."""

    def read(path: Path) -> None:
        lines = as_lines(describe_path(path))
        assert not CONTROLS.search("".join(lines)), "a control character is shown"
        assert all(len(line.splitlines()) == 1 for line in lines), "a value forges a line"
        assert sum(map(len, lines)) < 500_000, "more is shown than can be read"

    return Target("inspect", vector_safetensors().seeds, ".safetensors", read)


write_json(ROOT / "ready.json", {})
TARGETS = tuple(
    make()
    for make in (
        config, generation_config, weights, index, rounded_config, rounded_weights, compiled,
        adapter_config, adapter_weights,
        vector_safetensors, vector_npy, vector_gguf, model_gguf, profile, calibration,
        tokenizer_json, tokenizer_config, chat_template, inspected,
    )
)  # fmt: skip
