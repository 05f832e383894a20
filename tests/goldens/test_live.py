"""Comparisons with transformers and peft, if installed, on random models and adapters.

The files under goldens/ were checked once; this checks the installed versions. Tolerances
are those of test_goldens.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from torch import Tensor

from minisafe.checkpoint import load_adapter, load_model, save_adapter, save_model
from minisafe.checkpoint.config import config_json, read_config
from minisafe.config import LlamaConfig, RopeScaling, Yarn
from minisafe.errors import AdapterError
from minisafe.lora import AdaptedRows
from minisafe.model import Llama
from minisafe.rotary import inverse_frequencies, rotary_tables
from tests.support.tiny import (
    GRANITE,
    TOLERANCE,
    YARN,
    configs,
    greedy,
    random_adapter,
    random_ids,
    random_model,
    tensors_of,
    tiny_config,
)

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.live

DTYPE = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"


def peer(directory: Path, dtype: torch.dtype = torch.float32, attention: str = "eager") -> Any:
    """The same directory as transformers reads it."""
    settings = {DTYPE: dtype, "attn_implementation": attention, "local_files_only": True}
    return transformers.AutoModelForCausalLM.from_pretrained(directory, **settings).eval()


@torch.no_grad()
def logits_of(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


@torch.no_grad()
def greedy_of(model: Any, ids: Tensor, n: int) -> Tensor:
    """(B, n) greedy tokens through transformers' own cache."""
    text, fed, past = ids, ids, None
    for _ in range(n):
        out = model(input_ids=fed, past_key_values=past, use_cache=True)
        past, fed = out.past_key_values, out.logits[:, -1:].argmax(-1)
        text = torch.cat((text, fed), dim=1)
    return text[:, ids.shape[1] :]


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


NAMED: dict[str, LlamaConfig] = {
    "llama": tiny_config(n_kv_heads=4),
    "llama3": tiny_config(rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16), tied=True, n_layers=3),
    "biases": tiny_config(head_dim=12, qkv_bias=True, o_bias=True, mlp_bias=True),
    "mistral": tiny_config(family="mistral", windows=(7, 7)),
    "qwen2": tiny_config(family="qwen2", qkv_bias=True, tied=True),
    "qwen2 window": tiny_config(family="qwen2", qkv_bias=True, n_layers=3, windows=(None, 6, 6)),
    "qwen3": tiny_config(family="qwen3", qk_norm=True, head_dim=12, tied=True),
    "qwen3 window": tiny_config(
        family="qwen3", qk_norm=True, qkv_bias=True, o_bias=True, n_layers=3, windows=(6, None, 6)
    ),
    "granite": tiny_config(family="granite", tied=True, **GRANITE[0]),
    "granite biases": tiny_config(
        family="granite", qkv_bias=True, o_bias=True, mlp_bias=True, **GRANITE[1]
    ),
    "smollm3": tiny_config(family="smollm3", tied=True, n_layers=3, unrotated=(1,)),
    "smollm3 window": tiny_config(
        family="smollm3",
        unrotated=(0, 2),
        n_layers=3,
        windows=(6, None, 6),
        o_bias=True,
        qkv_bias=True,
        mlp_bias=True,
    ),
    "phi3": tiny_config(family="phi3", windows=(7, 7)),
    "qwen2 yarn": tiny_config(family="qwen2", qkv_bias=True, head_dim=16, rope_scaling=YARN),
}


@settings(max_examples=20)
@given(configs(), st.integers(0, 3), st.sampled_from(("eager", "sdpa")))
def test_transformers_reads_what_is_saved(
    tmp_path_factory: pytest.TempPathFactory, config: LlamaConfig, seed: int, attention: str
) -> None:
    """Any config that minisafe runs, written by it: the same logits at every position."""
    directory = tmp_path_factory.mktemp("model")
    model = random_model(config, seed)
    save_model(model, directory)
    ids = random_ids(model, 2, 24, seed)
    expected = logits_of(peer(directory, attention=attention), ids)
    torch.testing.assert_close(model(ids), expected, atol=1e-4, rtol=0)


@settings(max_examples=10)
@given(configs(), st.sampled_from((torch.float32, torch.bfloat16)))
def test_what_transformers_saves_is_read(
    tmp_path_factory: pytest.TempPathFactory, config: LlamaConfig, dtype: torch.dtype
) -> None:
    """The config in the spelling of the installed version."""
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    model = random_model(config, 0, dtype)
    save_model(model, first)
    peer(first, dtype).save_pretrained(second)
    loaded = load_model(second)
    assert loaded.dtype == dtype
    ours, theirs = tensors_of(model), tensors_of(loaded)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ids = random_ids(model, 1, 16)
    assert torch.equal(loaded(ids), model(ids))


