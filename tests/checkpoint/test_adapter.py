"""PEFT directories: what they mean, and what in them is refused."""

from __future__ import annotations

import json
import pickle
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from minisafe.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    load_adapter,
    save_adapter,
    save_model,
)
from minisafe.errors import AdapterError, BadInput, CheckpointError, ConfigError
from minisafe.lora import AdaptedRows, LoraAdapter, LoraDelta
from minisafe.model import Llama
from tests.support.spoil import Bomb, raised, refuses, restore
from tests.support.tiny import (
    models,
    random_adapter,
    random_ids,
    random_model,
    tensors_of,
    tiny_config,
)

# ---- adapters that load ------------------------------------------------------------------------


@pytest.fixture
def adapter_directory(base: Llama, tmp_path: Path) -> Path:
    """A good adapter of rank 3 and alpha 6 on q, v, o and down, to be spoilt."""
    save_adapter(random_adapter(base, rank=3), tmp_path / "adapter", rank=3, alpha=6)
    return tmp_path / "adapter"


def respell_adapter(directory: Path, **changes: Any) -> None:
    path = directory / ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def restore_adapter(directory: Path, changes: dict[str, Tensor | None]) -> None:
    restore(directory, changes, ADAPTER_WEIGHTS)


def key(module: str, part: str) -> str:
    return f"base_model.model.{module}.lora_{part}.weight"


@given(models, st.integers(1, 5), st.floats(0.5, 32))
def test_an_adapter_that_is_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, model: Llama, rank: int, alpha: float
) -> None:
    directory = tmp_path_factory.mktemp("adapter")
    made = random_adapter(model, rank=rank)
    save_adapter(made, directory, rank, alpha, base="somewhere/base")
    adapter = load_adapter(directory, model)
    assert adapter.name == directory.name
    assert adapter.deltas.keys() == made.deltas.keys()
    for name, delta in adapter.deltas.items():
        assert torch.equal(delta.a, made.deltas[name].a)
        assert torch.equal(delta.b, made.deltas[name].b)
        assert delta.scaling == alpha / rank
    config = json.loads((directory / ADAPTER_CONFIG).read_text())
    assert config["base_model_name_or_path"] == "somewhere/base"
    assert sorted(path.name for path in directory.iterdir()) == [ADAPTER_CONFIG, ADAPTER_WEIGHTS]


def test_an_adapter_takes_the_models_dtype(adapter_directory: Path, tiny_model) -> None:
    model = tiny_model(dtype=torch.bfloat16)
    adapter = load_adapter(adapter_directory, model)
    assert {delta.a.dtype for delta in adapter.deltas.values()} == {torch.bfloat16}
    model(random_ids(model, 1, 4), adapters=(AdaptedRows(adapter, slice(0, 1)),))


PROJECTIONS = [
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
]


