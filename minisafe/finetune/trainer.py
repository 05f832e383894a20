"""Training on conversations: of a model's own weights or of an adapter.

The loss covers the answers only. It uses AdamW and gradient accumulation; `loop` has the steps,
their learning rates, and the state from which a stopped run continues.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minisafe.checkpoint import linear_modules
from minisafe.errors import PromptError, SettingError
from minisafe.finetune.examples import Example, answer_loss, batches, batches_an_epoch, collate
from minisafe.finetune.loop import Loop, Schedule
from minisafe.finetune.recompute import recompute
from minisafe.finetune.settings import Training
from minisafe.finetune.state import identity
from minisafe.lora import AdaptedRows, LoraAdapter, LoraDelta
from minisafe.model import Llama


@dataclass(frozen=True)
class Report:
    """Progress: completed steps, mean training loss since the last report, held-out loss."""

    step: int
    loss: float
    held_out_loss: float | None


def new_adapter(model: Llama, training: Training) -> tuple[LoraAdapter, dict[str, nn.Parameter]]:
    """A new adapter (A random, B zero, so it has no effect yet) and its parameters by name."""
    check_targets(model, training.lora_targets)
    generator = torch.Generator().manual_seed(training.seed)
    deltas: dict[str, LoraDelta] = {}
    parameters: dict[str, nn.Parameter] = {}
    scaling = training.lora_alpha / training.lora_rank
    for name, (out_features, in_features) in linear_modules(model).items():
        if name.rsplit(".", 1)[-1] not in training.lora_targets:
            continue
        bound = 1 / math.sqrt(in_features)
        start = torch.empty(training.lora_rank, in_features).uniform_(
            -bound, bound, generator=generator
        )
        a = nn.Parameter(start.to(model.device))
        b = nn.Parameter(torch.zeros(out_features, training.lora_rank, device=model.device))
        parameters |= {f"{name}.lora_A": a, f"{name}.lora_B": b}
        deltas[name] = LoraDelta(a, b, scaling)
    return LoraAdapter(deltas), parameters


def check_targets(model: Llama, targets: Sequence[str]) -> None:
    """Raise `SettingError` for a target that is not a module of the model."""
    known = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in linear_modules(model)))
    for target in targets:
        if target not in known:
            raise SettingError(
                f"lora_targets has {target!r}, which this model does not have; expected some of "
                f"{', '.join(known)}"
            )


class Trainer:
    """Trains `model`, or an adapter for it; iterate `run()` for progress.

    Trained weights must not be memory-mapped: `prepared` copies them.
    """

    def __init__(self, model: Llama, examples: Sequence[Example], training: Training):
        if not examples:
            raise PromptError("nothing to learn from; expected at least one conversation")
        if not all(each.learned for each in examples):
            raise PromptError("an example has no answer to learn; raise max_length or leave it out")
        self.model, self.training = model, training
        texts = ((each.ids, each.labels) for each in examples)
        self.about = identity(model, texts, asdict(training))
        order = np.random.default_rng(training.seed).permutation(len(examples))
        cut = held_out(len(examples), training)
        self.held_out = [examples[i] for i in order[:cut]]
        self.examples = [examples[i] for i in order[cut:]]
        if training.recompute:
            recompute(model)
        self.adapter: LoraAdapter | None = None
        if training.lora_rank:
            model.requires_grad_(False)
            self.adapter, self.parameters = new_adapter(model, training)
        else:
            self.parameters = prepared(model)
        optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=training.learning_rate, betas=(0.9, 0.95),
            weight_decay=training.weight_decay,
        )  # fmt: skip
        schedule = Schedule(training.steps, training.warmup)
        self.loop = Loop(self.parameters, [optimizer], schedule, training.clip, self.about)

    def adapters(self, rows: int) -> tuple[AdaptedRows, ...]:
        """The adapter on every row of a batch; empty if the model itself is trained."""
        return () if self.adapter is None else (AdaptedRows(self.adapter, slice(0, rows)),)

    def precision(self) -> AbstractContextManager[Any]:
        """The context for products: in bf16 with `autocast`."""
        if not self.training.autocast:
            return nullcontext()
        return torch.autocast(self.model.device.type, torch.bfloat16)

    def loss(self, examples: Sequence[Example]) -> Tensor:
        """Mean cross-entropy of the examples' answers, nats per token."""
        ids, labels = collate(examples, self.model.device)
        with self.precision():
            return answer_loss(self.model, ids, labels, self.adapters(len(examples)))

    def run(self, checkpoint: Path | None = None, every: int = 100) -> Iterator[Report]:
        """Train to the end; yields a `Report` every `eval_every` steps and at the end.

        Args:
            checkpoint: the file for the state, written every `every` steps, whole or not at all;
                training continues from it if it exists.
        """
        self.loop.resume(checkpoint)
        total, counted = 0.0, 0
        for loss in self.loop.run(self.losses(), checkpoint, every):
            total, counted = total + loss, counted + 1
            step = self.loop.step
            if step == self.training.steps or step % self.training.eval_every == 0:
                yield Report(step, total / counted, self.evaluate())
                total, counted = 0.0, 0

    def losses(self) -> Iterator[Iterator[Tensor]]:
        """For each remaining step, the losses of its batches, each scaled to add up to the mean."""
        size, parts = self.training.batch_size, self.training.accumulate
        source = batches(self.examples, size, self.training.seed, self.loop.step * parts)
        while True:
            yield (self.loss(next(source)) / parts for _ in range(parts))

    @torch.no_grad()
    def evaluate(self) -> float | None:
        """Mean loss over the held-out conversations, or None if there are none."""
        if not self.held_out:
            return None
        size = self.training.batch_size
        parts = [self.held_out[i : i + size] for i in range(0, len(self.held_out), size)]
        losses = [self.loss(part).item() * len(part) for part in parts]
        return sum(losses) / len(self.held_out)


def held_out(examples: int, training: Training) -> int:
    """The number of held-out examples."""
    return min(int(examples * training.held_out), examples - 1)


def steps_of(epochs: float, examples: int, training: Training) -> int:
    """The number of optimiser steps for this many epochs over the examples not held out."""
    if not 0 < epochs < 1e6:
        raise SettingError(f"epochs is {epochs}; expected a number above 0")
    learned = examples - held_out(examples, training)
    forwards = epochs * batches_an_epoch(learned, training.batch_size)
    return max(1, math.ceil(forwards / training.accumulate))


def prepared(model: Llama) -> dict[str, nn.Parameter]:
    """The model's own parameters by name, copied from the mapped file and ready for training."""
    return {
        name: model.put(name, old.detach().clone(), requires_grad=True)
        for name, old in model.tensors().items()
    }


def finished_adapter(trainer: Trainer, dtype: torch.dtype = torch.float32) -> LoraAdapter:
    """The trained adapter, detached."""
    assert trainer.adapter is not None
    return detached(trainer.adapter, dtype)


def detached(adapter: LoraAdapter, dtype: torch.dtype = torch.float32) -> LoraAdapter:
    """An adapter's current values in `dtype`, without gradients."""
    deltas = {
        name: LoraDelta(delta.a.detach().to(dtype), delta.b.detach().to(dtype), delta.scaling)
        for name, delta in adapter.deltas.items()
    }
    return LoraAdapter(deltas, adapter.name)
