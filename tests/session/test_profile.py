"""Where settings come from, what a profile may hold, and that nothing is ever half safe."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import minisafe
from minisafe.checkpoint import load_adapter, save_adapter, save_model
from minisafe.checkpoint.vectors import save_vector
from minisafe.errors import (
    AdapterError,
    BadInput,
    CheckpointError,
    ConfigError,
    SafetyError,
    SafetyWarning,
    SettingError,
    TokenizerError,
    VectorError,
)
from minisafe.session.asked import decide_safe
from minisafe.session.profile import default_profile, load_profile, save_profile, vouch
from minisafe.session.settings import SETTINGS, Settings, resolve
from minisafe.session.vouched import files_read, sha256
from minisafe.vectors import SafetyVector
from tests.support.tiny import random_adapter, random_model
from tests.support.worlds import (
    World,
    base_model,
    merged,
    safety_vector,
    tokenizer,
    write_json,
    write_tokenizer,
)

pytest_plugins = ["tests.support.world_fixtures"]


@pytest.fixture(autouse=True)
def no_unexpected_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", SafetyWarning)
        yield


def load(**flags: Any) -> minisafe.Session:
    return minisafe.load(None, flags)


@pytest.fixture
def profile(world: World, tmp_path: Path) -> Callable[..., Path]:
    """`profile(sa_scale=2)`: the world's profile with other settings, in another directory."""

    def write(name: str = "p.json", **changes: Any) -> Path:
        data = json.loads(world.profile.read_text(encoding="utf-8"))
        for part in ("base", "expert", "vector"):
            data[part] = str(world.root / data[part])
        return write_json(tmp_path / name, data | changes)

    return write


# ---- precedence --------------------------------------------------------------------------------


def test_a_vectors_settings_come_after_flag_and_profile(profile: Callable[..., Path]) -> None:
    """The vector's metadata says scale 1.25 and last; the defaults are 1.5 and prompt."""
    bare, full = profile("bare.json"), profile("full.json", sa_scale=2, sa_positions="all")
    assert minisafe.load(bare).stages.to_json()["sa"]["scale"] == 1.25
    assert minisafe.load(bare).stages.to_json()["sa"]["positions"] == "last"
    assert minisafe.load(full).stages.to_json()["sa"]["scale"] == 2
    assert minisafe.load(full).stages.to_json()["sa"]["positions"] == "all"
    flags = {"sa_scale": 3.0, "sa_positions": "generated"}
    for each in (bare, full):
        found = minisafe.load(each, flags)
        assert found.stages.to_json()["sa"] | {"vector": 0} == {
            "vector": 0, "layers": [1], "scale": 3.0, "positions": "generated"
        }  # fmt: skip
        assert found.steering is not None
        assert (found.steering.scale, found.steering.positions) == (3.0, "generated")


def test_a_vectors_own_layer_comes_after_flag_and_profile(profile: Callable[..., Path]) -> None:
    assert minisafe.load(profile()).stages.sa.layers == (1,)
    assert minisafe.load(profile(sa_layer=2)).stages.sa.layers == (2,)
    assert minisafe.load(profile(sa_layer=2), {"sa_layer": 0}).stages.to_json()["sa"]["layers"] == [
        0
    ]


def test_defaults_come_last(world: World, tmp_path: Path) -> None:
    bare = tmp_path / "v.safetensors"
    save_vector(SafetyVector({0: torch.ones(32)}), bare)
    found = load(**world.flags(vector=bare))
    assert (found.settings.sa_scale, found.settings.sa_positions) == (1.5, "prompt")
    assert found.stages.to_json()["sgds"]["lambda"] == 0.99
    assert found.settings.max_new_tokens == 256


def test_sampling_comes_from_the_models_generation_config(world: World, tmp_path: Path) -> None:
    said = {
        "do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 50, "min_p": None,
        "repetition_penalty": 1.1, "bos_token_id": 1,
    }  # fmt: skip
    base = world.edited(world.base, tmp_path, "generation_config.json", **said)
    found = load(base=base).settings
    assert (found.temperature, found.top_p, found.top_k, found.min_p) == (0.6, 0.9, 50, 0.0)
    given = write_json(
        tmp_path / "p.json", {"minisafe_profile": 1, "base": "base", "temperature": 0.3}
    )
    assert minisafe.load(given).settings.temperature == 0.3
    assert minisafe.load(given).settings.top_p == 0.9
    assert minisafe.load(given, {"temperature": 0.0}).settings.temperature == 0.0


