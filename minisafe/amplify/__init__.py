"""Safety amplification: make a safety vector from demonstrations.

A function vector (Todd et al., ICLR 2024, arXiv 2310.15213), as in SafeInfer (arXiv 2406.12274).
`z[l, h]` is head h's slice of the input of layer l's output projection, at a prompt's last token.

1. Prompts of `shots` demonstrations (unsafe question, safe answer) and one more question.
2. Mean z over such prompts, for every head.
3. A head's average indirect effect (AIE): in *corrupted* prompts, how much the probability of a
   safe answer's first token rises when the head's mean is patched in at the last token.
4. The vector: the sum of the best heads' means, each times its head's slice of W_O, `(hidden,)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from minisafe.amplify.branches import Head
from minisafe.amplify.demonstrations import (
    CORRUPTIONS,
    Demonstration,
    Prompt,
    PromptMaker,
    answers_alike,
    corrupt,
    data_hash,
    few_shot,
    load_demonstrations,
)
from minisafe.amplify.heads import (
    Progress,
    all_heads,
    best_heads,
    check_heads,
    head_means,
    head_vector,
    indirect_effects,
    residual_mean,
)
from minisafe.checkpoint import fingerprint
from minisafe.declared import check_fields
from minisafe.errors import SettingError
from minisafe.model import Llama
from minisafe.tokenizer import Tokenizer
from minisafe.vectors import SafetyVector, values_hash

__all__ = [
    "CORRUPTIONS",
    "METHODS",
    "Amplified",
    "Demonstration",
    "Head",
    "PromptMaker",
    "Recipe",
    "all_heads",
    "amplify",
    "answers_alike",
    "head_means",
    "head_vector",
    "indirect_effects",
    "load_demonstrations",
]

FORMAT = "0.1.0"  # of the metadata
METHODS = ("aie", "heads", "all-heads", "mean-difference")


@dataclass(frozen=True)
class Recipe:
    """How a vector is made. The defaults are the authors'.

    method: "aie" ranks heads by indirect effect; "heads" takes `heads` as given; "all-heads" takes
        every head; "mean-difference" is the difference of the residual stream's means under safe
        and under corrupted demonstrations (contrastive activation addition).
    layer: the layer after which to add the vector; by default a quarter of the depth.
    """

    method: str = "aie"
    shots: int = 10
    prompts: int = 100
    aie_prompts: int = 25
    n_heads: int = 10
    heads: tuple[Head, ...] = ()
    corrupt: str = "expert"
    layer: int | None = None
    scale: float = 1.5
    style: str = "chat"
    seed: int = 0
    batch_size: int = 256

    def __post_init__(self) -> None:
        checks = {
            "method": (self.method in METHODS, f"one of {', '.join(METHODS)}"),
            "corrupt": (self.corrupt in CORRUPTIONS, f"one of {', '.join(CORRUPTIONS)}"),
            "shots": (self.shots >= 0, "0 or more"),
            "prompts": (self.prompts >= 1, "1 or more"),
            "aie_prompts": (self.aie_prompts >= 1, "1 or more"),
            "n_heads": (self.n_heads >= 1, "1 or more"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "heads": (bool(self.heads) == (self.method == "heads"), "a list with method 'heads'"),
        }
        check_fields(self, checks)


@dataclass(frozen=True)
class Amplified:
    """The result of `amplify`: the vector, and the effects that chose its heads, if any."""

    vector: SafetyVector
    effects: dict[Head, float]


def amplify(
    model: Llama,
    tokenizer: Tokenizer,
    demonstrations: Sequence[Demonstration],
    recipe: Recipe,
    other: Callable[[Demonstration], str] | None = None,
    progress: Progress | None = None,
) -> Amplified:
    """Make a safety vector. The same arguments and seed give the same vector.

    Args:
        demonstrations: unsafe questions with safe answers. The seed splits them: two thirds for
            the means and one third for the indirect effects, so that heads are not chosen on the
            data of their means.
        other: gives an unsafe answer, for `recipe.corrupt` "file", "expert" or "topic".
    """
    layer = model.config.n_layers // 4 if recipe.layer is None else recipe.layer
    if not 0 <= layer < model.config.n_layers:
        raise SettingError(
            f"layer is {layer}; the model has layers 0 to {model.config.n_layers - 1}"
        )
    check_heads(model, recipe.heads)
    maker = PromptMaker(tokenizer, recipe.style)
    order = np.random.default_rng(recipe.seed).permutation(len(demonstrations))
    cut = -(-2 * len(demonstrations) // 3)
    shown, held = ([demonstrations[i] for i in part] for part in (order[:cut], order[cut:]))
    draws = few_shot(maker, shown, recipe.shots, recipe.prompts, recipe.seed)
    safe = [maker.prompt(shots, query.input) for shots, query in draws]
    effects: dict[Head, float] = {}
    if recipe.method == "mean-difference":
        unsafe = corrupted(maker, draws, recipe, other)
        values = residual_mean(model, safe, layer) - residual_mean(model, unsafe, layer)
        heads: list[Head] = []
    else:
        means = head_means(model, safe, progress)
        heads = list(recipe.heads) if recipe.method == "heads" else all_heads(model)
        if recipe.method == "aie":
            draws = few_shot(maker, held, recipe.shots, recipe.aie_prompts, recipe.seed + 1)
            prompts = corrupted(maker, draws, recipe, other)
            targets = sorted({maker.first_token(shot) for shot in demonstrations})
            effects = indirect_effects(
                model, means, prompts, targets, None, recipe.batch_size, progress
            )
            heads = best_heads(effects, recipe.n_heads)
        values = head_vector(model, means, heads)
    metadata = describe(model, tokenizer, demonstrations, recipe, layer, heads, effects)
    layers: dict[int | None, Tensor] = {layer: values.float().cpu()}
    metadata["values"] = values_hash(layers)
    return Amplified(SafetyVector(layers, metadata), effects)


def corrupted(
    maker: PromptMaker,
    draws: Sequence[tuple[list[Demonstration], Demonstration]],
    recipe: Recipe,
    other: Callable[[Demonstration], str] | None,
) -> list[Prompt]:
    """The draws' prompts with corrupted demonstrations."""
    if other is None and recipe.corrupt in ("file", "expert", "topic"):
        raise SettingError(f"corrupt is {recipe.corrupt!r} without other answers; pass `other`")
    generator = np.random.default_rng(recipe.seed + 2)
    answer = other or (lambda shot: shot.output)
    return [
        maker.prompt(corrupt(draw, recipe.corrupt, answer, generator), draw[1].input)
        for draw in draws
    ]


def describe(
    model: Llama,
    tokenizer: Tokenizer,
    demonstrations: Sequence[Demonstration],
    recipe: Recipe,
    layer: int,
    heads: Sequence[Head],
    effects: dict[Head, float],
) -> dict[str, Any]:
    """The metadata of a vector: how and for which model it was made."""
    return {
        "sa_scale": recipe.scale,
        "layer": layer,
        "method": recipe.method,
        "heads": [list(head) for head in heads],
        "head_scores": [round(effects[head], 6) for head in heads if head in effects],
        "shots": recipe.shots,
        "prompts": recipe.prompts,
        "aie_prompts": recipe.aie_prompts,
        "corrupt": recipe.corrupt,
        "style": recipe.style,
        "seed": recipe.seed,
        "data": data_hash(demonstrations),
        "n_layers": model.config.n_layers,
        "tokenizer": tokenizer.fingerprint,
        "weights": fingerprint(model),
        "minisafe": FORMAT,
    }