def of_layers(*parts: str, layers: tuple[int, ...] = (0, 1)) -> set[str]:
    return {f"model.layers.{layer}.{part}" for layer in layers for part in parts}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"target_modules": ["q_proj", "up_proj"]}, of_layers("self_attn.q_proj", "mlp.up_proj")),
        ({"target_modules": ["mlp.up_proj"]}, of_layers("mlp.up_proj")),
        ({"target_modules": ["model.layers.1.mlp.up_proj"]}, {"model.layers.1.mlp.up_proj"}),
        ({"target_modules": ["lm_head", "k_proj"]}, of_layers("self_attn.k_proj") | {"lm_head"}),
        ({"target_modules": "all-linear"}, of_layers(*PROJECTIONS)),
        ({"target_modules": r".*\.1\..*_proj"}, of_layers(*PROJECTIONS, layers=(1,))),
        ({"target_modules": r".*\.(q|v)_proj"}, of_layers("self_attn.q_proj", "self_attn.v_proj")),
        (
            {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
            of_layers("self_attn.q_proj", "self_attn.v_proj", layers=(1,)),
        ),
        (
            {"target_modules": ["q_proj"], "layers_to_transform": 0},
            of_layers("self_attn.q_proj", layers=(0,)),
        ),
        (
            {"target_modules": "all-linear", "exclude_modules": ["up_proj", "down_proj"]},
            of_layers(*PROJECTIONS[:5]),
        ),
        (
            {"target_modules": ["q_proj"], "exclude_modules": r".*\.0\..*"},
            of_layers("self_attn.q_proj", layers=(1,)),
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_target_modules(
    base: Llama, tmp_path: Path, changes: dict[str, Any], expected: set[str]
) -> None:
    """By list, by regular expression or all-linear: what the file holds must be just that."""
    every = random_adapter(
        base, rank=2, endings=[p.split(".")[-1] for p in [*PROJECTIONS, "lm_head"]]
    )
    chosen = {name: delta for name, delta in every.deltas.items() if name in expected}
    assert chosen.keys() == expected
    save_adapter(LoraAdapter(chosen), tmp_path, rank=2, alpha=4)
    respell_adapter(tmp_path, **changes)
    assert load_adapter(tmp_path, base).deltas.keys() == expected
    save_adapter(every, tmp_path, rank=2, alpha=4)
    respell_adapter(tmp_path, **changes)
    refuses(AdapterError, lambda: load_adapter(tmp_path, base), "does not target")


def test_scaling(base: Llama, tmp_path: Path) -> None:
    """alpha / r, or alpha / sqrt(r) with rsLoRA. The first pattern that fits the end of a name,
    from a dot on, decides."""
    deltas = {}
    ranks = {"q_proj": 4, "v_proj": 9, "0.mlp.down_proj": 2, "1.mlp.down_proj": 4}
    for ending, rank in ranks.items():
        made = random_adapter(base, rank=rank, endings=(ending.split(".")[-1],)).deltas
        deltas |= {name: delta for name, delta in made.items() if name.endswith(ending)}
    save_adapter(LoraAdapter(deltas), tmp_path, rank=4, alpha=6)
    patterns: dict[str, Any] = {
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"proj": 99, "_proj": 99, "v_proj": 9, r"layers\.0\.mlp\.down_proj": 2},
        "alpha_pattern": {
            "layers": 99,
            "q_pro": 99,
            "v_proj": 18,
            r"layers.1.self_attn.q_proj": 2,
            "q_proj": 10,
        },
    }

    def scalings() -> list[float]:
        adapter = load_adapter(tmp_path, base)
        names = ("0.self_attn.q", "1.self_attn.q", "0.self_attn.v", "0.mlp.down", "1.mlp.down")
        return [adapter.deltas[f"model.layers.{name}_proj"].scaling for name in names]

    respell_adapter(tmp_path, **patterns)
    assert scalings() == [10 / 4, 2 / 4, 18 / 9, 6 / 2, 6 / 4]
    respell_adapter(tmp_path, use_rslora=True)
    assert scalings() == pytest.approx([10 / 2, 2 / 2, 18 / 3, 6 / 2**0.5, 6 / 2])


def test_names_that_only_look_alike_are_not_targets(base: Llama, tmp_path: Path) -> None:
    """A list holds whole names between dots: "proj" ends all of them and names none."""
    save_adapter(random_adapter(base), tmp_path, rank=3, alpha=3)
    for target in (["proj"], ["_proj"], ["v_pro"], ["self_attn"], "q_proj", ".*q_pro"):
        respell_adapter(tmp_path, target_modules=target)
        refuses(AdapterError, lambda: load_adapter(tmp_path, base), "match nothing")


HEAD_COPY = "base_model.model.lm_head.base_layer.weight"


def test_copies_of_the_bases_own_tensors_are_passed_over_where_they_are_equal(
    tiny_model, tmp_path: Path
) -> None:
    """As peft saves them with a delta of the head, in any dtype of the base."""
    model = tiny_model()
    made = random_adapter(model, rank=3, endings=("lm_head", "q_proj"))
    save_adapter(made, tmp_path, rank=3, alpha=6)
    head, embed = (
        tensors_of(model)["lm_head.weight"],
        tensors_of(model)["model.embed_tokens.weight"],
    )
    embed_copy = "base_model.model.model.embed_tokens.weight"
    restore_adapter(tmp_path, {HEAD_COPY: head.clone(), embed_copy: embed.clone()})
    assert load_adapter(tmp_path, model).deltas.keys() == made.deltas.keys()
    changed = head.clone()
    changed[3, 4] += 0.01
    restore_adapter(tmp_path, {HEAD_COPY: changed})
    words = (
        HEAD_COPY,
        "differ from this base's",
        "merge_and_unload",
        "save_embedding_layers=False",
    )
    refuses(AdapterError, lambda: load_adapter(tmp_path, model), *words)


@pytest.mark.live
def test_an_adapter_of_the_head_as_peft_saves_it(tiny_model, tmp_path: Path) -> None:
    transformers, peft = (pytest.importorskip(name) for name in ("transformers", "peft"))
    model = tiny_model()
    save_model(model, tmp_path / "base")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    settings = peft.LoraConfig(target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    theirs = peft.get_peft_model(theirs, settings)
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        theirs.save_pretrained(tmp_path / "adapter")
    adapter = load_adapter(tmp_path / "adapter", model)
    ids = random_ids(model, 1, 8)
    with torch.no_grad():
        ours = model(ids, adapters=(AdaptedRows(adapter, slice(0, 1)),))
        torch.testing.assert_close(ours, theirs(ids).logits, atol=1e-4, rtol=1e-4)


def test_an_untrained_adapter_is_zero(tiny_model, tmp_path: Path) -> None:
    """As peft starts one, B = 0; one module that is not makes the whole one act."""
    model = tiny_model()
    made = random_adapter(model)
    still = {
        name: LoraDelta(each.a, each.b * 0, each.scaling) for name, each in made.deltas.items()
    }
    save_adapter(LoraAdapter(still), tmp_path, rank=3, alpha=6)
    assert load_adapter(tmp_path, model).is_zero
    assert not made.is_zero
    assert not LoraAdapter(still | dict([next(iter(made.deltas.items()))])).is_zero
    a, b = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert LoraAdapter({"x": LoraDelta(a, b, 2.0)}).is_zero  # though neither factor is


@pytest.mark.parametrize(
    "target",
    [
        "([a-z0-9_.]+)+!", "(.*)*(.*)*(.*)*!", "(a|a?)+$", "(?:(?:(?:.{0,99}){99}){99}){99}!",
        "(?=(.+)+!)" * 50, "(.|.)*" * 150,
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["target_modules", "exclude_modules", "rank_pattern"])
def test_no_pattern_takes_long(adapter_directory: Path, base: Llama, key: str, target: str) -> None:
    respell_adapter(adapter_directory, **{key: {target: 5} if key == "rank_pattern" else target})
    start = time.perf_counter()
    with suppress(AdapterError):
        load_adapter(adapter_directory, base)
    assert time.perf_counter() - start < 5


# ---- adapters that cannot be used --------------------------------------------------------------


def test_no_adapter_there(tmp_path: Path, base: Llama, adapter_directory: Path) -> None:
    refuses(AdapterError, lambda: load_adapter(tmp_path / "gone", base), "no such directory")
    (adapter_directory / ADAPTER_CONFIG).rename(tmp_path / "kept")
    refuses(
        ConfigError, lambda: load_adapter(adapter_directory, base), ADAPTER_CONFIG, "no such file"
    )
    (adapter_directory / ADAPTER_CONFIG).write_text("{")
    refuses(ConfigError, lambda: load_adapter(adapter_directory, base), "not valid JSON")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, ("peft_type", "IA3", "LORA")),
        ({"use_dora": True}, ("use_dora", "DoRA")),
        ({"bias": "all"}, ("bias", "'all'", "none")),
        ({"bias": "lora_only"}, ("bias", "lora_only")),
        ({"lora_bias": True}, ("lora_bias",)),
        ({"modules_to_save": ["lm_head"]}, ("modules_to_save",)),
        ({"fan_in_fan_out": True}, ("fan_in_fan_out",)),
        ({"layer_replication": [[0, 1], [0, 2]]}, ("layer_replication",)),
        ({"trainable_token_indices": [1, 2]}, ("trainable_token_indices",)),
        ({"target_parameters": ["mlp.weight"]}, ("target_parameters",)),
        ({"alora_invocation_tokens": [5, 6]}, ("alora_invocation_tokens", "activated")),
        ({"use_qalora": True}, ("use_qalora",)),
        ({"use_bdlora": {"nblocks": 2}}, ("use_bdlora",)),
        ({"arrow_config": {"top_k": 3}}, ("arrow_config",)),
        ({"kasa_config": {"beta": 1.0}}, ("kasa_config",)),
        ({"megatron_config": {"x": 1}}, ("megatron_config",)),
        ({"init_lora_weights": "pissa"}, ("init_lora_weights", "pissa", "base")),
        ({"init_lora_weights": "pissa_niter_16"}, ("pissa_niter_16",)),
        ({"init_lora_weights": "olora"}, ("olora",)),
        ({"init_lora_weights": "loftq"}, ("loftq",)),
        ({"init_lora_weights": "corda"}, ("corda",)),
        ({"init_lora_weights": "lora_ga"}, ("lora_ga",)),
        ({"some_new_feature": {"on": True}}, ("some_new_feature",)),
        ({"r": 0}, ("r is 0",)),
        ({"r": "3"}, ("r is '3'",)),
        ({"lora_alpha": -1}, ("lora_alpha is -1",)),
        ({"lora_alpha": None}, ("lora_alpha is None",)),
        ({"target_modules": r".*[q_proj"}, (".*[q_proj", "not a regular expression")),
        ({"exclude_modules": r"("}, ("not a regular expression",)),
        ({"target_modules": None}, ("target_modules is None",)),
        ({"target_modules": []}, ("target_modules is []",)),
        ({"target_modules": ["c_attn"]}, ("match nothing", "llama")),
        ({"rank_pattern": {"q_proj": "x"}}, ("rank_pattern",)),
        ({"rank_pattern": {"(": 3}}, ("rank_pattern",)),
        ({"rank_pattern": {"(?i)Q_proj": 3}}, ("rank_pattern", "flags")),
        ({"rank_pattern": {"q" * 3000: 3}}, ("rank_pattern", "3000 characters")),
        ({"rank_pattern": {str(n): 3 for n in range(10_001)}}, ("rank_pattern", "up to 10000")),
        ({"target_modules": "a{99999999999}"}, ("target_modules", "a{99999999999}", "repetition")),
        ({"exclude_modules": r"(q)_\1"}, ("exclude_modules", "groupref")),
        ({"target_modules": "(" * 500 + "q" + ")" * 500}, ("target_modules", "recursion")),
        ({"target_modules": ["q_proj", 1]}, ("target_modules", "expected names")),
        ({"rank_pattern": {"q_proj": 2.5}}, ("rank_pattern", "2.5")),
        ({"rank_pattern": ["q_proj"]}, ("rank_pattern",)),
        ({"alpha_pattern": {"q_proj": None}}, ("alpha_pattern",)),
        ({"layers_to_transform": ["0"]}, ("layers_to_transform",)),
        ({"layers_to_transform": 0.0}, ("layers_to_transform is 0.0",)),
        ({"layers_to_transform": False}, ("layers_to_transform is False",)),
    ],
    ids=str,
)
def test_adapters_that_are_refused_by_name(
    adapter_directory: Path, base: Llama, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    respell_adapter(adapter_directory, **changes)
    refuses(AdapterError, lambda: load_adapter(adapter_directory, base), ADAPTER_CONFIG, *words)


@pytest.mark.parametrize(
    "changes",
    [
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva", "eva_config": {"rho": 1.0}},
        {"init_lora_weights": False},
        {"modules_to_save": None, "layer_replication": None, "use_bdlora": None},
        {"modules_to_save": [], "target_parameters": [], "rank_pattern": {}, "alpha_pattern": {}},
        {"peft_type": "lora", "peft_version": "0.99", "some_new_feature": None},
        {"lora_dropout": 0.1, "inference_mode": False, "task_type": None},
    ],
    ids=str,
)
def test_what_does_not_change_the_output_is_let_pass(
    adapter_directory: Path, base: Llama, changes: dict[str, Any]
) -> None:
    expected = load_adapter(adapter_directory, base)
    respell_adapter(adapter_directory, **changes)
    assert load_adapter(adapter_directory, base).deltas.keys() == expected.deltas.keys()


Q0 = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({key(Q0, "A"): torch.ones(3, 31)}, (Q0, "(3, 31)", "(3, 32)")),
        ({key(Q0, "B"): torch.ones(33, 3)}, (Q0, "(33, 3)", "(32, 3)")),
        ({key(Q0, "A"): torch.ones(2, 32), key(Q0, "B"): torch.ones(32, 2)}, (Q0, "(2, 32)")),
        ({key(Q0, "A"): None}, ("lacks lora_A", Q0)),
        ({key(Q0, "B"): None}, ("lacks lora_B", Q0)),
        ({key(Q0, "A"): None, key(Q0, "B"): None}, ("lacks lora_A", Q0)),
        (
            {key("model.layers.2.mlp.up_proj", "A"): torch.ones(3, 32)},
            ("layers.2", "does not have"),
        ),
        ({key("transformer.h.0.attn.c_attn", "A"): torch.ones(3, 2)}, ("c_attn", "does not have")),
        ({key("model.layers.0.mlp.up_proj", "A"): torch.ones(3, 32)}, ("up_proj", "not target")),
        (
            {f"base_model.model.{Q0}.lora_magnitude_vector": torch.ones(3)},
            ("unexpected", "magnitude"),
        ),
        ({f"base_model.model.{Q0}.lora_B.bias": torch.ones(32)}, ("unexpected", "lora_B.bias")),
        (
            {"base_model.model.lm_head.weight": torch.ones(3)},
            ("lm_head.weight", "differ from this base's"),
        ),
        ({"base_model.model.score.weight": torch.ones(3)}, ("unexpected", "score.weight")),
        ({"model.embed_tokens.lora_embedding_A": torch.ones(3)}, ("unexpected", "embedding_A")),
    ],
    ids=str,
)
def test_adapter_tensors_that_do_not_fit_are_named(
    adapter_directory: Path, base: Llama, changes: dict[str, Tensor | None], words: tuple[str, ...]
) -> None:
    restore_adapter(adapter_directory, changes)
    refuses(AdapterError, lambda: load_adapter(adapter_directory, base), *words)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_adapter_weights_of_another_dtype(
    adapter_directory: Path, base: Llama, dtype: torch.dtype
) -> None:
    restore_adapter(adapter_directory, {key(Q0, "A"): torch.ones(3, 32).to(dtype)})
    refuses(CheckpointError, lambda: load_adapter(adapter_directory, base), Q0, str(dtype)[6:])


