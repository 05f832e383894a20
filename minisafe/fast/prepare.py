"""Prepared models: a plain model is converted, in place, into one that decodes faster.

`prepare(model, "auto")` keeps plain weights if nothing else pays. "packed" and "int8" store them in
their kernels' layout, for decoding only. The plain model remains the reference; training,
amplification and editing need it.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

import torch

from minisafe.checkpoint import EMBED, fingerprint_of, sample, samples_of
from minisafe.errors import SettingError
from minisafe.fast.held import HeldLinear
from minisafe.fast.joined import JoinedAttention, JoinedMLP, Make, TurnedAttention
from minisafe.fast.kernels import can_pack, race_left
from minisafe.fast.left import LeftLinear, may_go_left
from minisafe.fast.llama import FastLlama
from minisafe.fast.norm import FastNorm
from minisafe.fast.packed import PackedLinear
from minisafe.fast.quantized import Int4Linear, Int8Embedding, Int8Head, Int8Linear
from minisafe.linear import WEIGHTS, Linear
from minisafe.model import MLP, Attention, Layer, Llama, RMSNorm
from minisafe.rounding import ROUNDED

MAKE: dict[str, Make] = {"packed": PackedLinear, "int8": Int8Linear, "int4": Int4Linear}
# a head in 4 bits would change answers most, and a tied one is also the embedding
MAKE_HEAD: dict[str, Make] = MAKE | {"int4": Int8Linear}


def choose_weights(model: Llama, weights: str) -> str:
    """What `weights` means for a model: "auto" is resolved, others are returned as they are. A
    model that was read with rounded weights keeps them."""
    if weights == "auto" and model.weights in ROUNDED:
        return model.weights
    return automatic(model.dtype, model.device.type) if weights == "auto" else weights


def automatic(dtype: torch.dtype, device: str = "cpu") -> str:
    """What "auto" means: "packed" if it pays, which was measured to be so in bf16 on a CPU with
    instructions for it (docs/log.md); else "plain"."""
    pays = dtype == torch.bfloat16 and device == "cpu" and has_bf16()
    return "packed" if pays and can_pack(dtype) else "plain"


def prepare(model: Llama, weights: str = "auto") -> Llama:
    """Convert `model`, in place and part by part, so that it decodes faster; returns it.

    weights: "packed", "int8" (weight-only; CPU; see `int8`), "plain" (nothing changes) or
        "auto". Each plain part is freed before the next one is made, so weights that nothing else
        references take at most 1.3 times their memory, even while this runs.

    Raises `SettingError` for other `weights`, if the model's dtype, device or state does not fit
    them, or if the model has parts of another family.
    """
    if weights not in WEIGHTS:
        raise SettingError(f"weights is {weights!r}; expected one of {', '.join(WEIGHTS)}")
    kind = choose_weights(model, weights)
    if model.weights not in ("plain", kind):
        raise SettingError(
            f"the weights are {model.weights} already; load the model again for {kind}"
        )
    if weights == "plain" or kind == model.weights != "plain":
        return model
    check_known(model, weights)
    if kind == "int8" and (model.device.type != "cpu" or model.dtype == torch.float16):
        dtype = str(model.dtype).removeprefix("torch.")
        raise SettingError(
            f"int8 weights need a CPU and bfloat16 or float32, not {model.device.type} and {dtype}"
        )
    if kind != "int8" and model.device.type == "cpu":  # packed: a tied head stays plain
        race_left(model.config, model.dtype)
    if kind == "plain":
        quicken(model)
    else:
        store(model, kind)
    return model


def check_known(model: Llama, weights: str) -> None:
    """Raise `SettingError` if a part of the model is of a class from outside this package: a fast
    path would take its place, and lose what it does differently."""
    for part in model.modules():
        own = type(part).__module__.split(".")[0] in ("minisafe", "torch")
        if isinstance(part, (Llama, Layer, Attention, MLP, Linear, RMSNorm)) and not own:
            raise SettingError(
                f"weights is {weights}, which would replace the model's own {type(part).__name__}; "
                "use weights plain"
            )


def quicken(model: Llama) -> None:
    """Put in the faster parts that leave plain weights as they are, in place."""
    if isinstance(model, FastLlama):
        return
    model.__class__ = FastLlama
    for module in model.modules():
        if isinstance(module, Linear):
            module.__class__ = LeftLinear if goes_left(module) else HeldLinear
        elif isinstance(module, Attention):
            module.__class__ = TurnedAttention


def goes_left(part: Linear) -> bool:
    """Whether a plain linear map may be multiplied with its weight on the left."""
    shape = part.weight.shape[0], part.weight.shape[1]
    return part.weight.device.type == "cpu" and may_go_left(shape, part.weight.dtype)


def store(model: Llama, kind: str) -> None:
    """Store all matrices of a plain model as `kind`, "packed" or "int8", in place."""
    # an untied embedding is sampled last, so that its file is not in memory while the head is held
    # twice
    samples = samples_of(model, without=None if model.config.tied else EMBED)
    replace_parts(model, kind)
    if EMBED not in samples:
        samples[EMBED] = sample(model.embed_tokens.weight)
    model.fingerprint = fingerprint_of(samples)
    give_back_memory()


def replace_parts(model: Llama, kind: str) -> None:
    """Replace all parts by those of `kind`, "packed", "int8" or "int4", in place, one after the
    other. The linear maps are plain, or were read rounded."""
    store_head(model, MAKE_HEAD[kind])
    make = MAKE[kind]
    for layer in model.layers:
        assert isinstance(layer, Layer)
        layer.self_attn = JoinedAttention(layer.self_attn, make)
        layer.mlp = JoinedMLP(layer.mlp, make)
        layer.input_layernorm = FastNorm(layer.input_layernorm)
        layer.post_attention_layernorm = FastNorm(layer.post_attention_layernorm)
    model.norm = FastNorm(model.norm)
    model.__class__ = FastLlama
    model.weights = kind


def store_head(model: Llama, make: Make) -> None:
    """Store the head. A tied head is also the embedding, so it keeps its rows: packing a second
    copy would double its memory and save 3 % of a step (docs/log.md)."""
    head, tied = model.lm_head, model.config.tied
    if tied and make is Int8Linear:
        model.lm_head = made = Int8Head((head or tied_head(model),))
        assert made.rows is not None
        model.embed_tokens = Int8Embedding(*made.rows, model.embed_tokens.factor)
    elif head is not None:
        model.lm_head = make((head,))


def tied_head(model: Llama) -> Linear:
    """The head of a model whose head is its embedding."""
    with torch.device("meta"):
        head = Linear(model.config.hidden, model.config.vocab_size, False, "lm_head")
    head.weight = model.embed_tokens.weight
    return head


def give_back_memory() -> None:
    """Return freed memory that glibc's malloc keeps to the system: parts that were joined and
    packed leave holes, 40 MiB at TinyLlama's size (docs/log.md). Without glibc, do nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


@cache
def has_bf16() -> bool:
    """Whether the CPU has instructions that multiply bf16; False if torch cannot tell."""
    asked = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    found = (getattr(torch.cpu, name, None) for name in asked)
    return any(ask is not None and ask() for ask in found)
