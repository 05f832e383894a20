"""`LlamaConfig`: both spellings, each family's defaults, and a named error for all the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minisafe.checkpoint.config import FACTORS, FAMILIES, config_json, load_config, read_config
from minisafe.config import LlamaConfig, RopeScaling, Yarn
from minisafe.errors import ConfigError
from tests.support.tiny import configs, tiny_config

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def raw(family: str = "llama", **changes: Any) -> dict[str, Any]:
    """The least that a config.json says; `changes` of None put an explicit null."""
    data = {
        "model_type": family,
        "vocab_size": 100,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 32 if family in ("qwen2", "qwen3") else 8,
    }
    return data | changes


def read(family: str = "llama", **changes: Any) -> LlamaConfig:
    return read_config(raw(family, **changes))


@given(configs())
def test_what_is_written_reads_back(config: LlamaConfig) -> None:
    text = json.dumps(config_json(config))
    assert read_config(json.loads(text)) == config


def test_the_two_spellings_say_the_same() -> None:
    old = read(
        rope_theta=5e5, rope_scaling=LLAMA3 | {"rope_type": "llama3"}, torch_dtype="bfloat16"
    )
    older = read(rope_theta=5e5, rope_scaling=LLAMA3 | {"type": "llama3"}, torch_dtype="bfloat16")
    new = read(
        rope_parameters=LLAMA3 | {"rope_type": "llama3", "rope_theta": 5e5}, dtype="bfloat16"
    )
    assert old == older == new
    assert new.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192)
    assert new.rope_theta == 5e5
    assert new.dtype == "bfloat16"


def test_yarn_in_both_spellings_and_with_its_defaults() -> None:
    """What Qwen's cards say to add to a config; the context grows, though the key stays."""
    short = {"max_position_embeddings": 32768}
    old = read("qwen2", **short, rope_scaling=YARN)
    new = read("qwen2", **short, rope_parameters=YARN | {"rope_type": "yarn", "rope_theta": 1e4})
    assert old == new
    assert old.rope_scaling == Yarn(4.0, 32768, pytest.approx(1.1386294), 32.0, 1.0, True)
    assert old.max_positions == 131072
    assert read("qwen2", max_position_embeddings=200_000, rope_scaling=YARN).max_positions == 200000
    null = YARN | {"factor": None, "truncate": None, "attention_factor": 1}
    found = read("qwen2", max_position_embeddings=65536, rope_scaling=null)
    assert found.rope_scaling == Yarn(2.0, 32768, 1.0, truncate=False)