def test_adapter_weights_that_are_not_finite(adapter_directory: Path, base: Llama) -> None:
    bad = torch.ones(32, 3)
    bad[4, 1] = float("nan")
    restore_adapter(adapter_directory, {key(Q0, "B"): bad})
    refuses(CheckpointError, lambda: load_adapter(adapter_directory, base), Q0, "1 NaN or infinite")


def test_an_adapter_of_another_shape(adapter_directory: Path, tiny_model) -> None:
    """Made for the base of another width, depth or head count."""
    for other in ({"hidden": 40}, {"intermediate": 50}, {"n_heads": 8}, {"n_layers": 1}):
        model = tiny_model(**other)
        refuses(AdapterError, lambda model=model: load_adapter(adapter_directory, model), "layers.")
    respell_adapter(adapter_directory, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"])
    deeper = tiny_model(n_layers=3)
    refuses(AdapterError, lambda: load_adapter(adapter_directory, deeper), "lacks", "layers.2")


def test_an_adapter_stored_as_a_pickle(
    adapter_directory: Path, base: Llama, tmp_path: Path
) -> None:
    (adapter_directory / ADAPTER_WEIGHTS).unlink()
    refuses(AdapterError, lambda: load_adapter(adapter_directory, base), ADAPTER_WEIGHTS)
    mark = tmp_path / "it-ran"
    (adapter_directory / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    refuses(AdapterError, lambda: load_adapter(adapter_directory, base), "pickle", "safetensors")
    (adapter_directory / "adapter_model.bin").rename(adapter_directory / ADAPTER_WEIGHTS)
    refuses(CheckpointError, lambda: load_adapter(adapter_directory, base), ADAPTER_WEIGHTS)
    assert not mark.exists()


def test_a_truncated_adapter(adapter_directory: Path, base: Llama) -> None:
    path = adapter_directory / ADAPTER_WEIGHTS
    path.write_bytes(path.read_bytes()[:-5])
    refuses(CheckpointError, lambda: load_adapter(adapter_directory, base), ADAPTER_WEIGHTS)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 9), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(st.sampled_from(("q_proj", "(", "x")), inner, max_size=2),
    ),
    max_leaves=4,
)


