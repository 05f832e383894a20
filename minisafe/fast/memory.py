"""How many bytes of memory decoding takes at its peak, from shapes alone. Pure.

What it counts: weights as they are stored to run, adapters, caches, what one forward makes, and
what kernels keep once they have run. Not the libraries as they are imported, the interpreter and
the tokenizer. `bench/limits.py --part plan` holds it against measured peaks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from minisafe.cache_dtype import bytes_per_token, stored_dtype
from minisafe.config import LlamaConfig
from minisafe.fast.deltas import FUSED_RANK
from minisafe.fast.int8 import MIN_DIGITS
from minisafe.fast.kernels import SMALL, shapes_of
from minisafe.lockstep import FEW_COLUMNS

# code and buffers that torch and oneDNN load with their first products, measured (docs/log.md);
# weights that are stored another way leave holes in the heap besides
KERNELS, HOLES = 32 << 20, 16 << 20
CHUNK = 256  # tokens of a forward, as in `Lockstep`
JOINED = {  # by a linear map, the product that it is part of
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv"), "o_proj": "o_proj",
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up"), "down_proj": "down_proj",
}  # fmt: skip
Shapes = Mapping[str, tuple[int, ...]]  # of an adapter's tensors


@dataclass(frozen=True)
class Reader:
    """A stream: its name; the config of its model, if it is not the base's; its adapter's shapes,
    if it has one."""

    name: str
    config: LlamaConfig | None = None
    adapter: Shapes | None = None


@dataclass(frozen=True)
class Memory:
    """Bytes, by what they are for. kernels: what these keep after they first ran. loading: what is
    held beyond weights and adapters while they are read; it is given back before there are
    caches. alone: what parts of a message take that are read together."""

    weights: int
    others: Mapping[str, int]
    caches: Mapping[str, int]
    workspace: int
    kernels: int
    loading: int
    alone: int = 0

    @property
    def total(self) -> int:
        """At the peak."""
        running = sum(self.caches.values()) + self.workspace + self.kernels + self.alone
        return self.weights + sum(self.others.values()) + max(running, self.loading)


def planned(
    config: LlamaConfig,
    dtype: torch.dtype,
    weights: str,
    others: Sequence[Reader] = (),
    context: int = 2048,
    rows: int = 1,
    cache_dtype: str = "auto",
    stored: torch.dtype | None = None,
    file: int | None = None,
    parts: tuple[int, int] | None = None,
) -> Memory:
    """The memory of answers of up to `context` tokens, prompt and all, `rows` at a time.

    weights: "plain", "packed", "int8" or "int4". dtype: in which the models decode. stored: the
    dtype of their files; a mapped file of that dtype is converted part by part if it is another
    one. file: the size of the base's file if its weights are stored as they run ("int8" or "int4").
    parts: of a message, how many are read together beside the answers, and their tokens, padding
    and all; None if messages are not read alone.
    """
    models = [config, *(other.config for other in others if other.config is not None)]
    context = min(context, *(each.max_positions for each in models))
    streams = {"base": config} | {other.name: other.config or config for other in others}
    shared = 1 + sum(other.config is None for other in others)  # streams in the base's forward
    makes = [
        workspace(each, dtype, rows * (shared if each is config else 1), context, cache_dtype)
        for each in models
    ]
    loading = [
        loading_bytes(each, dtype, weights, stored or dtype)
        for each in (models if file is None else models[1:])
    ]
    return Memory(
        weights=weight_bytes(config, dtype, weights) if file is None else file,
        others={each.name: reader_bytes(each, config, dtype, weights) for each in others},
        caches={
            name: rows * context * bytes_per_token(each, dtype, cache_dtype)
            for name, each in streams.items()
        },
        workspace=max(makes),
        kernels=KERNELS + (0 if weights == "plain" else HOLES),
        loading=max(loading, default=0),
        alone=0 if parts is None else sum(
            parts[1] * bytes_per_token(each, dtype, cache_dtype)
            + parts[0] * each.vocab_size * (dtype.itemsize + 4 * 4)  # log-probabilities, roots
            for each in streams.values()
        ),
    )  # fmt: skip


def reader_bytes(reader: Reader, base: LlamaConfig, dtype: torch.dtype, weights: str) -> int:
    """What a stream after the base has of its own."""
    model = 0 if reader.config is None else weight_bytes(reader.config, dtype, weights)
    if reader.adapter is None:
        return model
    return model + adapter_bytes(reader.adapter, base, dtype, weights)


# ---- weights -----------------------------------------------------------------------------------


def weight_bytes(config: LlamaConfig, dtype: torch.dtype, weights: str) -> int:
    """A model's weights as they are stored to run."""
    if weights == "plain":
        return config.n_parameters * dtype.itemsize
    matrices = list(matrices_of(config, weights))
    rest = config.n_parameters - sum(rows * columns for rows, columns in matrices)
    found = rest * dtype.itemsize  # norms, biases, and an embedding that is not tied
    for rows, columns in matrices:
        if weights == "int8":
            large = rows * columns >= MIN_DIGITS.get(dtype, 0)
            found += rows * columns + rows * (8 if large else dtype.itemsize)  # scales, zeros
        else:
            wide = 4 if dtype == torch.bfloat16 and rows * columns <= SMALL else 0
            found += rows * columns * (dtype.itemsize + wide)
    return found