@pytest.mark.parametrize(
    ("said", "temperature", "top_k"),
    [
        ({}, 0.0, 0),
        ({"temperature": 0.6, "top_k": 50}, 0.0, 0),
        ({"do_sample": False, "temperature": 0.6}, 0.0, 0),
        ({"do_sample": True}, 1.0, 0),
        ({"do_sample": True, "temperature": None, "top_k": 3}, 1.0, 3),
    ],
    ids=str,
)
def test_a_model_that_does_not_sample(
    world: World, tmp_path: Path, said: dict[str, Any], temperature: float, top_k: int
) -> None:
    base = world.edited(world.base, tmp_path, "generation_config.json", **said)
    found = load(base=base).settings
    assert (found.temperature, found.top_k) == (temperature, top_k)


@pytest.mark.parametrize(
    ("generation", "config", "eos"),
    [
        ({"eos_token_id": [4, 5]}, {"eos_token_id": 3}, {4, 5}),
        ({"eos_token_id": 0}, {"eos_token_id": 3}, {0}),
        ({"eos_token_id": None}, {"eos_token_id": [3, 7]}, {3, 7}),
        ({}, {"eos_token_id": 3}, {3}),
        ({}, {"eos_token_id": None}, set()),
    ],
    ids=str,
)
def test_end_ids(world: World, tmp_path: Path, generation: Any, config: Any, eos: set[int]) -> None:
    base = world.edited(world.base, tmp_path, "config.json", **config)
    write_json(base / "generation_config.json", generation)
    assert load(base=base).eos == eos


@pytest.mark.parametrize(
    "said",
    [
        {"eos_token_id": "</s>"},
        {"eos_token_id": True},
        {"eos_token_id": -1},
        {"eos_token_id": [3, 99_999]},
        {"eos_token_id": [[3]]},
        {"eos_token_id": 2**70},
        {"eos_token_id": 3.0},
        {"do_sample": "yes"},
        {"do_sample": True, "temperature": "hot"},
        {"do_sample": True, "top_p": 7},
        {"do_sample": True, "top_k": -1},
        [1],
        "x",
    ],
    ids=str,
)
def test_a_generation_config_that_cannot_be_read(world: World, tmp_path: Path, said: Any) -> None:
    base = world.copy(world.base, tmp_path)
    write_json(base / "generation_config.json", said)
    with pytest.raises(BadInput, match=r"generation_config.json: "):
        load(base=base)


def test_one_kind_of_expert_replaces_the_profiles_other(profile: Callable[..., Path]) -> None:
    found = minisafe.load(profile(), {"expert_system": "You are careless."})
    assert found.stages.to_json()["sgds"]["expert"] == "system prompt"
    both = profile("both.json", expert_system="You are careless.")
    with pytest.raises(SettingError, match="both an expert and an expert's system prompt"):
        minisafe.load(both)


def test_resolve_takes_the_first_that_has_a_name() -> None:
    found = resolve({"top_k": 3}, {"top_k": 4, "top_p": 0.5}, {"top_p": 0.6, "seed": 7})
    assert (found.top_k, found.top_p, found.seed, found.min_p) == (3, 0.5, 7, 0.0)
    assert resolve() == Settings()
    with pytest.raises(SettingError, match=r"unknown setting 'topk'; known: .*top_k"):
        resolve({"topk": 3})


# ---- profiles ----------------------------------------------------------------------------------


def test_paths_are_relative_to_the_profile(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = load_profile(world.profile)
    assert found.settings["base"] == world.base
    assert load_profile(world.root) == found  # the directory, for the profile.json in it
    assert minisafe.load(world.root).stages.to_json()["safe"] is True


def test_a_profile_survives_being_moved(world: World, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(world.root, tmp_path / "elsewhere"))
    before, after = (minisafe.load(root).generate(["The fox"])[0] for root in (world.root, moved))
    assert before.tokens == after.tokens


def test_save_profile_and_load_it(world: World, tmp_path: Path) -> None:
    settings = {
        "base": world.base, "expert": world.adapter, "vector": world.vector, "sgds_lambda": 0.9,
        "stop": ("a", "b"), "safe": True, "system": "Be kind.", "sa_layer": None, "top_k": 3,
    }  # fmt: skip
    path = tmp_path / "deep" / "profile.json"
    files = files_read(settings)
    save_profile(settings, path, tuple(files))
    found = load_profile(path)
    parts = ("base", "expert", "vector")
    assert found.settings.keys() == settings.keys()
    assert all(found.settings[name] == settings[name] for name in set(settings) - set(parts))
    for name in parts:
        assert Path(found.settings[name]).resolve() == Path(settings[name]).resolve()
        assert not Path(json.loads(path.read_text(encoding="utf-8"))[name]).is_absolute()
    assert set(found.sha256.values()) == set(map(sha256, files))
    assert [each.name for each in path.parent.iterdir()] == ["profile.json"]
    minisafe.load(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '"x"', "[" * 10**5, "\x00"])
