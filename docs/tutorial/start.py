"""What the chapters share: the shipped model, and short functions around the algorithm's one file.

`safeinfer` is examples/safeinfer.py. Chapters 1 and 2 explain what is used here; with `which`, a
function reads another model than the shipped one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "examples"))

import safeinfer  # noqa: E402, the line above makes it importable

TINY = ROOT / "weights" / "tiny"
DATA = ROOT / "weights" / "data"
profile = json.loads((TINY / "profile.json").read_text("utf-8"))
model: Any = safeinfer.load_model(TINY, profile)
tokenizer = Tokenizer.from_file(str(TINY / "base" / "tokenizer.json"))
END = tokenizer.token_to_id("<|end|>")


def ids_of(text: str) -> list[int]:
    """The tokens of a text. Control tokens that are written in it count as such."""
    found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return found


def piece(id_: int) -> str:
    """The text of one token, also of a control token."""
    text: str = tokenizer.decode([id_], skip_special_tokens=False)
    return text


def chat_ids(question: str, begun: str = "") -> list[int]:
    """The prompt of a chat with one question. begun: text with which the answer begins."""
    return ids_of(f"<|begin|><|user|>{question}<|end|><|assistant|>") + ids_of(begun)


def read(ids: list[int], sa_scale: float = 0.0, which: Any = model) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the token after `ids`, (vocab,): the base's and the expert's."""
    base, expert = safeinfer.forward(which, safeinfer.KVCache(which.config), ids, sa_scale)
    return base.clone(), expert.clone()  # tensors that may be changed


def answer(
    question: str,
    sa_scale: float = 0.0,
    lam: float = 0.0,
    margin: float = 0.0,
    begun: str = "",
    which: Any = model,
) -> str:
    """The greedy answer as text. With sa_scale and lam 0 the base answers alone."""
    settings = safeinfer.Settings(sa_scale, lam, margin, max_new_tokens=64)
    cache, ids = safeinfer.KVCache(which.config), chat_ids(question, begun)
    found = list(safeinfer.generate(which, cache, ids, settings))
    return begun + str(tokenizer.decode(found))


def random_vector(seed: int) -> Tensor:
    """A random direction with the norm of the shipped vector, (hidden,)."""
    found = torch.randn(len(model.vector), generator=torch.Generator().manual_seed(seed))
    return found * (model.vector.norm() / found.norm())


@torch.inference_mode()
def attention_weights(ids: list[int], layer: int) -> Tensor:
    """How much each head of the base's layer looks from each token (row) at each: (heads, n, n)."""
    config, x = model.config, model.weights["model.embed_tokens.weight"][ids].expand(2, -1, -1)
    cache, angles = safeinfer.KVCache(config), safeinfer.rotary_angles(config, 0, len(ids))
    for below in range(layer + 1):
        name = f"model.layers.{below}"
        normed = safeinfer.rms_norm(model, f"{name}.input_layernorm", x)
        x = x + safeinfer.attention(model, cache, below, normed, angles)
        after = safeinfer.rms_norm(model, f"{name}.post_attention_layernorm", x)
        x = x + safeinfer.mlp(model, f"{name}.mlp", after)
    q, k = (  # of the last layer, which `normed` was made for
        safeinfer.linear(model, f"{name}.self_attn.{each}_proj", normed)[0]
        .view(len(ids), -1, config["head_dim"])
        .transpose(0, 1)
        for each in "qk"
    )
    q, k = safeinfer.rotate(q, angles), safeinfer.rotate(k, angles)
    k = k.repeat_interleave(len(q) // len(k), dim=0)
    scores = q @ k.transpose(1, 2) / config["head_dim"] ** 0.5
    later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(dim=-1)
