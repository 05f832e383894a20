"""Stores facts in a model, one after another, each by a rank-one change."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from minisafe.editing.facts import MIN_TOKENS, Edit, Edited, Editing
from minisafe.editing.rome import (
    Context,
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
from minisafe.editing.subject import greedy, locate, prompt_ids
from minisafe.errors import PromptError, SettingError
from minisafe.model import Llama
from minisafe.tokenizer import Tokenizer

Progress = Callable[[str, int, int], None]  # name of the work, how much is done, of how much
KEPT = {True: ("Tell me about {}.",), False: ("{} is a",)}  # by chat; the paper uses the second
PREFIX_WORDS = 12  # the longest line of the text that may precede a prompt
DRIFT_LINES, DRIFT_TOKENS = 32, 32  # of the text, to measure drift


def edit(
    model: Llama,
    tokenizer: Tokenizer,
    edits: Edit | Sequence[Edit],
    text: Sequence[str],
    settings: Editing | None = None,
    progress: Progress | None = None,
) -> list[Edited]:
    """Store facts in `model`, one after another, each by a rank-one change (ROME; `rome.py`).

    The model's down projection is replaced, never written to, so a mapped file does not change. It
    is rounded as the checkpoint will store it. The same seed gives the same edits.

    Args:
        edits: one fact or several.
        text: lines like those that the model reads: questions with `chat`, otherwise plain text.

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
    """One run: the text as ids, the contexts of an edit, and the changes to one layer."""

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
        """A line's ids, in the chat template if the edit is for a chat."""
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
        """The prompts to keep, with the model's current answers."""
        rows = []
        for prompt in self.settings.keep or KEPT[self.settings.chat]:
            ids = self.encode(prompt.replace("{}", edit.subject))
            said = greedy(self.model, self.tokenizer, ids, self.settings.keep_tokens).strip()
            if said:
                rows.append(self.context(Edit(edit.subject, prompt, said)))
        return rows

    def run(self, facts: Sequence[Edit]) -> list[Edited]:
        """Apply every edit; answers and probabilities are from before and after all edits."""
        asked = [self.context(each) for each in facts]  # first, so that errors come at once
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
        """C of a layer's keys over the text; see `rome.covariance`."""
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
        """The layer with the best score: the target's probability minus the change of the
        predictions on the text and on the kept answers."""
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
        """Mean negative log-likelihood of the targets under the current model, nats per token."""
        return target_loss(self.predict(contexts), contexts).item()

    @torch.no_grad()
    def predict(self, contexts: Sequence[Context]) -> list[Tensor]:
        """Log-probabilities of the tokens after each context's prompt, by the current model."""
        return predictions(self.model, 0, contexts, torch.zeros(self.model.config.hidden))

    def recall(self, asked: Context) -> tuple[float, str]:
        """The target's probability after the prompt, and the greedy answer."""
        tokens = len(asked.ids) - asked.start
        said = greedy(self.model, self.tokenizer, asked.ids[: asked.start], tokens + 8)
        return math.exp(-self.loss([asked]) * tokens), said

    def said(self) -> list[Tensor]:
        """Predictions on some lines of the text."""
        lines = [row for row in self.rows if len(row) > 1][:DRIFT_LINES]
        return self.predict([Context(tuple(row[:DRIFT_TOKENS]), 1, (0,), 0) for row in lines])

    def drift(self) -> float:
        """The change of the predictions on the text, nats per token."""
        return divergence(self.plain, self.said()).item()