def test_profiles_that_are_no_json_object(tmp_path: Path, content: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"p.json: "):
        load_profile(path)


def test_profiles_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "p.json", tmp_path):
        with pytest.raises(ConfigError, match="no such file; expected a safety profile"):
            load_profile(path)


@pytest.mark.parametrize("version", [None, 0, 2, "1", 1.5])
def test_profiles_of_another_version(tmp_path: Path, version: Any) -> None:
    path = write_json(tmp_path / "p.json", {"minisafe_profile": version})
    with pytest.raises(ConfigError, match=f"minisafe_profile is {version!r}; expected 1"):
        load_profile(path)


def test_an_unknown_key(tmp_path: Path) -> None:
    path = write_json(tmp_path / "p.json", {"minisafe_profile": 1, "sgds_lamda": 0.5})
    with pytest.raises(ConfigError, match=r"unknown setting 'sgds_lamda'; known: .*sgds_lambda"):
        load_profile(path)
    write_json(path, {"minisafe_profile": 1, "about": "anything"})
    assert load_profile(path).settings == {}


BAD_VALUES: dict[str, tuple[Any, ...]] = {
    "base": (3, True, []), "expert": ({}, 1.0), "vector": (False,),
    "expert_system": (3, ["x"]), "system": (1,), "safe": (1, "yes", 0),
    "sa_layer": (-1, 1.5, "2", True), "sa_scale": ("1", True, float("nan"), float("inf"), None),
    "sa_positions": ("first", 3, None), "sgds_lambda": (1, 1.0, -0.1, "0.9", True, None),
    "margin": (-1, float("inf"), float("nan"), [0]), "max_new_tokens": (0, -1, 2.5, True, None),
    "temperature": (-1, "hot", True, float("nan"), float("inf"), None, 10**400),
    "top_k": (-1, 2.0, True, "3"), "top_p": (0, 1.5, -1, None), "min_p": (1, -0.1),
    "presence_penalty": ("x", float("inf")), "frequency_penalty": (float("nan"),),
    "seed": (-1, 1.5, True), "stop": ("x", [1], [""], ["a", None], {}), "threads": (0, -1, 1.5),
    "dtype": ("float64", "fp32", 32), "device": (0, None), "allow_padding": (1, "no", None),
    "rule": ("best", 3, None), "alpha": (-1, float("nan"), float("inf"), "1", True),
    "first_tokens": (0, -1, 1.5, True), "common_tokens": (0, 2.5, None), "gate": (1, "on"),
    "anti_expert": (3, True), "anti_system": (1,), "weights": ("int4", 8, None),
    "speculate": (-1, 1.5, True), "cache_dtype": ("float8", "fp8", 8, None),
    "compile": (1, "yes", None), "expert_kind": ("good", 1), "reverse_sa": (1, None),
    "template_options": ([], "a=1", None, 3), "anchor": (3, True), "anchor_system": (1,),
    "anchor_shots": ([], 2), "read_alone": (1, "yes", None), "sa_streams": ("expert", 0),
    "probe": (3, True), "compiled": (3, True), "max_seconds": (0, -1, "2", True, float("nan")),
    "context": (0, "9", 1.5, True), "memory_limit": (0, "much", 1.5, True),
}  # fmt: skip
BAD = [(name, value) for name, values in BAD_VALUES.items() for value in values]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda each: str(each)[:20])
def test_values_that_cannot_be(tmp_path: Path, name: str, value: Any) -> None:
    path = write_json(tmp_path / "p.json", {"minisafe_profile": 1, name: value})
    word = "lambda" if name == "sgds_lambda" else name
    strict_json = not isinstance(value, float) or math.isfinite(value)  # has no NaN, no infinity
    kind, says = (SettingError, f"{word} is .*; expected") if strict_json else (BadInput, "finite")
    with pytest.raises(kind, match=says):
        resolve(load_profile(path).settings)
    with pytest.raises(SettingError, match=f"{word} is .*; expected"):
        resolve({name: value})


