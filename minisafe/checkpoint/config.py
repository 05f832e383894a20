"""A Hugging Face `config.json` to a `LlamaConfig` and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisafe.checkpoint.keys import Keys
from minisafe.checkpoint.rope import read_rope, rope_json
from minisafe.config import DTYPES, LlamaConfig, Yarn
from minisafe.errors import ConfigError
from minisafe.files import read_json
from minisafe.files.display import harmless, shown
from minisafe.files.foreign import no_config, no_model


@dataclass(frozen=True)
class Family:
    """What Hugging Face's class of a family takes for keys that are missing.

    n_kv_heads: None means one per query head. head_dim: None means hidden size / query heads.
    biases: which of the keys `attention_bias` and `mlp_bias` the class reads.
    """

    architecture: str
    max_positions: int
    n_kv_heads: int | None
    head_dim: int | None = None
    biases: tuple[str, ...] = ()
    rope_theta: float = 10000.0
    tied: bool = False
    norm_eps: float = 1e-6


OWN_METHOD = "minisafe"  # the `quant_method` of weights that minisafe has rounded
BIASES = ("attention_bias", "mlp_bias")
FAMILIES = {
    "llama": Family("LlamaForCausalLM", 2048, None, biases=BIASES),
    "mistral": Family("MistralForCausalLM", 131072, 8),
    "qwen2": Family("Qwen2ForCausalLM", 32768, 32),
    "qwen3": Family("Qwen3ForCausalLM", 32768, 32, 128, biases=BIASES[:1]),
    "granite": Family("GraniteForCausalLM", 2048, None, biases=BIASES),
    "smollm3": Family(
        "SmolLM3ForCausalLM", 32768, 4, biases=BIASES, rope_theta=2000000.0, tied=True
    ),
    "phi3": Family("Phi3ForCausalLM", 4096, None, norm_eps=1e-5),
}
FACTORS = (  # Granite's
    "embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"
)  # fmt: skip


def load_config(directory: str | Path) -> LlamaConfig:
    """Read `directory/config.json`; raises `ConfigError`."""
    directory = Path(directory)
    if not directory.is_dir():
        raise ConfigError(no_model(directory))
    path = directory / "config.json"
    hint = "" if path.is_file() else no_config(directory)
    return read_config(read_json(path, hint), str(path))


def read_config(data: dict[str, Any], source: str = "config.json") -> LlamaConfig:
    """Read the parsed `config.json` of a supported family; raises `ConfigError`."""
    return _Reader(data, source).config()


def config_json(config: LlamaConfig) -> dict[str, Any]:
    """A `config.json` that minisafe and transformers read back as this config."""
    data: dict[str, Any] = {
        "architectures": [FAMILIES[config.family].architecture],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope_json(config.rope_scaling),
        "tie_word_embeddings": config.tied,
        "torch_dtype": config.dtype,
    }
    biases = {"attention_bias": config.o_bias, "mlp_bias": config.mlp_bias}
    data |= {key: biases[key] for key in FAMILIES[config.family].biases}
    if config.family == "granite":
        data |= {key: getattr(config, key) for key in FACTORS}
    if config.family in ("smollm3", "phi3"):
        data["pad_token_id"] = None  # the class's own id is an error in a small vocabulary
    if config.family in ("mistral", "phi3"):
        data["sliding_window"] = config.windows[0]
    if config.family == "smollm3":
        layers = range(config.n_layers)
        data["no_rope_layers"] = [int(layer not in config.unrotated) for layer in layers]
    if config.family in ("qwen2", "qwen3", "smollm3"):
        windows = [window for window in config.windows if window is not None]
        kinds = ["full_attention" if w is None else "sliding_attention" for w in config.windows]
        data |= {"use_sliding_window": bool(windows), "layer_types": kinds}
        data["sliding_window"] = windows[0] if windows else None
    return data


class _Reader(Keys):
    """Checks one `config.json`; missing keys take the defaults of the family's class."""

    def config(self) -> LlamaConfig:
        family = self.family()
        absent = FAMILIES[family]
        self.refuse_what_is_not_run()
        hidden, n_heads = self.integer("hidden_size"), self.integer("num_attention_heads")
        n_layers = self.integer("num_hidden_layers")
        null = "num_key_value_heads" in self.data  # an explicit null means one per query head
        default = n_heads if null or absent.n_kv_heads is None else absent.n_kv_heads
        n_kv_heads = self.integer("num_key_value_heads", default)
        if n_heads % n_kv_heads:
            raise self.fail(
                f"num_attention_heads {n_heads} is not a multiple of num_key_value_heads "
                f"{n_kv_heads}"
            )
        max_positions = self.integer("max_position_embeddings", absent.max_positions)
        rope_theta, rope_scaling = read_rope(self, max_positions, absent.rope_theta)
        if family == "phi3" and rope_scaling is not None:
            raise self.fail("phi3 with RoPE scaling is not supported; use a model without it")
        if isinstance(rope_scaling, Yarn):
            max_positions = max(max_positions, rope_scaling.max_positions)
        bias, mlp_bias = (key in absent.biases and self.flag(key) for key in BIASES)
        unrotated = self.unrotated(n_layers) if family == "smollm3" else ()
        factors = FACTORS if family == "granite" else ()
        return LlamaConfig(
            family=family,
            vocab_size=self.integer("vocab_size"),
            hidden=hidden,
            intermediate=self.integer("intermediate_size"),
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=self.head_dim(absent.head_dim, hidden, n_heads),
            norm_eps=self.number("rms_norm_eps", absent.norm_eps),
            max_positions=max_positions,
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            tied=self.flag("tie_word_embeddings", absent.tied),
            qkv_bias=bias or family == "qwen2",
            o_bias=bias,
            mlp_bias=mlp_bias,
            windows=self.windows(family, n_layers, unrotated),
            qk_norm=family == "qwen3",
            unrotated=unrotated,
            dtype=self.dtype(),
            **{key: self.number(key, 1.0) for key in factors},
        )

    def family(self) -> str:
        family = self.data.get("model_type")
        if not isinstance(family, str) or family not in FAMILIES:
            raise self.fail(
                f"model_type is {shown(family)}; minisafe runs the families {', '.join(FAMILIES)}"
            )
        return family

    def head_dim(self, absent: int | None, hidden: int, n_heads: int) -> int:
        """The size of a head; `absent` is what the family takes if the config does not say."""
        if self.data.get("head_dim") is None and absent is None and hidden % n_heads:
            raise self.fail(
                f"hidden_size {hidden} is not a multiple of num_attention_heads {n_heads}"
            )
        found = self.integer("head_dim", hidden // n_heads if absent is None else absent)
        if found % 2:
            raise self.fail(f"head_dim is {found}; expected an even number")
        return found

    def refuse_what_is_not_run(self) -> None:
        for key in ("quantization_config", "quantization"):  # the second is MLX's
            method = self.data.get(key)
            if method is not None:
                method = method.get("quant_method", "") if isinstance(method, dict) else method
                if method == OWN_METHOD:  # `checkpoint.rounded` reads it
                    continue
                raise self.fail(
                    f"{key} ({harmless(str(method), 60)}) is not run as it is; for gptq, awq and "
                    "compressed-tensors make a directory that is, with `minisafe convert`; else "
                    "use the unquantised checkpoint"
                )
        activation = self.data.get("hidden_act", "silu")
        if activation not in ("silu", "swish"):
            raise self.fail(f"hidden_act is {shown(activation)}; minisafe runs silu only")
        if self.data.get("partial_rotary_factor", 1.0) != 1.0:
            raise self.fail("partial_rotary_factor is not supported; expected 1.0")

    def dtype(self) -> str | None:
        dtype = self.data.get("dtype", self.data.get("torch_dtype"))
        if dtype is not None and dtype not in DTYPES:
            raise self.fail(f"dtype is {shown(dtype)}; minisafe runs {', '.join(DTYPES)}")
        return dtype

    def unrotated(self, n_layers: int) -> tuple[int, ...]:
        """The layers that do not rotate; in `no_rope_layers`, 1 means that a layer does."""
        marks = self.data.get("no_rope_layers")
        if marks is None:
            every = self.integer("no_rope_layer_interval", 4)
            return tuple(range(every - 1, n_layers, every))
        listed = isinstance(marks, list) and len(marks) >= n_layers
        if not listed or any(mark not in (0, 1) for mark in marks):
            raise self.fail(f"no_rope_layers must list 0 or 1 for each of {n_layers} layers")
        return tuple(layer for layer in range(n_layers) if not marks[layer])

    def windows(
        self, family: str, n_layers: int, unrotated: tuple[int, ...]
    ) -> tuple[int | None, ...]:
        """The sliding window of each layer in tokens, or None. Llama and Granite have none."""
        if family in ("llama", "granite"):
            return (None,) * n_layers
        # the defaults of the classes if the key is missing
        window = None if family in ("smollm3", "phi3") else 4096
        if "sliding_window" in self.data:
            given = self.data["sliding_window"]
            window = None if given is None else self.integer("sliding_window")
        everywhere = family in ("mistral", "phi3")
        if not everywhere and not self.flag("use_sliding_window"):
            window = None
        if everywhere or window is None:
            return (window,) * n_layers
        kinds = self.data.get("layer_types")
        if kinds is None and family == "smollm3":
            return tuple(window if layer in unrotated else None for layer in range(n_layers))
        if kinds is None:
            first = self.integer("max_window_layers", 28)
            return tuple(window if layer >= first else None for layer in range(n_layers))
        known = ("full_attention", "sliding_attention")
        if (
            not isinstance(kinds, list)
            or len(kinds) != n_layers
            or any(kind not in known for kind in kinds)
        ):
            raise self.fail(f"layer_types must list {n_layers} of {' or '.join(known)}")
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
