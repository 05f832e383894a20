"""A fast path put in from outside: one token's products as a matrix times a vector.

    python docs/examples/fast_path.py

The plain model has places, not branches: a layer's projections are `Linear` modules, and a subclass
may compute the same product another way. Here a block of one token calls `torch.mv`. A fast path
must equal the plain model, and must pay. This one equals it, and does not pay (2.0 ms per token
either way, on one core), so it is an example only. One that a setting chooses is a value of
`WEIGHTS` (minisafe/linear.py) and, under that value, a function in `FAST_PATHS`
(minisafe/session/faster.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from minisafe import KVCache, Llama, load_model, load_tokenizer
from minisafe.linear import Linear, add_deltas
from minisafe.lora import AdaptedRows

TINY = Path(__file__).resolve().parents[2] / "weights" / "tiny"


class VectorLinear(Linear):
    """`Linear`, where the block is one token of one row."""

    def forward(self, x: Tensor, adapters: Sequence[AdaptedRows]) -> Tensor:
        if x.numel() != x.shape[-1]:
            return super().forward(x, adapters)
        y = torch.mv(self.weight, x.flatten())
        y = (y if self.bias is None else y + self.bias).view(*x.shape[:-1], -1)
        return add_deltas(y, x, self.name, adapters) if adapters else y


def put_in(model: Llama) -> Llama:
    """Change the model in place; its weights, and their names, stay as they are."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = VectorLinear
    return model


@torch.inference_mode()
def logits(model: Llama, ids: Sequence[int]) -> Tensor:
    """The logits after each token, fed one by one: (T, vocab)."""
    cache = KVCache(model.config, rows=1, dtype=model.dtype)
    return torch.cat([model(torch.tensor([[id_]]), cache, last_only=True) for id_ in ids])


def largest_difference(text: str) -> float:
    """Between the logits of the plain model and of the changed one."""
    ids = load_tokenizer(TINY / "base").encode(text)
    plain = load_model(TINY / "base", dtype="float32")
    fast = put_in(load_model(TINY / "base", dtype="float32"))
    return float((logits(plain, ids) - logits(fast, ids)).abs().max())


if __name__ == "__main__":
    print(f"largest difference of a logit: {largest_difference('How do I clean a shelf?'):.1e}")