def test_every_setting_has_a_bad_value_here() -> None:
    assert set(BAD_VALUES) | {"edit"} == set(SETTINGS)


@pytest.mark.parametrize("value", [["a"], "a", 3, {"base/config.json": 3}])
def test_checksums_that_are_none(world: World, tmp_path: Path, value: Any) -> None:
    root = Path(shutil.copytree(world.root, tmp_path / "w"))
    data = json.loads((root / "profile.json").read_text(encoding="utf-8"))
    write_json(root / "profile.json", data | {"sha256": value})
    with pytest.raises(BadInput, match=r"profile.json|SHA-256"):
        load_profile(root)


def test_a_file_that_would_be_read_is_vouched_for(world: World, tmp_path: Path) -> None:
    root = Path(shutil.copytree(world.root, tmp_path / "w"))
    (root / "base" / "notes.txt").write_text("never read")
    vouch(root)
    load_profile(root)
    (root / "base" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: would be read, but"):
        load_profile(root)


def test_files_that_the_profile_vouches_for(world: World, tmp_path: Path) -> None:
    root = Path(shutil.copytree(world.root, tmp_path / "w"))
    weights = root / "base" / "model.safetensors"
    vouch(root)
    assert minisafe.load(root).stages.to_json()["safe"]
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model.safetensors: not the file .*SHA-256"):
        minisafe.load(root)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"no such file, but profile.json names it"):
        minisafe.load(root)