def matrices_of(config: LlamaConfig, weights: str) -> Iterator[tuple[int, int]]:
    """The shape of every matrix that is stored another way, layer by layer, and the head's."""
    *layer, (_, head) = shapes_of(config, weights)
    for _ in range(config.n_layers):
        yield from (shape for _, shape in layer)
    if weights == "int8" or not config.tied:  # a tied head is packed only to 8 bits
        yield head


def adapter_bytes(shapes: Shapes, config: LlamaConfig, dtype: torch.dtype, weights: str) -> int:
    """A low-rank adapter on a model, and its joined float32 copy beside joined weights."""
    own = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
    if weights == "plain":
        return own
    ranks: dict[tuple[str, str], int] = {}  # by layer and joined projection
    for name, shape in shapes.items():
        module, is_a, _ = name.partition(".lora_A.")
        prefix, _, part = module.rpartition(".")
        if is_a and part in JOINED:
            ranks[prefix, JOINED[part]] = ranks.get((prefix, JOINED[part]), 0) + shape[0]
    sizes = dict(shapes_of(config, weights))
    fused = (4 * r * sum(sizes[part]) for (_, part), r in ranks.items() if r <= FUSED_RANK)
    return own + sum(fused)


def loading_bytes(
    config: LlamaConfig, dtype: torch.dtype, weights: str, stored: torch.dtype
) -> int:
    """What reading a model holds at most beyond the weights that run: a mapped file is resident
    while its tensors are checked and converted, and a part exists twice for a moment."""
    largest = max(rows * columns for _, (rows, columns) in shapes_of(config, weights))
    file = config.n_parameters * stored.itemsize
    runs = weight_bytes(config, dtype, weights)
    again = 0 if weights == "plain" and stored == dtype else largest * dtype.itemsize
    kernels = 0 if weights == "plain" else KERNELS + HOLES  # raced while the weights are read
    return max(file - runs, 0) + again + kernels


# ---- what a forward makes ----------------------------------------------------------------------


def workspace(
    config: LlamaConfig, dtype: torch.dtype, rows: int, context: int, cache_dtype: str
) -> int:
    """What one forward of a prompt's last chunk makes: the widest layer's activations, its mask,
    its widened keys and values if the cache is smaller, rotary tables and log-probabilities."""
    size, columns = dtype.itemsize, min(context, max(CHUNK // rows, min(CHUNK, FEW_COLUMNS)))
    tokens = rows * columns
    activations = tokens * (3 * config.hidden + 4 * config.intermediate) * size
    group = config.n_heads // config.n_kv_heads
    mask = rows * columns * context * (1 + group) * size if context > columns else 0
    exact = stored_dtype(cache_dtype, dtype) == dtype
    keys = 0 if exact else 2 * rows * context * config.n_kv_heads * config.head_dim * size
    tables = 2 * min(max(2 * context, 256), config.max_positions) * config.head_dim * (size + 4)
    logits = rows * config.vocab_size * (size + 3 * 4)
    return activations + mask + keys + tables + logits
