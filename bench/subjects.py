"""The subjects of the benches: shapes with random weights, and the shipped model."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import minisafe
from minisafe import Llama, LlamaConfig, Steering
from minisafe.checkpoint import linear_modules
from minisafe.checkpoint.config import read_config
from minisafe.lora import LoraAdapter, LoraDelta

SHIPPED = Path(__file__).resolve().parent.parent / "weights" / "tiny"
RANK = 4  # of the random expert
ANCHOR_RANK = 8  # of the random anchor, as the shipped one
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Subject:
    """Weights with an expert, a vector, and an anchor."""

    model: Llama
    adapter: LoraAdapter
    steering: Steering
    anchor: LoraAdapter


def llama(dtype: str, tied: bool, *sizes: int) -> LlamaConfig:
    """A Llama's config from the sizes below."""
    data = {"model_type": "llama", "torch_dtype": dtype, "tie_word_embeddings": tied}
    return read_config(data | dict(zip(SIZES, sizes, strict=True)))


SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings",
)  # fmt: skip
SHAPES = {
    "tinyllama": llama("bfloat16", False, 32000, 2048, 5632, 22, 32, 4, 2048),  # TinyLlama-1.1B
    "100m": llama("bfloat16", True, 32000, 768, 2048, 12, 12, 4, 2048),
    "135m": llama("bfloat16", True, 49152, 576, 1536, 30, 9, 3, 2048),  # SmolLM2-135M
    "tiny": llama("float32", True, 256, 64, 96, 2, 4, 2, 2048),  # for the smoke test
}
LABELS = (*SHAPES, "shipped")


def tensors_of(model: Llama) -> dict[str, Tensor]:
    """Every tensor by its Hugging Face name."""
    return dict(model.tensors())


def random_model(config: LlamaConfig, generator: torch.Generator) -> Llama:
    """Random weights that keep the size of activations, made without extra memory."""
    with torch.device("meta"):
        model = Llama(config)
    for name, empty in model.tensors().items():
        size = empty.shape
        tensor = torch.ones(size, dtype=getattr(torch, config.dtype or "float32"))
        if "norm" not in name:
            tensor.normal_(0, size[-1] ** -0.5, generator=generator)
        model.put(name, tensor)
    return model.eval()


def subject_of(model: Llama, generator: torch.Generator) -> Subject:
    """A plain model with a random LoRA adapter on all q_proj and v_proj, a random vector that acts
    at every step, and a random anchor on all linear layers."""
    expert = random_adapter(model, generator, RANK, ("q_proj", "v_proj"))
    vector = 0.1 * torch.randn(model.config.hidden, generator=generator)
    steering = Steering({model.config.n_layers // 4: vector}, scale=1.5, positions="last")
    return Subject(
        model, expert, steering, random_adapter(model, generator, ANCHOR_RANK, ("proj",))
    )


def random_adapter(
    model: Llama, generator: torch.Generator, rank: int, endings: tuple[str, ...]
) -> LoraAdapter:
    """A random LoRA adapter on the linear layers whose names end like this."""
    deltas, norm = {}, model.norm.weight
    for name, (n_out, n_in) in linear_modules(model).items():
        if name.endswith(endings):
            a = torch.randn(rank, n_in, generator=generator) * n_in**-0.5
            b = torch.randn(n_out, rank, generator=generator)
            deltas[name] = LoraDelta(a.to(norm), b.to(norm), 0.5)
    return LoraAdapter(deltas)


def random_subject(config: LlamaConfig) -> Subject:
    """Random weights with the parts that `subject_of` adds."""
    generator = torch.Generator().manual_seed(0)
    return subject_of(random_model(config, generator), generator)


def converted(subject: Subject, dtype: torch.dtype) -> Subject:
    """A copy in another dtype."""
    expert, anchor = (
        LoraAdapter({
            name: replace(delta, a=delta.a.to(dtype), b=delta.b.to(dtype))
            for name, delta in adapter.deltas.items()
        })
        for adapter in (subject.adapter, subject.anchor)
    )  # fmt: skip
    model = copy.deepcopy(subject.model).to(dtype)
    return replace(subject, model=model, adapter=expert, anchor=anchor)


def shipped_subject() -> Subject:
    """The shipped model in its file's dtype, with its own LoRA expert, vector and anchor."""
    anchored = {"rule": "anchored", "anchor": SHIPPED / "anchor", "read_alone": False}
    session = minisafe.load(SHIPPED, {"weights": "plain", "dtype": "bfloat16", **anchored})
    adapters = [stream.adapter for stream in session.streams if stream.adapter is not None]
    if len(adapters) != 2 or session.steering is None:
        raise SystemExit(f"{SHIPPED}: expected a LoRA expert, a vector and an anchor")
    steering = replace(session.steering, streams=(0,))  # the anchor's rule steers the anchor
    return Subject(session.model, adapters[0], steering, adapters[1])


def find_subject(label: str) -> Subject | None:
    """The subject of one of `LABELS`; None, with a printed line, without the shipped model."""
    if label in SHAPES:
        return random_subject(SHAPES[label])
    if SHIPPED.is_dir():
        return shipped_subject()
    print(f"{SHIPPED}: no such directory, so the shipped model is skipped")
    return None


def random_prompt(n: int, vocab_size: int, seed: int = 0) -> Ids:
    """`n` random ids, fixed by the seed."""
    draw = random.Random(seed)
    return tuple(draw.randrange(vocab_size) for _ in range(n))


def bytes_per_token(model: Llama, context: float) -> float:
    """Bytes that one token reads after `context` others: all weights (of an untied embedding only
    one row), and the cache."""
    read = [t for name, t in tensors_of(model).items() if model.config.tied or "embed" not in name]
    return sum(t.nbytes for t in read) + context * model.config.kv_bytes_per_token