def test_the_shipped_profile_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a checkout beside the package, in an installed wheel inside it."""
    for home in (tmp_path / "minisafe" / "weights" / "tiny", tmp_path / "weights" / "tiny"):
        module = tmp_path / "minisafe" / "session" / "named.py"
        monkeypatch.setattr("minisafe.session.named.__file__", str(module))
        with pytest.raises(ConfigError, match=r"no shipped profile .*--profile.*--base"):
            default_profile()
        home.mkdir(parents=True)
        write_json(home / "profile.json", {})
        assert default_profile() == home / "profile.json"
        (home / "profile.json").unlink()


def test_nothing_to_load(tmp_path: Path) -> None:
    path = write_json(tmp_path / "p.json", {"minisafe_profile": 1, "seed": 3})
    with pytest.raises(SettingError, match="no base model; give one with --base"):
        minisafe.load(path)


# ---- never half safe ---------------------------------------------------------------------------

CHOICES = {
    "safe": (None, True, False),
    "vector": (False, True),
    "expert": ("none", "adapter", "checkpoint", "system", "both"),
    "sa_scale": (0.0, 2.0),
    "sgds_lambda": (0.0, 0.9),
}


@pytest.mark.parametrize(
    "choice", list(itertools.product(*CHOICES.values())), ids=lambda c: "-".join(map(str, c))
)
def test_all_of_it_or_an_error(world: World, choice: tuple[Any, ...]) -> None:
    """Every combination of parts: what was asked for acts in full, or nothing is answered."""
    safe, has_vector, kind, scale, lam = choice
    flags: dict[str, Any] = {"base": world.base, "sa_scale": scale, "sgds_lambda": lam}
    if safe is not None:
        flags["safe"] = safe
    if has_vector:
        flags["vector"] = world.vector
    if kind in ("adapter", "checkpoint", "both"):
        flags["expert"] = world.expert if kind == "checkpoint" else world.adapter
    if kind in ("system", "both"):
        flags["expert_system"] = "You are careless."
    asked = safe or (safe is None and (has_vector or kind != "none"))
    lacking = (scale != 0 and not has_vector) or (lam > 0 and kind == "none")
    if asked and kind == "both":
        with pytest.raises(SettingError, match="both"):
            load(**flags)
    elif asked and (lacking or (scale == 0 and lam == 0)):
        with pytest.raises(SafetyError, match="safe decoding"):
            load(**flags)
    else:
        applied = load(**flags).stages.to_json()
        assert applied["safe"] is bool(asked)
        assert (applied["sa"] is not None) == bool(asked and scale)
        assert (applied["sgds"] is not None) == bool(asked and lam)
        names = {"adapter": "adapter", "checkpoint": "checkpoint", "system": "system prompt"}
        if applied["sgds"]:
            assert applied["sgds"]["expert"] == names[kind]


def test_what_to_do_is_said() -> None:
    with pytest.raises(SafetyError, match=r"needs a safety vector.*--vector, or --sa-scale 0"):
        decide_safe(Settings(safe=True, expert=Path("e")))
    with pytest.raises(SafetyError, match=r"needs an unsafe expert.*--expert.*--sgds-lambda 0"):
        decide_safe(Settings(vector=Path("v")))
    with pytest.raises(SafetyError, match=r"does nothing; use --no-safe"):
        decide_safe(Settings(safe=True, sa_scale=0, sgds_lambda=0))
    with pytest.raises(SafetyError, match=r"sa_scale 0 and alpha 0 does nothing"):
        decide_safe(Settings(safe=True, sa_scale=0, rule="rose", alpha=0))
    assert decide_safe(Settings()) is False


@pytest.mark.parametrize(
    ("rule", "kind"),
    [("safedecoding", "a safe"), ("dexperts", "a safe"), ("self-cd", "an unsafe"),
     ("rose", "an unsafe")],
)  # fmt: skip
def test_the_kind_of_expert_that_a_rule_lacks_is_said(rule: str, kind: str) -> None:
    with pytest.raises(SafetyError, match=rf"needs {kind} expert;.*--alpha 0 for amplification"):
        decide_safe(Settings(vector=Path("v"), rule=rule))


def spoil_vector(world: World, tmp_path: Path, **metadata: Any) -> Path:
    made = safety_vector(base_model(), tokenizer("llama3"))
    save_vector(
        SafetyVector(made.layers, {**made.metadata, **metadata}), tmp_path / "v.safetensors"
    )
    return tmp_path / "v.safetensors"


def test_a_vector_of_another_size(world: World, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.ones((1, 31), np.float32))
    with pytest.raises(VectorError, match=r"31 values.* has 32"):
        load(**world.flags(vector=tmp_path / "v.npy", sa_layer=1))


def test_a_vector_of_another_tokenizer_or_depth(world: World, tmp_path: Path) -> None:
    with pytest.raises(VectorError, match="made with another tokenizer"):
        load(**world.flags(vector=spoil_vector(world, tmp_path, tokenizer="0" * 16)))
    with pytest.raises(VectorError, match="made for a model of 4 layers; this one has 3"):
        load(**world.flags(vector=spoil_vector(world, tmp_path, n_layers=4)))


def test_a_layer_that_is_not_there(world: World, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="sa_layer is 3; the model has layers 0 to 2"):
        load(**world.flags(sa_layer=3))
    np.save(tmp_path / "v.npy", np.ones((1, 32), np.float32))
    with pytest.raises(VectorError, match="states no layer"):
        load(**world.flags(vector=tmp_path / "v.npy"))
    assert load(**world.flags(vector=tmp_path / "v.npy", sa_layer=2)).stages.to_json()["sa"][
        "layers"
    ] == [2]


def test_a_vector_of_other_weights_is_a_warning(world: World, tmp_path: Path) -> None:
    """Edited models of the same shape are a use."""
    vector = spoil_vector(world, tmp_path, weights="f" * 16)
    with pytest.warns(SafetyWarning, match="made with other weights of the same shape"):
        assert load(**world.flags(vector=vector)).stages.to_json()["safe"]
    load(**world.flags(vector=vector, safe=False))  # not used, so nothing to warn of
    load(**world.flags(vector=vector, sa_scale=0.0))


def test_parts_that_are_not_there(world: World, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    for part, error in (("base", ConfigError), ("expert", ConfigError), ("vector", VectorError)):
        with pytest.raises(error, match="nowhere"):
            load(**world.flags(**{part: nowhere}))


def test_an_adapter_for_another_shape(world: World, tmp_path: Path) -> None:
    save_adapter(random_adapter(base_model(hidden=24)), tmp_path / "a", rank=3, alpha=1.5)
    with pytest.raises(AdapterError, match="delta of"):
        load(**world.flags(expert=tmp_path / "a"))


def test_an_experts_vocabulary(world: World, tmp_path: Path) -> None:
    other = world.copy(world.expert, tmp_path)
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    (other / "tokenizer.json").write_text(text.replace("<|eot|>", "<|EOT|>"), encoding="utf-8")
    for padding in (False, True):
        with pytest.raises(TokenizerError, match=r"vocabularies .* differ in 2 tokens"):
            load(**world.flags(expert=other, allow_padding=padding))
    (other / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match="no such file"):
        load(**world.flags(expert=other))


@pytest.mark.parametrize("padded", ["base", "expert"])
def test_padding_at_the_vocabularys_end(world: World, tmp_path: Path, padded: str) -> None:
    """Accepted only when asked; guidance then acts on the ids that both have."""
    size = tokenizer("llama3").size
    large = tmp_path / "large"
    save_model(base_model(vocab_size=size + 7), large)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(world.base / name, large)
    parts = {"base": large, "expert": world.expert}
    if padded == "expert":
        parts = {"base": world.base, "expert": large}
    flags = {**parts, "sa_scale": 0.0}
    sizes = (size + 7, size) if padded == "base" else (size, size + 7)
    with pytest.raises(
        SafetyError, match=f"base embeds {sizes[0]} ids and the expert {sizes[1]}.*--allow-padding"
    ):
        load(**flags)
    session = load(**flags, allow_padding=True)
    assert session.n_ids == size
    result = session.generate(["The fox"])[0]
    assert len(result.tokens) == 256
    assert max(result.tokens) < size


def test_an_expert_that_lacks_some_of_the_tokens(world: World, tmp_path: Path) -> None:
    """Ids in use are not padding, for any setting."""
    size = tokenizer("llama3").size
    small = tmp_path / "small"
    save_model(base_model(vocab_size=size - 3), small)
    write_tokenizer(small, "byte_level", {})
    with pytest.raises(TokenizerError, match=f"{size} ids, the model embeds {size - 3}"):
        load(**world.flags(expert=small, allow_padding=True))


def test_a_tokenizer_that_is_too_large(world: World, tmp_path: Path) -> None:
    base = tmp_path / "base"
    save_model(base_model(vocab_size=50), base)
    write_tokenizer(base, "byte_level", {})
    with pytest.raises(TokenizerError, match="the model embeds 50"):
        load(base=base)


# ---- dtype, device, edits ----------------------------------------------------------------------


def test_dtypes(world: World) -> None:
    for name in ("float32", "bfloat16", "float16"):
        for expert in (world.adapter, world.expert):
            session = load(base=world.base, expert=expert, sa_scale=0.0, dtype=name)
            assert {str(s.model.dtype) for s in session.streams} == {f"torch.{name}"}
    assert str(load(base=world.base).model.dtype) == "torch.float32"


def test_an_expert_takes_the_bases_dtype(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any dtype of the file; small models decode in float32 if no dtype is set."""
    save_model(random_model(base_model(seed=1).config, 1, torch.bfloat16), tmp_path / "half")
    write_tokenizer(tmp_path / "half", "byte_level", {})
    assert load(base=tmp_path / "half").model.dtype == torch.float32
    session = load(base=tmp_path / "half", expert=world.expert, sa_scale=0.0)
    assert {stream.model.dtype for stream in session.streams} == {torch.float32}
    with monkeypatch.context() as patch:
        patch.setattr("minisafe.session.dtype.SMALL_MODEL", 0)
        session = load(base=tmp_path / "half", expert=world.expert, sa_scale=0.0)
        assert {stream.model.dtype for stream in session.streams} == {torch.bfloat16}
    session = load(base=world.base, expert=tmp_path / "half", sa_scale=0.0)
    assert session.streams[1].model.dtype == torch.float32


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "", "cpu:banana", "cuda:99", "meta"])
def test_devices_that_are_not_there(world: World, device: str) -> None:
    with pytest.raises(SettingError, match=r"device .* cannot be used .*; try cpu"):
        load(base=world.base, device=device)


def test_an_edit_is_merged_into_the_base(world: World) -> None:
    """As an edited model is shipped: the weights have changed, and that is said of the vector."""
    plain, edited = load(base=world.base), load(base=world.base, edit=world.adapter)
    expected = merged(plain.model, load_adapter(world.adapter, plain.model))
    changed = 0
    for name, tensor in edited.model.tensors().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=0)
        changed += name.endswith("q_proj.weight")
    assert changed == 3
    assert not torch.equal(
        edited.model.layers[0].self_attn.q_proj.weight,
        plain.model.layers[0].self_attn.q_proj.weight,
    )
    with pytest.warns(SafetyWarning, match="other weights"):
        load(**world.flags(edit=world.adapter))


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "a/" * 3000], ids=["null", "name", "long"])
@pytest.mark.parametrize("key", ["base", "expert", "vector", "sha256"])
def test_paths_that_no_system_can_have(profile: Callable[..., Path], key: str, path: str) -> None:
    value: Any = {path: "0" * 64} if key == "sha256" else path
    with pytest.raises(SettingError, match=rf"p.json: {key} names .*; expected a path of names"):
        load_profile(profile("p.json", **{key: value}))