@pytest.mark.parametrize("name", NAMED)
def test_greedy_tokens(tmp_path: Path, name: str) -> None:
    model = random_model(NAMED[name], 5)
    save_model(model, tmp_path)
    ids = random_ids(model, 2, 24, 5)
    expected = greedy_of(peer(tmp_path), ids, 32)
    assert greedy(model, ids, 32).tolist() == expected.tolist()
    assert greedy(model, ids, 32, cached=False).tolist() == expected.tolist()


@pytest.mark.parametrize("name", NAMED)
def test_bfloat16(tmp_path: Path, name: str) -> None:
    model = random_model(NAMED[name], 5, torch.bfloat16)
    save_model(model, tmp_path)
    ids = random_ids(model, 2, 32, 5)
    exact = load_model(tmp_path, "float32")(ids)
    ours, theirs = model(ids).float(), logits_of(peer(tmp_path, torch.bfloat16), ids).float()
    assert rms(ours - theirs) < 0.04 * exact.std()
    assert (ours - theirs).abs().max() < 0.35 * exact.std()
    assert rms(ours - exact) < 1.25 * rms(theirs - exact)


@pytest.mark.parametrize(
    ("theta", "head_dim", "given"),
    [
        (1e6, 128, {"factor": 4.0, "original_max_position_embeddings": 32768}),  # Qwen's own
        (1e4, 64, {"factor": 1.0, "original_max_position_embeddings": 4096}),
        (5e6, 128, {"factor": 2.5, "original_max_position_embeddings": 65536, "truncate": False}),
        (1e4, 16, {"factor": 8, "original_max_position_embeddings": 16, "attention_factor": 1.5}),
        (100.0, 8, {"factor": 4.0, "original_max_position_embeddings": 2, "beta_fast": 2}),
        (10.0, 8, {"factor": 4.0, "original_max_position_embeddings": 99999, "beta_slow": 9}),
        (1e6, 128, {"factor": None, "original_max_position_embeddings": 64}),
    ],
)
def test_yarn_is_what_transformers_makes_of_the_same_config(
    theta: float, head_dim: int, given: dict[str, Any]
) -> None:
    """Frequencies and the factor of queries and keys, to a millionth."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = given | {"rope_type": "yarn", "rope_theta": theta}
    data = config_json(tiny_config(family="qwen3", qk_norm=True, head_dim=head_dim))
    config = read_config(data | {"rope_parameters": dict(rope)})
    theirs = transformers.Qwen3Config(
        hidden_size=32, num_attention_heads=4, head_dim=head_dim, max_position_embeddings=64,
        rope_parameters=dict(rope),
    )  # fmt: skip
    frequencies, factor = ROPE_INIT_FUNCTIONS["yarn"](theirs, torch.device("cpu"))
    torch.testing.assert_close(inverse_frequencies(config), frequencies, rtol=1e-6, atol=0)
    assert isinstance(config.rope_scaling, Yarn)
    assert config.rope_scaling.attention_factor == pytest.approx(factor, rel=1e-6)
    cos, _ = rotary_tables(config, 2)
    assert cos[0, 0].item() == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize("prompt", ["Once upon a time", "Lily and Tom went to the", "\n", "The"])
def test_the_story_goes_on_as_in_transformers(story: Path, prompt: str) -> None:
    ids = torch.tensor([Tokenizer.from_file(str(story / "tokenizer.json")).encode(prompt).ids])
    model = load_model(story)
    expected = greedy_of(peer(story), ids, 100)
    assert greedy(model, ids, 100).tolist() == expected.tolist()
    text = torch.cat((ids, expected), dim=1)
    torch.testing.assert_close(model(text), logits_of(peer(story), text), atol=1e-4, rtol=0)


# ---- peft --------------------------------------------------------------------------------------

LORA: dict[str, dict[str, Any]] = {
    "list": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]},
    "regular expression": {"r": 2, "lora_alpha": 8, "target_modules": r".*\.1\..*(q|up)_proj"},
    "all-linear": {"r": 3, "lora_alpha": 3, "target_modules": "all-linear"},
    "head": {"r": 2, "lora_alpha": 2, "target_modules": ["lm_head", "o_proj"]},
    "rslora": {"r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": ["gate_proj"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "k_proj", "down_proj"],
        # peft sorts them when it saves, and the first that fits decides
        "rank_pattern": {r"1\.mlp\.down_proj": 1, "down_proj": 3, "k_proj": 2},
        "alpha_pattern": {r"0\.self_attn\.q_proj": 1, "down_proj": 9},
    },
    "patterns with rslora": {
        "r": 4,
        "lora_alpha": 6,
        "use_rslora": True,
        "target_modules": ["q_proj", "k_proj"],
        "rank_pattern": {"k_proj": 2},
        "alpha_pattern": {"q_proj": 5},
    },
    "some layers": {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["v_proj"],
        "layers_to_transform": [1],
    },
    "exclusion": {
        "r": 2,
        "target_modules": "all-linear",
        "exclude_modules": ["up_proj", "lm_head"],
    },
}


@pytest.fixture
def base(tmp_path: Path) -> Llama:
    model = random_model(tiny_config(), 7)
    save_model(model, tmp_path / "base")
    return model


@pytest.mark.parametrize("name", LORA)
def test_an_adapter_made_by_peft(base: Llama, tmp_path: Path, name: str) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **LORA[name])
    theirs = peft.get_peft_model(peer(tmp_path / "base"), config)
    theirs.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    ids = random_ids(base, 2, 16)
    adapter = load_adapter(tmp_path / "adapter", base)
    logits = base(ids, adapters=(AdaptedRows(adapter, slice(0, 2)),))
    expected = logits_of(theirs, ids)
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
    assert (logits - base(ids)).abs().max() > 0.05


@pytest.mark.parametrize(
    ("feature", "word"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_peft_saves_for_refused_features(
    base: Llama, tmp_path: Path, feature: dict[str, Any], word: str
) -> None:
    """peft's own directories, so that a renamed key would be found."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **feature)
    peft.get_peft_model(peer(tmp_path / "base"), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(AdapterError, match=word):
        load_adapter(tmp_path / "adapter", base)


@pytest.mark.parametrize("targets", [["qkv_proj"], ["gate_up_proj", "o_proj"], "all-linear"])
def test_an_adapter_of_fused_projections(tmp_path: Path, targets: list[str] | str) -> None:
    """peft's modules of Phi-3 are fused; ours are apart."""
    peft = pytest.importorskip("peft")
    base = random_model(tiny_config(family="phi3"), 7)
    save_model(base, tmp_path / "base")
    torch.manual_seed(0)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", init_lora_weights=False, r=3, lora_alpha=6, target_modules=targets
    )
    theirs = peft.get_peft_model(peer(tmp_path / "base"), config)
    theirs.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    ids = random_ids(base, 2, 16)
    adapter = load_adapter(tmp_path / "adapter", base)
    logits = base(ids, adapters=(AdaptedRows(adapter, slice(0, 2)),))
    torch.testing.assert_close(logits, logits_of(theirs, ids), atol=TOLERANCE, rtol=0)
    assert (logits - base(ids)).abs().max() > 0.05


