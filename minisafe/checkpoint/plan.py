"""Compares the config with the headers of the files before anything is built or mapped."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from minisafe.checkpoint.files import DTYPES, short
from minisafe.checkpoint.header import Stated
from minisafe.config import LlamaConfig
from minisafe.errors import CheckpointError, OutOfMemory

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ROTARY = "rotary_emb.inv_freq"  # old exports keep this derived buffer
QUANTISED = {  # suffixes of tensors that quantising programs write
    "GPTQ or AWQ": (".qweight", ".qzeros", ".g_idx"),
    "MLX": (".scales", ".biases"),
    "bitsandbytes": (".absmax", ".quant_map", ".SCB"),
}
NAMED = 4  # most missing tensors to name in a message


def tensor_shapes(config: LlamaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of a checkpoint, in the order of `Llama.tensors`."""
    hidden, inner = config.hidden, config.intermediate
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    projections = (
        ("self_attn.q_proj", (q, hidden), config.qkv_bias),
        ("self_attn.k_proj", (kv, hidden), config.qkv_bias),
        ("self_attn.v_proj", (kv, hidden), config.qkv_bias),
        ("self_attn.o_proj", (hidden, q), config.o_bias),
        ("mlp.gate_proj", (inner, hidden), config.mlp_bias),
        ("mlp.up_proj", (inner, hidden), config.mlp_bias),
        ("mlp.down_proj", (hidden, inner), config.mlp_bias),
    )
    yield EMBED, (config.vocab_size, hidden)
    for layer in range(config.n_layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        for name, shape, bias in projections:
            yield f"{prefix}.{name}.weight", shape
            if bias:
                yield f"{prefix}.{name}.bias", shape[:1]
            if config.qk_norm and name == "self_attn.o_proj":
                yield f"{prefix}.self_attn.q_norm.weight", (config.head_dim,)
                yield f"{prefix}.self_attn.k_norm.weight", (config.head_dim,)
    yield "model.norm.weight", (hidden,)
    if not config.tied:
        yield HEAD, (config.vocab_size, hidden)


def make_plan(
    config: LlamaConfig,
    stated: Mapping[str, Stated],
    directory: Path,
    dtype: torch.dtype | None,
    device: str,
) -> dict[str, str]:
    """The name in the model of every tensor to read, by its name in the files.

    A tied head is read once: stored as `lm_head.weight` alone it is the embedding, beside the
    embedding it is left out, as are old exports' rotary buffers.

    Raises `CheckpointError` for tensors that are missing, misshapen, unexpected or of an
    unsupported dtype, and `OutOfMemory` if a conversion needs more memory than there is.
    """
    wanted = dict(tensor_shapes(config))
    if config.tied and HEAD in stated and EMBED not in stated:
        wanted[HEAD] = wanted.pop(EMBED)
    for name, tensor in stated.items():
        if name in wanted:
            check_stated(tensor, wanted[name], config, stated)
        elif not (config.tied and name == HEAD) and not name.endswith(ROTARY):
            raise CheckpointError(
                f"{tensor.file}: unexpected tensor {name}{quantised(stated)}; the config describes "
                f"a {config.family} model of {config.n_layers} layers"
                f"{' with tied heads' if config.tied else ''}"
            )
    missing = sorted(wanted.keys() - stated.keys())
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise CheckpointError(
            f"{directory}: missing tensors: {', '.join(missing[:NAMED])}{more}{quantised(stated)}"
        )
    check_room(stated, dtype, device)
    return {name: EMBED if config.tied and name == HEAD else name for name in wanted}


def check_stated(
    tensor: Stated, shape: tuple[int, ...], config: LlamaConfig, stated: Mapping[str, Stated]
) -> None:
    """Raise `CheckpointError` for a shape or dtype that cannot be loaded."""
    if tensor.torch_dtype not in DTYPES:
        raise CheckpointError(
            f"{tensor.file}: {tensor.name} is {tensor.torch_dtype}{quantised(stated)}; expected "
            f"one of {', '.join(DTYPES)}"
        )
    if tensor.shape != shape:
        needs = config.n_parameters
        holds = sum(each.size for each in stated.values())
        sizes = "" if needs < 2 * holds else f" (of {needs:,} parameters; the files hold {holds:,})"
        raise CheckpointError(
            f"{tensor.file}: {tensor.name} has shape {tensor.shape}; the config needs "
            f"{shape}{sizes}"
        )


def quantised(stated: Mapping[str, Stated]) -> str:
    """A note on the program that quantised these tensors, if their names show it."""
    for program, endings in QUANTISED.items():
        if any(name.endswith(endings) for name in stated):
            return (
                f" (quantised, apparently by {program}, but the config does not say so; use the "
                "unquantised checkpoint in float32, bfloat16 or float16)"
            )
    return ""


def check_room(stated: Mapping[str, Stated], dtype: torch.dtype | None, device: str) -> None:
    """Raise `OutOfMemory` if converted weights take more than the machine's whole memory.

    On the CPU, weights that already have the requested dtype stay in the mapped file.
    """
    if device != "cpu" or dtype is None:
        return
    name = short(dtype)
    needs = sum(each.size for each in stated.values() if each.torch_dtype != name) * dtype.itemsize
    room = memory()
    if room is not None and needs > room:
        total = sum(each.n_bytes for each in stated.values())
        raise OutOfMemory(
            f"the weights take {needs / 2**30:.1f} GiB as {name}, and the machine has "
            f"{room / 2**30:.1f} GiB; keep the checkpoint's own dtype ({total / 2**30:.1f} GiB, "
            "mapped from the files), or use a smaller model"
        )


def memory() -> int | None:
    """Bytes of main memory, or the limit of the process's control group; None if unknown."""
    try:
        room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return room
    return min(room, int(limit)) if limit.isdecimal() else room
