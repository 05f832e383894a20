"""The shape of a GGUF file's model: metadata and tensor names to a `LlamaConfig`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minisafe.checkpoint.config import read_config
from minisafe.checkpoint.plan import tensor_shapes
from minisafe.config import LlamaConfig, RopeScaling
from minisafe.convert.container import Container, is_gguf, read_container
from minisafe.convert.names import EMBED, HEAD, MLP_BIAS, O_BIAS, Q_BIAS, ROPE, gguf_name
from minisafe.convert.rope import find_scaling
from minisafe.convert.values import check_inside, kind_of, whole
from minisafe.errors import CheckpointError, ConfigError
from minisafe.files.display import shown

ARCHITECTURES = ("llama", "qwen2", "qwen3")
CONTROL_VECTOR = "controlvector"
# keys of `read_config`, by what follows the architecture's name in GGUF
KEYS = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "context_length": "max_position_embeddings",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
HEAD_SIZES = ("attention.key_length", "attention.value_length", "rope.dimension_count")
SCALING = "rope.scaling."
# keys that are read, or that change nothing with these values
HARMLESS: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "use_parallel_residual": (False,),
    "rope.scale_linear": (1.0,),
    "rope.scaling.type": ("none",),
}
# keys that change what is computed, in ways that minisafe does not run
CHANGING = (
    "logit_scale", "residual_scale", "embedding_scale", "attention.scale", "attention.clamp_kqv",
    "attention.max_alibi_bias", "attention.sliding_window", "attn_logit_softcapping",
    "final_logit_softcapping", "attention.output_scale", "rope.dimension_sections",
)  # fmt: skip
READ = (
    *KEYS, *HEAD_SIZES, "attention.head_count_kv", "rope.freq_base", "vocab_size",
    "tensor_data_layout",
)  # fmt: skip
PARTS = "split.count"
NAMED = 4  # most tensors to name in a message


def holds_model(path: Path) -> bool:
    """Whether a file is GGUF of something other than a control vector."""
    if not is_gguf(path):
        return False
    try:
        return read_container(path).architecture not in ("", CONTROL_VECTOR)
    except CheckpointError:  # the reader of vectors says what is wrong
        return False


def check_kind(container: Container) -> None:
    """Raise unless the file is one whole language model of a supported architecture."""
    path, found = container.path, container.architecture
    if found == CONTROL_VECTOR:
        raise CheckpointError(
            f"{path}: a control vector, not a model; give the file to write instead of --out"
        )
    purpose = container.metadata.get("general.type", "model")
    if purpose != "model":
        raise CheckpointError(f"{path}: holds GGUF of the type {shown(purpose)}; expected a model")
    if found not in ARCHITECTURES:
        raise ConfigError(
            f"{path}: the architecture is {shown(found)}; minisafe converts "
            f"{', '.join(ARCHITECTURES)}"
        )
    parts = container.metadata.get(PARTS, 1)
    if parts not in (0, 1):
        raise CheckpointError(
            f"{path}: one of {shown(parts)} parts; join them first, with llama.cpp's "
            "`llama-gguf-split --merge`"
        )


def read_shape(container: Container) -> LlamaConfig:
    """The config of the model, with its tensors checked against it.

    Raises `ConfigError` for numbers that are missing, out of range or not supported, and
    `CheckpointError` for tensors that are missing, unexpected, misshapen or outside the file.
    """
    refuse_what_is_not_run(container)
    config = read_config(config_data(container), str(container.path))
    check_tensors(container, config)
    return replace(config, rope_scaling=scaling(container, config))


def refuse_what_is_not_run(container: Container) -> None:
    """Raise `ConfigError` for keys that change what a model computes, and that have no place in a
    config."""
    for key, value in own_keys(container).items():
        strange = key in HARMLESS and value not in HARMLESS[key]
        if strange or (key in CHANGING and value not in (0, 1, None)):
            raise ConfigError(
                f"{container.path}: {container.architecture}.{key} is {shown(value)}, which "
                "minisafe does not run"
            )


def own_keys(container: Container) -> dict[str, Any]:
    """The metadata of the architecture, by key without its name."""
    prefix = container.architecture + "."
    return {
        key.removeprefix(prefix): value
        for key, value in container.metadata.items()
        if key.startswith(prefix)
    }


def unread_keys(container: Container) -> list[str]:
    """Keys of the architecture that have no place in a config, in full."""
    known = {*READ, *HARMLESS, *CHANGING}
    return [
        f"{container.architecture}.{key}"
        for key in own_keys(container)
        if key not in known and not key.startswith(SCALING)
    ]


def config_data(container: Container) -> dict[str, Any]:
    """A `config.json` for this file, not yet checked."""
    keys, tensors = own_keys(container), container.tensors
    missing = [key for key in KEYS if key not in keys]
    if missing:
        raise ConfigError(
            f"{container.path}: no {container.architecture}.{missing[0]} in the metadata; is this "
            "a whole model?"
        )
    if EMBED not in tensors or len(tensors[EMBED].shape) != 2:
        raise CheckpointError(f"{container.path}: no {EMBED} of two dimensions; is it a model?")
    data = {ours: shortest(keys[theirs]) for theirs, ours in KEYS.items()}
    heads = data["num_attention_heads"]
    return data | {
        "model_type": container.architecture,
        "vocab_size": tensors[EMBED].shape[0],
        "num_key_value_heads": keys.get("attention.head_count_kv", heads),
        "head_dim": head_size(container, data["hidden_size"], heads),
        "rope_theta": shortest(keys.get("rope.freq_base", 10000.0)),
        "tie_word_embeddings": HEAD not in tensors,
        "attention_bias": Q_BIAS in tensors or O_BIAS in tensors,
        "mlp_bias": MLP_BIAS in tensors,
        "use_sliding_window": False,
    }


def head_size(container: Container, hidden: Any, heads: Any) -> Any:
    """The size of a head: as stated, else an equal share of the hidden size, or None if there is
    none. Raises `ConfigError` if the file states two, or rotates a part of each head."""
    keys = own_keys(container)
    stated = {key: keys[key] for key in HEAD_SIZES if key in keys}
    if len(set(map(str, stated.values()))) > 1:
        said = ", ".join(f"{key} {shown(value)}" for key, value in stated.items())
        raise ConfigError(f"{container.path}: {said}; minisafe runs heads of one size, all rotated")
    whole_numbers = all(type(each) is int and each > 0 for each in (hidden, heads))
    share = hidden // heads if whole_numbers and hidden % heads == 0 else None
    found = next(iter(stated.values()), share)
    only_rotated = set(stated) == {"rope.dimension_count"}
    if only_rotated and type(found) is int and share is not None and 0 < found != share:
        raise ConfigError(
            f"{container.path}: {found} of {share} values of each head are rotated; "
            "minisafe runs heads that are rotated whole"
        )
    return found


def shortest(value: Any) -> Any:
    """A float32 of the metadata as the shortest number that is the same float32: 1e-05, not
    9.999999747378752e-06, which is what the original config says. Others stay as they are."""
    if not isinstance(value, float) or not np.isfinite(value):
        return value
    return float(str(np.float32(value))) if float(np.float32(value)) == value else value


def check_tensors(container: Container, config: LlamaConfig) -> None:
    """Raise `CheckpointError` unless the file holds exactly the tensors of the config."""
    path, wanted = container.path, {}
    for name, shape in tensor_shapes(config):
        wanted[gguf_name(name)] = shape
    missing = [name for name in wanted if name not in container.tensors]
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise CheckpointError(f"{path}: missing tensors: {', '.join(missing[:NAMED])}{more}")
    for name, tensor in container.tensors.items():
        if name not in wanted and name != ROPE:
            raise CheckpointError(
                f"{path}: unexpected tensor {shown(name)}; the metadata describes a "
                f"{config.family} model of {config.n_layers} layers"
            )
        if name != ROPE and tensor.shape != wanted[name]:
            raise CheckpointError(
                f"{path}: {name} has shape {tensor.shape}; the metadata needs {wanted[name]}"
            )
        check_inside(tensor, kind_of(tensor, container), container)


def scaling(container: Container, config: LlamaConfig) -> RopeScaling | None:
    """The RoPE scaling that `rope_freqs.weight` stands for, or None without it."""
    tensor = container.tensors.get(ROPE)
    if tensor is None:
        return None
    try:
        if tensor.shape != (config.head_dim // 2,):
            raise ValueError
        return find_scaling(whole(container, tensor), config)
    except ValueError:
        raise ConfigError(
            f"{container.path}: {ROPE} is not the scaling of a Llama 3 model, which is the only "
            "one that minisafe runs"
        ) from None