def test_peft_reads_an_adapter_that_is_saved(base: Llama, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    adapter = random_adapter(base, rank=4)  # its scaling is 0.5
    save_adapter(adapter, tmp_path / "adapter", rank=4, alpha=2.0, base="base")
    theirs = peft.PeftModel.from_pretrained(peer(tmp_path / "base"), tmp_path / "adapter")
    ids = random_ids(base, 2, 16)
    logits = base(ids, adapters=(AdaptedRows(adapter, slice(0, 2)),))
    torch.testing.assert_close(logits, logits_of(theirs, ids), atol=TOLERANCE, rtol=0)


def test_peft_merges_to_the_same(base: Llama, tmp_path: Path) -> None:
    """merge_and_unload, saved and loaded as a model: what the adapter gives on the base."""
    peft = pytest.importorskip("peft")
    adapter = random_adapter(base, rank=4)
    save_adapter(adapter, tmp_path / "adapter", rank=4, alpha=2.0)
    theirs = peft.PeftModel.from_pretrained(peer(tmp_path / "base"), tmp_path / "adapter")
    theirs.merge_and_unload().save_pretrained(tmp_path / "merged")
    ids = random_ids(base, 2, 16)
    expected = load_model(tmp_path / "merged")(ids)
    logits = base(ids, adapters=(AdaptedRows(adapter, slice(0, 2)),))
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
