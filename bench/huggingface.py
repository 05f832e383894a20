"""transformers as a peer: a minisafe model in transformers, and greedy tokens from its forward.

bench/README.md explains how to install it. This file does not import minisafe, so that a process
that measures only the peer does not pay for minisafe.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import util
from typing import TYPE_CHECKING, Any

import torch

from minisafe.checkpoint.config import config_json

if TYPE_CHECKING:
    from minisafe import Llama
    from minisafe.guidance import Rule
    from minisafe.lora import LoraAdapter


def has_transformers() -> bool:
    """Whether the peer is installed; prints a line if not."""
    if util.find_spec("transformers") is not None:
        return True
    print("transformers is not installed here: its rows are skipped (see bench/README.md)")
    return False


def transformers_model(model: Llama, adapter: LoraAdapter | None = None) -> Any:
    """The same model in transformers: on the same tensors, or, with an adapter, on copies of all
    tensors with the adapter merged in, as peers with two models do."""
    from transformers import AutoConfig, AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    weights = {name: each.detach() for name, each in model.tensors().items()}
    if adapter is not None:
        weights = {name: tensor.clone() for name, tensor in weights.items()}
        for module, delta in adapter.deltas.items():
            weights[f"{module}.weight"] += delta.weight().to(model.dtype)
    if model.config.tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    config = AutoConfig.for_model(**config_json(model.config))
    with torch.device("meta"):
        peer = auto.from_config(config, dtype=model.dtype, attn_implementation="sdpa")
    peer.load_state_dict(weights, assign=True)
    peer.model.rotary_emb = type(peer.model.rotary_emb)(
        config=config
    )  # its tables were on the meta device
    return peer.eval()


def transformers_tokens(
    models: Sequence[Any], prompt: Sequence[int], rule: Rule | None = None
) -> Iterator[int]:
    """Greedy tokens of models in lockstep, each with its own cache."""
    feed = torch.tensor([prompt])
    caches: list[Any] = [None] * len(models)
    while True:
        with torch.inference_mode():
            pairs = list(zip(models, caches, strict=True))
            outs = [m(feed, past_key_values=c, use_cache=True, logits_to_keep=1) for m, c in pairs]
            caches = [out.past_key_values for out in outs]
            logits = [out.logits[:, -1].float() for out in outs]
            scores = rule(tuple(y.log_softmax(-1) for y in logits)) if rule else logits[0]
            feed = scores.argmax(-1, keepdim=True)
        yield int(feed)
