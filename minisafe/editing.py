"""Edited models: changes of a base's own weights, by a merged adapter or by rank-one edits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from minisafe.errors import PromptError, SettingError
from minisafe.lora import LoraAdapter
from minisafe.model import Llama
from minisafe.rome import (
    Context,
    Descent,
    best_change,
    covariance,
    divergence,
    down_projection,
    predictions,
    put_down_projection,
    rank_one,
    record,
    target_loss,
)
from minisafe.subject import greedy, locate, prompt_ids
from minisafe.tokenizer import Tokenizer

Progress = Callable[[str, int, int], None]  # what is being done, how much of it, of how much
KEPT = {True: ("Tell me about {}.",), False: ("{} is a",)}  # by chat; the plain one is the paper's
PREFIX_WORDS = 12  # the longest line of the text that may stand before a prompt
MIN_TOKENS = 256  # of text to take the covariance over
DRIFT_LINES, DRIFT_TOKENS = 32, 32  # of the text, to see what edits do to it


def merge_adapter(model: Llama, adapter: LoraAdapter) -> None:
    """Add an adapter's deltas to the model's own weights, computed in float32."""
    tensors = model.tensors()
    for name, delta in adapter.deltas.items():
        weight = tensors[f"{name}.weight"]
        merged = (weight.float() + delta.weight()).to(weight.dtype)  # never into the mapped file
        model.put(f"{name}.weight", merged)


# ---- rank-one edits ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Edit:
    """One fact: `prompt` has `{}` where the subject stands, and `target` should follow it.

    In a chat the target is the whole answer; else it continues the prompt, after a blank.
    """

    subject: str
    prompt: str
    target: str

    def __post_init__(self) -> None:
        if self.prompt.count("{}") != 1:
            raise PromptError(
                f"the prompt {self.prompt[:80]!r} has {self.prompt.count('{}')} places {{}} for "
                "the subject; expected one"
            )
        for name in ("subject", "target"):
            value = getattr(self, name)
            if not value.strip() or value != value.strip():
                raise PromptError(
                    f"the {name} is {value[:80]!r}; expected text, without blanks around it"
                )
        if any("\ud800" <= each <= "\udfff" for each in self.subject + self.prompt + self.target):
            raise PromptError(f"the edit of {self.subject[:80]!r} is not valid Unicode text")

    @property
    def question(self) -> str:
        return self.prompt.replace("{}", self.subject)


@dataclass(frozen=True)
class Editing:
    """How to edit.

    layer: whose down projection changes, from 0; None: a third of the depth; "auto": try all
        but the last on the first edit; take the best (see `best_layer`).
    contexts: short lines of the text that stand before the prompt, one at a time.
    samples: tokens of text to take the keys' covariance over. ridge: see `rome.covariance`.
    keep: prompts with `{}` whose answers should stay; () for `KEPT`. Up to `keep_tokens` of each.
    """

    layer: int | Literal["auto"] | None = None
    chat: bool = False
    contexts: int = 4
    samples: int = 10000
    ridge: float = 0.01
    keep: tuple[str, ...] = ()
    keep_tokens: int = 32
    seed: int = 0
    descent: Descent = field(default_factory=Descent)

    def __post_init__(self) -> None:
        checks = {
            "contexts": (self.contexts >= 0, "0 or more"),
            "samples": (self.samples >= MIN_TOKENS, f"{MIN_TOKENS} or more"),
            "ridge": (0 <= self.ridge < float("inf"), "0 or more"),
            "keep": (all(each.count("{}") == 1 for each in self.keep), "one {} in each"),
            "keep_tokens": (self.keep_tokens >= 1, "1 or more"),
            "layer": (isinstance(self.layer, int) or self.layer in (None, "auto"), "auto or int"),
        }
        for name, (holds, expected) in checks.items():
            if not holds:
                raise SettingError(f"{name} is {getattr(self, name)!r}; expected {expected}")


@dataclass(frozen=True)
class Edited:
    """What became of one edit, after all the edits of its run.

    probability: of the whole target after the prompt. answer: the greedy continuation's text.
    drift: mean KL divergence (nats a token) that all edits together caused on lines of the text.
    """

    edit: Edit
    layer: int
    probability_before: float
    probability_after: float
    answer_before: str
    answer_after: str
    drift: float

    def to_json(self) -> dict[str, Any]:
        """The object that `edit.json` and `--json` have."""
        flat = {name: value for name, value in vars(self).items() if name != "edit"}
        return asdict(self.edit) | flat


def edit(
    model: Llama,
    tokenizer: Tokenizer,
    edits: Edit | Sequence[Edit],
    text: Sequence[str],
    settings: Editing | None = None,
    progress: Progress | None = None,
) -> list[Edited]:
    """Store facts in `model`, one after another, each by a rank-one change (ROME; `rome.py`).

    The model's down projection is replaced, never written to, so that a mapped file stays as it
    is. It is rounded as the checkpoint will store it. Same seed, same edits.

    Args:
        edits: one fact or several.
        text: lines like those that the model reads: questions with `chat`, else plain text.

    Raises:
        PromptError: there is no edit, the text is too short, or a subject's token was not found.
        SettingError: the model has no such layer, or nothing reads the subject after it.
        NonFiniteError: the optimisation or the changed weight is not finite.
    """
    settings, facts = settings or Editing(), [edits] if isinstance(edits, Edit) else list(edits)
    if not facts:
        raise PromptError("no edits were given; expected at least one")
    return Editor(model, tokenizer, text, settings, progress).run(facts)


class Editor:
    """One run: the text as ids, the contexts of an edit, and the changes of one layer."""

    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer,
        text: Sequence[str],
        settings: Editing,
        progress: Progress | None,
    ):
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.progress = progress or (lambda what, done, total: None)
        depth = model.config.n_layers
        layer = depth // 3 if settings.layer is None else settings.layer
        if isinstance(layer, int) and not 0 <= layer < depth:
            raise SettingError(f"layer is {layer}; the model has layers 0 to {depth - 1}")
        self.layer = None if layer == "auto" else int(layer)
        self.rows = self.text_rows(text)
        short = [line.strip() for line in text if 0 < len(line.split()) <= PREFIX_WORDS]
        order = np.random.default_rng([settings.seed, 1]).permutation(len(short))
        self.prefixes = ["", *(f"{short[i]} " for i in order[: settings.contexts])]
        self.plain = self.said()

    def text_rows(self, text: Sequence[str]) -> list[list[int]]:
        """Lines as ids in an order that the seed fixes, up to `samples` tokens."""
        lines = [line.strip() for line in text if line.strip()]
        rows: list[list[int]] = []
        room, limit = self.settings.samples, self.model.config.max_positions
        for i in np.random.default_rng([self.settings.seed, 0]).permutation(len(lines)):
            rows.append(self.encode(lines[i])[: min(room, limit)])
            room -= len(rows[-1])
            if room <= 0:
                break
        found = sum(map(len, rows))
        if found < MIN_TOKENS:
            raise PromptError(
                f"the text has {found} tokens in {len(lines)} lines; expected {MIN_TOKENS} or more"
            )
        return rows

    def encode(self, line: str) -> list[int]:
        return prompt_ids(self.tokenizer, line, self.settings.chat)

    def context(self, edit: Edit, prefix: str = "") -> Context:
        """The row of an edit after a prefix; raises `PromptError`."""
        chat, limit = self.settings.chat, self.model.config.max_positions
        row = locate(self.tokenizer, prefix + edit.prompt, edit.subject, edit.target, chat)
        if len(row.ids) > limit:
            raise PromptError(
                f"prompt and target of {edit.subject!r} have {len(row.ids)} tokens; the model's "
                f"context has {limit}"
            )
        return row

    def kept(self, edit: Edit) -> list[Context]:
        """What the model says now on the prompts to keep."""
        rows = []
        for prompt in self.settings.keep or KEPT[self.settings.chat]:
            ids = self.encode(prompt.replace("{}", edit.subject))
            said = greedy(self.model, self.tokenizer, ids, self.settings.keep_tokens).strip()
            if said:
                rows.append(self.context(Edit(edit.subject, prompt, said)))
        return rows

    def run(self, facts: Sequence[Edit]) -> list[Edited]:
        """Apply every edit; the answers and probabilities are those before and after them all."""
        asked = [self.context(each) for each in facts]  # what is wrong with any is told at once
        before = [self.recall(each) for each in asked]
        layer = self.best_layer(facts[0]) if self.layer is None else self.layer
        keys = self.covariance(layer)  # once: edits of a layer do not change its keys
        for number, each in enumerate(facts, 1):
            new = self.stored(each, layer, keys, f"edit {number} of {len(facts)}: step")
            put_down_projection(self.model, layer, new)
        drift = self.drift()
        return [
            Edited(fact, layer, old[0], new[0], old[1], new[1], drift)
            for fact, old, new in zip(facts, before, map(self.recall, asked), strict=True)
        ]

    def covariance(self, layer: int) -> Tensor:
        return covariance(self.model, layer, self.rows, self.settings.ridge)

    def stored(self, edit: Edit, layer: int, keys: Tensor, what: str) -> Tensor:
        """A layer's down projection with one more fact in it."""
        learned, descent = self.learned(edit), self.settings.descent
        change = best_change(
            self.model, layer, learned, self.kept(edit), descent,
            lambda done, total: self.progress(what, done, total),
        )  # fmt: skip
        key = record(self.model, learned, layer, "mlp").mean(0)
        return rank_one(down_projection(self.model, layer), key, change, keys)

    def best_layer(self, edit: Edit) -> int:
        """The layer where the target is likeliest, less how far text and kept answers move."""
        scores, kept = [], self.kept(edit)
        said = self.predict(kept) if kept else []
        for layer in range(max(1, self.model.config.n_layers - 1)):  # nothing reads the last
            old = down_projection(self.model, layer)
            new = self.stored(edit, layer, self.covariance(layer), f"layer {layer}: step")
            put_down_projection(self.model, layer, new)
            moved = divergence(said, self.predict(kept)).item() if kept else 0.0
            scores.append(math.exp(-self.loss(self.learned(edit))) - self.drift() - moved)
            put_down_projection(self.model, layer, old)
        return scores.index(max(scores))

    def learned(self, edit: Edit) -> list[Context]:
        """The edit's prompt alone and after each prefix."""
        return [self.context(edit, prefix) for prefix in self.prefixes]

    def loss(self, contexts: Sequence[Context]) -> float:
        """Mean negative log-likelihood of the targets as the model stands, nats a token."""
        return target_loss(self.predict(contexts), contexts).item()

    @torch.no_grad()
    def predict(self, contexts: Sequence[Context]) -> list[Tensor]:
        return predictions(self.model, 0, contexts, torch.zeros(self.model.config.hidden))

    def recall(self, asked: Context) -> tuple[float, str]:
        """The target's probability after the prompt, and what greedy decoding says there."""
        tokens = len(asked.ids) - asked.start
        said = greedy(self.model, self.tokenizer, asked.ids[: asked.start], tokens + 8)
        return math.exp(-self.loss([asked]) * tokens), said

    def said(self) -> list[Tensor]:
        """Predictions on some lines of the text."""
        lines = [row for row in self.rows if len(row) > 1][:DRIFT_LINES]
        return self.predict([Context(tuple(row[:DRIFT_TOKENS]), 1, (0,), 0) for row in lines])

    def drift(self) -> float:
        """How far predictions on the text have moved, nats a token."""
        return divergence(self.plain, self.said()).item()