@settings(max_examples=150)
@given(
    st.sampled_from(
        (
            *("alpha_pattern", "bias", "exclude_modules", "fan_in_fan_out", "init_lora_weights"),
            *("layers_pattern", "layers_to_transform", "lora_alpha", "modules_to_save", "other"),
            *("peft_type", "r", "rank_pattern", "target_modules", "use_rslora"),
        )
    ),
    json_values,
)
@example("rank_pattern", {"q_proj": float("inf")})
@example("alpha_pattern", {"q_proj": float("nan")})
@example("lora_alpha", float("nan"))
@example("r", float("inf"))
@example("target_modules", [1])
@example("layers_to_transform", 0)
def test_any_json_value_gives_an_adapter_or_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: object
) -> None:
    directory = tmp_path_factory.mktemp("adapter")
    base = random_model(tiny_config())
    save_adapter(random_adapter(base), directory, rank=3, alpha=6)
    respell_adapter(directory, **{name: value})
    refused = raised(lambda: load_adapter(directory, base))
    if refused is not None:
        assert isinstance(refused, BadInput)
        assert "\n" not in str(refused)
        return
    applied = (AdaptedRows(load_adapter(directory, base), slice(0, 1)),)
    assert base(torch.arange(3)[None], adapters=applied).isfinite().all()
