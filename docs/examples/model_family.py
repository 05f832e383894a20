"""A model family of your own: Granite, which is Llama with four factors, put in from outside.

    python docs/examples/model_family.py

A family is a reader of its config and the parts that differ. Granite scales the embeddings, the
attention scores, what each half of a layer adds to the residual stream, and the logits; each factor
stands at a part that a subclass replaces, so parameters keep their names. `load_model` takes the
config and the class. For a family that `--base` knows, its keys and defaults go into `read_config`
(minisafe/checkpoint/config.py), new tensors into `tensor_shapes` (minisafe/checkpoint/plan.py).
`--base` knows Granite by now: compare this file with `residual_multiplier` in minisafe/model.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minisafe import Llama, LlamaConfig, load_model
from minisafe.checkpoint.config import read_config
from minisafe.linear import Linear
from minisafe.lora import AdaptedRows
from minisafe.model import Embedding

TINY = Path(__file__).resolve().parents[2] / "weights" / "tiny"


class ScaledLinear(Linear):
    times: float

    def forward(self, x: Tensor, adapters: Sequence[AdaptedRows]) -> Tensor:
        return super().forward(x, adapters) * self.times


class ScaledEmbedding(Embedding):
    times: float

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * self.times


class Granite(Llama):
    def __init__(self, config: LlamaConfig, data: dict[str, Any]):
        super().__init__(config)
        self.divisor = data.get("logits_scaling", 1.0)
        residual = data.get("residual_multiplier", 1.0)
        scores = data.get("attention_multiplier", 1.0) * config.head_dim**0.5
        scale(self.embed_tokens, ScaledEmbedding, data.get("embedding_multiplier", 1.0))
        for layer in self.layers:
            scale(layer.self_attn.q_proj, ScaledLinear, scores)  # in place of 1 / sqrt(head_dim)
            scale(layer.self_attn.o_proj, ScaledLinear, residual)
            scale(layer.mlp.down_proj, ScaledLinear, residual)

    def forward(self, *given: Any, **named: Any) -> Tensor:
        return super().forward(*given, **named) / self.divisor


def scale(part: Any, kind: type, factor: float) -> None:
    """Make a part one whose result is multiplied; its parameters stay as they are."""
    part.__class__, part.times = kind, factor


def load_granite(directory: Path, **factors: float) -> Llama:
    """A model directory of the family; `factors` precede those of its config."""
    data = json.loads((directory / "config.json").read_text(encoding="utf-8")) | factors
    config = read_config(data | {"model_type": "llama"})  # the shape is Llama's
    return load_model(directory, config=config, make=partial(Granite, data=data))


if __name__ == "__main__":
    plain, ids = load_model(TINY / "base"), torch.tensor([[0, 5, 6, 7]])
    llamas = plain.config.head_dim**-0.5  # with which Granite is Llama
    granite = load_granite(TINY / "base", attention_multiplier=llamas, logits_scaling=2.0)
    print("largest logit:", float(plain(ids).max()), "and, halved:", float(granite(ids).max()))