def test_plain_rope_in_both_spellings() -> None:
    assert read(rope_theta=1e6, rope_scaling=None).rope_theta == 1e6
    new = read(rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    assert (new.rope_theta, new.rope_scaling) == (1e6, None)
    assert read().rope_theta == 10000.0


@pytest.mark.parametrize(
    ("family", "heads"), [("llama", 8), ("mistral", 8), ("qwen2", 32), ("qwen3", 32)]
)
def test_absent_key_value_heads_take_the_family_default(family: str, heads: int) -> None:
    assert read(family).n_kv_heads == heads


def test_absent_is_not_null() -> None:
    """Absent, Mistral means 8; null, it means one per attention head."""
    many = {"num_attention_heads": 16, "head_dim": 4}
    assert read("mistral", **many).n_kv_heads == 8
    assert read("mistral", **many, num_key_value_heads=None).n_kv_heads == 16
    assert read("llama", **many).n_kv_heads == 16


def test_head_dim_is_obeyed() -> None:
    assert read().head_dim == 8
    assert read(head_dim=None).head_dim == 8
    assert read(head_dim=24).head_dim == 24
    assert read(head_dim=24, hidden_size=63).hidden == 63
    assert read("qwen3", head_dim=24).head_dim == 24


def test_qwen3s_head_is_not_a_share_of_the_hidden_size() -> None:
    """Its class takes 128 if the config does not say, whatever the hidden size is."""
    assert read("qwen2").head_dim == 2
    assert read("qwen3").head_dim == 128
    assert read("qwen3", hidden_size=63).head_dim == 128


def test_queries_and_keys_are_normed_in_qwen3_alone() -> None:
    assert [family for family in FAMILIES if read(family).qk_norm] == ["qwen3"]


def test_layers_of_smollm3_that_do_not_rotate() -> None:
    """Every fourth, or those that the list marks with 0; it may be longer than the model."""
    deep = {"num_hidden_layers": 9}
    assert read("smollm3", **deep).unrotated == (3, 7)
    assert read("smollm3", **deep, no_rope_layer_interval=2).unrotated == (1, 3, 5, 7)
    assert read("smollm3", no_rope_layers=[1, 0, 1]).unrotated == (1,)
    assert read("smollm3", no_rope_layers=[0, 1, 1, 0], no_rope_layer_interval=1).unrotated == (0,)
    assert read("llama", no_rope_layers=[0, 0, 0]).unrotated == ()
    assert [family for family in FAMILIES if read(family, **deep).unrotated] == ["smollm3"]


def test_granites_factors() -> None:
    """Missing, they are 1, that of attention too; other families do not read them."""
    factors = {"embedding_multiplier": 12, "residual_multiplier": 0.22, "logits_scaling": 8.0}
    found = read("granite", **factors)
    assert (found.embedding_multiplier, found.residual_multiplier) == (12.0, 0.22)
    assert (found.attention_multiplier, found.logits_scaling) == (1.0, 8.0)
    assert read("granite", attention_multiplier=0.1).attention_multiplier == 0.1
    assert read("llama", **factors) == read("llama")


def test_biases_by_family() -> None:
    def biases(config: LlamaConfig) -> tuple[bool, bool, bool]:
        return config.qkv_bias, config.o_bias, config.mlp_bias

    every = {"attention_bias": True, "mlp_bias": True}
    assert biases(read("llama")) == (False, False, False)
    assert biases(read("llama", **every)) == (True, True, True)
    assert biases(read("llama", attention_bias=True)) == (True, True, False)
    assert biases(read("llama", mlp_bias=True)) == (False, False, True)
    assert biases(read("mistral", **every)) == (False, False, False)
    assert biases(read("qwen2")) == (True, False, False)
    assert biases(read("qwen2", **every)) == (True, False, False)
    assert biases(read("qwen3")) == (False, False, False)
    assert biases(read("qwen3", **every)) == (True, True, False)
    assert biases(read("smollm3", **every)) == (True, True, True)
    assert biases(read("granite")) == (False, False, False)
    assert biases(read("granite", **every)) == (True, True, True)


def test_windows_by_family() -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    slides = {"use_sliding_window": True, "sliding_window": 5}
    assert read("llama", sliding_window=5).windows == (None,) * 3
    assert read("mistral").windows == (4096,) * 3
    assert read("mistral", sliding_window=None).windows == (None,) * 3
    assert read("mistral", sliding_window=5).windows == (5,) * 3
    assert read("qwen2", sliding_window=5).windows == (None,) * 3
    assert read("qwen2", sliding_window=5, use_sliding_window=False).windows == (None,) * 3
    assert read("qwen2", **slides).windows == (None,) * 3  # from layer 28 on, and there is none
    assert read("qwen2", **slides, max_window_layers=1).windows == (None, 5, 5)
    assert read("qwen2", **slides, max_window_layers=0).windows == (5, 5, 5)
    assert read("qwen2", **slides, layer_types=kinds, max_window_layers=0).windows == (
        None,
        5,
        None,
    )
    assert read("qwen2", use_sliding_window=True, max_window_layers=2).windows == (None, None, 4096)
    assert read("qwen3", sliding_window=5).windows == (None,) * 3
    assert read("phi3").windows == (None,) * 3
    assert read("phi3", sliding_window=5, layer_types=kinds).windows == (5,) * 3
    silent = {"no_rope_layers": [1, 1, 0]}  # without layer_types, these slide
    assert read("smollm3", **slides, **silent).windows == (None, None, 5)
    assert read("smollm3", **slides, **silent, layer_types=kinds).windows == (None, 5, None)
    assert read("smollm3", sliding_window=5, **silent).windows == (None,) * 3
    assert read("smollm3", use_sliding_window=True, **silent).windows == (None,) * 3
    assert read("granite", **slides).windows == (None,) * 3
    assert read("qwen3", **slides, max_window_layers=1).windows == (None, 5, 5)
    assert read("qwen3", **slides, layer_types=kinds).windows == (None, 5, None)


def test_other_defaults() -> None:
    config = read()
    assert (config.norm_eps, config.tied, config.dtype) == (1e-6, False, None)
    assert [family for family in FAMILIES if read(family).norm_eps != 1e-6] == ["phi3"]
    assert [family for family in FAMILIES if read(family).tied] == ["smollm3"]
    assert not read("smollm3", tie_word_embeddings=None).tied
    assert (read("smollm3").rope_theta, read("smollm3", rope_theta=5).rope_theta) == (2e6, 5)
    found = {family: read(family).max_positions for family in FAMILIES}
    assert found == {
        "llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768, "granite": 2048,
        "smollm3": 32768, "phi3": 4096,
    }  # fmt: skip


def test_kv_bytes_per_token() -> None:
    config = tiny_config(n_layers=3, n_kv_heads=2, head_dim=8, dtype="bfloat16")
    assert config.kv_bytes_per_token == 2 * 3 * 2 * 8 * 2
    assert tiny_config(n_layers=1, dtype="float32").kv_bytes_per_token == 2 * 2 * 8 * 4


BAD: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "gpt2"}, "llama, mistral, qwen2, qwen3, granite, smollm3, phi3"),
    ({"model_type": "phi3", "rope_scaling": YARN}, "phi3 with RoPE scaling is not supported"),
    ({"model_type": "phi3", "rope_scaling": {"type": "longrope"}}, "rope_type is 'longrope'"),
    ({"model_type": "phi3", "partial_rotary_factor": 0.75}, "partial_rotary_factor"),
    ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, "must list 0 or 1 for each of 3"),
    ({"model_type": "smollm3", "no_rope_layers": [1, 0, 2]}, "must list 0 or 1 for each of 3"),
    ({"model_type": "smollm3", "no_rope_layer_interval": 0}, "no_rope_layer_interval is 0"),
    ({"model_type": "granite", "logits_scaling": 0}, "logits_scaling is 0; expected a number"),
    ({"model_type": "granite", "residual_multiplier": "1"}, "residual_multiplier is '1'"),
    ({"model_type": None}, "model_type is None"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config (gptq)"),
    ({"quantization_config": {}}, "quantization_config"),
    ({"dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
    ({"torch_dtype": "int8"}, "int8"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn RoPE scaling lacks original_m"),
    ({"rope_scaling": YARN | {"factor": 0.5}}, "factor is 0.5; expected a number, 1 to 10000"),
    ({"rope_scaling": YARN | {"attention_factor": 0}}, "attention_factor is 0"),
    ({"rope_scaling": YARN | {"beta_fast": 2, "beta_slow": 3}}, "beta_fast 2.0 must not be below"),
    ({"rope_scaling": YARN | {"beta_slow": 0}}, "beta_slow is 0"),
    ({"rope_scaling": YARN | {"truncate": 1}}, "truncate is 1; expected true or false"),
    ({"rope_scaling": YARN | {"mscale": 1.0}}, "mscale is not supported"),
    ({"rope_scaling": YARN | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ({"rope_scaling": YARN, "rope_theta": 1}, "rope_theta is 1.0; yarn needs more"),
    (
        {"rope_scaling": YARN | {"factor": 1e4, "original_max_position_embeddings": 2**27}},
        "a context of 1,342,177,280,000 tokens",
    ),
    ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope_type is 'dynamic'"),
    ({"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
    ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks low_freq_factor"),
    (
        {"rope_scaling": LLAMA3 | {"rope_type": "llama3", "high_freq_factor": 1.0}},
        "must exceed low_freq_factor",
    ),
    ({"rope_scaling": LLAMA3 | {"rope_type": "llama3", "factor": 0}}, "factor is 0"),
    (
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        "differ by layer type",
    ),
    ({"rope_theta": -1.0}, "rope_theta is -1.0"),
    ({"rope_theta": float("nan")}, "rope_theta is nan"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    (
        {"num_key_value_heads": 3},
        "num_attention_heads 8 is not a multiple of num_key_value_heads 3",
    ),
    ({"hidden_size": 63}, "hidden_size 63 is not a multiple of num_attention_heads 8"),
    ({"head_dim": 7}, "head_dim is 7"),
    ({"vocab_size": 0}, "vocab_size is 0"),
    ({"vocab_size": "100"}, "vocab_size is '100'"),
    ({"num_hidden_layers": True}, "num_hidden_layers is True"),
    ({"intermediate_size": 96.5}, "intermediate_size is 96.5"),
    ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
    ({"max_position_embeddings": -1}, "max_position_embeddings is -1"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'; expected true or false"),
    ({"attention_bias": 1}, "attention_bias is 1"),
    ({"vocab_size": 1e30}, "vocab_size is 1e+30"),
    ({"vocab_size": 2**62}, "expected a whole number, 1 to 4,194,304"),
    ({"vocab_size": 10**5000}, "vocab_size is int"),
    (
        {"num_hidden_layers": 20_000},
        "num_hidden_layers is 20000; expected a whole number, 1 to 512",
    ),
    ({"num_hidden_layers": 1e30}, "num_hidden_layers is 1e+30"),
    ({"head_dim": 2**40}, "head_dim is 1099511627776"),
    ({"hidden_size": 2**60}, "hidden_size is"),
    ({"intermediate_size": 2**60}, "intermediate_size is"),
    ({"num_attention_heads": 2**20, "head_dim": 8}, "num_attention_heads is 1048576"),
    ({"max_position_embeddings": 10**18}, "max_position_embeddings is"),
    ({"rope_theta": 1e-30}, "rope_theta is 1e-30; expected a number, 1 to 1e+12"),
    ({"rope_theta": 1e20}, "rope_theta is 1e+20"),
    ({"rms_norm_eps": 1e20}, "rms_norm_eps is 1e+20; expected a number, 1e-12 to 0.1"),
    ({"rms_norm_eps": 1e-40}, "rms_norm_eps is 1e-40"),
    ({"rope_scaling": LLAMA3 | {"rope_type": "llama3", "factor": 1e-30}}, "factor is 1e-30"),
    (
        {"rope_scaling": LLAMA3 | {"rope_type": "llama3", "original_max_position_embeddings": 1.5}},
        "original_max_position_embeddings is 1.5",
    ),
    ({"quantization": {"group_size": 64, "bits": 4}}, "quantization"),
    ({"model_type": "x" * 10_000}, "model_type is 'xxx"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message for _, message in BAD])
def test_what_is_not_run_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_config(raw() | changes, "somewhere/config.json")
    text = str(raised.value)
    assert message in text
    assert text.startswith("somewhere/config.json: ")
    assert "\n" not in text
    assert len(text) < 300
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_attention_heads"])
def test_a_key_without_a_default_must_be_there(key: str) -> None:
    data = raw()
    del data[key]
    with pytest.raises(ConfigError, match=f"{key} is None"):
        read_config(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": ["full_attention"]},
        {"layer_types": ["chunked_attention"] * 3},
        {"layer_types": "full_attention"},
        {"sliding_window": 0},
        {"sliding_window": 2.5},
        {"max_window_layers": -1},
    ],
)
def test_bad_windows_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"layer_types|sliding_window|max_window_layers"):
        read("qwen2", **{"use_sliding_window": True, "sliding_window": 5} | changes)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 9), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(("rope_type", "x")), inner)
    ),
    max_leaves=4,
)
KEYS = sorted(
    set(raw("qwen2"))
    | set(config_json(tiny_config()))
    | {"rope_parameters", "dtype", "layer_types", "max_window_layers", "sliding_window"}
    | {"use_sliding_window", "partial_rotary_factor", "quantization_config", *FACTORS}
    | {"no_rope_layers", "no_rope_layer_interval"}
)


@settings(max_examples=150)
@given(st.sampled_from(list(FAMILIES)), st.sampled_from(KEYS), json_values)
@example("qwen2", "max_window_layers", None)
@example("qwen2", "max_window_layers", "many")
@example("qwen2", "layer_types", [{}, {}, {}])
@example("smollm3", "no_rope_layers", [{}, [], None])
@example("llama", "rope_parameters", {"rope_type": {}})
@example("llama", "rms_norm_eps", float("inf"))
def test_any_json_value_gives_a_config_or_a_config_error(
    family: str, key: str, value: object
) -> None:
    slides = {"use_sliding_window": True, "sliding_window": 5}
    try:
        config = read_config(raw(family, **slides) | {key: value})
    except ConfigError:
        return
    assert config.n_heads % config.n_kv_heads == 0
    assert len(config.windows) == config.n_layers


@pytest.mark.parametrize(
    "changes",
    [
        # the largest dense models that were published, and about 10^12 parameters
        {"vocab_size": 128256, "hidden_size": 16384, "intermediate_size": 53248,
         "num_hidden_layers": 126, "num_attention_heads": 128, "rope_theta": 5e5},
        {"vocab_size": 262144, "hidden_size": 25600, "intermediate_size": 102400,
         "num_hidden_layers": 120, "num_attention_heads": 200},
        {"max_position_embeddings": 10_485_760, "rope_theta": 3.58e9, "rms_norm_eps": 1e-3},
    ],
    ids=["405B", "1T", "long"],
)  # fmt: skip
def test_models_that_exist_are_within_the_ranges(changes: dict[str, Any]) -> None:
    read(**changes)


def test_directories(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such directory"):
        load_config(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        load_config(tmp_path)
    path = tmp_path / "config.json"
    for text, message in (
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[1]", "expected a JSON object, got list"),
        ("[" * 100_000, "nested too deep"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message) as raised:
            load_config(tmp_path)
        assert "\n" not in str(raised.value)
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(ConfigError, match="not valid UTF-8"):
        load_config(tmp_path)
    path.write_text(json.dumps(raw()))
    assert load_config(str(tmp_path)) == read()
