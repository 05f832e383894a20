"""Heads at a prompt's last token: their means, their indirect effects, their vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from minisafe.amplify.branches import Head, patched_logits, read_prefix
from minisafe.amplify.demonstrations import Prompt
from minisafe.errors import PromptError, SettingError
from minisafe.model import Llama
from minisafe.slots import Record, Slot

Progress = Callable[[str, int, int], None]  # name of the work, how many are done, of how many


@torch.inference_mode()
def head_means(model: Llama, prompts: Sequence[Prompt], progress: Progress | None = None) -> Tensor:
    """Mean of every head's output at the prompts' last token, (n_layers, n_heads, head_dim)."""
    config = model.config
    total = torch.zeros(config.n_layers, config.n_heads, config.head_dim, dtype=torch.float64)
    for done, prompt in enumerate(prompts, 1):
        last = len(prompt.ids) - 1
        records = [
            Record(layer=layer, spans=((last, last + 1),), site="heads")
            for layer in range(config.n_layers)
        ]
        run(model, prompt.ids, records)
        total += torch.stack([record.values()[0] for record in records]).double().cpu()
        if progress:
            progress("head outputs", done, len(prompts))
    return (total / len(prompts)).float()


@torch.inference_mode()
def residual_mean(model: Llama, prompts: Sequence[Prompt], layer: int) -> Tensor:
    """Mean of the residual stream after `layer` at the prompts' last token, (hidden,)."""
    total = torch.zeros(model.config.hidden, dtype=torch.float64)
    for prompt in prompts:
        last = len(prompt.ids) - 1
        record = Record(layer=layer, spans=((last, last + 1),))
        run(model, prompt.ids, [record])
        total += record.values()[0].double().cpu()
    return (total / len(prompts)).float()


def run(model: Llama, ids: Sequence[int], slots: Sequence[Slot]) -> Tensor:
    """Last-token logits of one whole prompt, (vocab,)."""
    check_length(model, ids)
    block = torch.tensor([list(ids)], device=model.device)
    return model(block, slots=slots, last_only=True)[0]  # type: ignore[no-any-return]


def check_length(model: Llama, ids: Sequence[int]) -> None:
    """Raise `PromptError` if a prompt of demonstrations does not fit the context."""
    limit = model.config.max_positions
    if len(ids) > limit:
        raise PromptError(
            f"a prompt of demonstrations has {len(ids)} tokens; the context holds {limit}; lower "
            "--shots"
        )


@torch.inference_mode()
def indirect_effects(
    model: Llama,
    means: Tensor,
    prompts: Sequence[Prompt],
    targets: Sequence[int],
    heads: Sequence[Head] | None = None,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> dict[Head, float]:
    """Average indirect effect of each head: the rise of the targets' joint probability.

    The patch changes the last position only, so the rest of a prompt is read once, and each patched
    run is a branch of the last token, many heads per batch; see `patched_logits`.

    Args:
        means: (n_layers, n_heads, head_dim), the values to patch in.
        prompts: corrupted prompts.
        targets: first tokens of safe answers; their probabilities are summed.
        heads: the heads to measure; all by default.
    """
    heads = all_heads(model) if heads is None else heads
    check_heads(model, heads)
    totals = dict.fromkeys(heads, 0.0)
    for done, prompt in enumerate(prompts, 1):
        for head, effect in prompt_effects(model, means, prompt, targets, heads, batch_size):
            totals[head] += effect / len(prompts)
        if progress:
            progress("indirect effects", done, len(prompts))
    return totals


def prompt_effects(
    model: Llama,
    means: Tensor,
    prompt: Prompt,
    targets: Sequence[int],
    heads: Sequence[Head],
    batch_size: int,
) -> Iterator[tuple[Head, float]]:
    """(head, indirect effect) for one prompt, by layer."""
    check_length(model, prompt.ids)
    heads = sorted(heads)
    prefix = read_prefix(model, prompt.ids[:-1], 1 + min(batch_size, len(heads)))
    wanted = torch.tensor(sorted(set(targets)), device=model.device)
    for start in range(0, len(heads), batch_size):
        batch = heads[start : start + batch_size]
        logits = patched_logits(model, prefix, prompt.ids[-1], means, batch)
        safe = torch.softmax(logits.float(), dim=-1)[:, wanted].sum(dim=-1)
        yield from zip(batch, (safe[1:] - safe[0]).tolist(), strict=True)


def all_heads(model: Llama) -> list[Head]:
    """Every (layer, head) of a model."""
    config = model.config
    return [(layer, head) for layer in range(config.n_layers) for head in range(config.n_heads)]


def best_heads(effects: dict[Head, float], k: int) -> list[Head]:
    """The k heads with the largest effects; ties go to the lower layer and head."""
    return sorted(effects, key=lambda head: (-effects[head], head))[:k]


def head_vector(model: Llama, means: Tensor, heads: Sequence[Head]) -> Tensor:
    """`sum over heads of W_O[l][:, slice h] @ mean z[l, h]`, as a layer adds it to the residual
    stream: (hidden,) float32."""
    total, tensors = torch.zeros(model.config.hidden), model.tensors()
    for layer, head in heads:
        weight = tensors[f"model.layers.{layer}.self_attn.o_proj.weight"]
        start = head * model.config.head_dim
        part = weight[:, start : start + model.config.head_dim].detach().float().cpu()
        total += part @ means[layer, head]
    return total * model.config.residual_multiplier


def check_heads(model: Llama, heads: Sequence[Head]) -> None:
    """Raise `SettingError` for a head that the model does not have."""
    for layer, head in heads:
        if not (0 <= layer < model.config.n_layers and 0 <= head < model.config.n_heads):
            raise SettingError(
                f"no head {layer}.{head}; the model has layers 0 to {model.config.n_layers - 1} of "
                f"heads 0 to {model.config.n_heads - 1}"
            )
