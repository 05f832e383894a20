"""Supervised fine-tuning: make an expert (a LoRA adapter) or change a base, from chat pairs.

The loss counts the answers only. AdamW, linear warm-up and cosine decay, gradient accumulation and
clipping; the state is written now and then, and a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from minisafe.checkpoint import first_line, linear_modules, save_tensors
from minisafe.errors import CheckpointError, NonFiniteError, PromptError, SettingError
from minisafe.lora import Applied, LoraAdapter, LoraDelta
from minisafe.model import Llama
from minisafe.tokenizer import Message, Tokenizer

Conversation = Sequence[Message]
IGNORED = -100  # a label that the loss leaves out
LORA_TARGETS = ("q_proj", "v_proj")


@dataclass(frozen=True)
class Training:
    """How to train. `steps` are optimiser steps, each over `batch_size * accumulate` examples.

    lora_rank 0 trains every weight. `autocast` computes in bf16 while weights stay as they are.
    `recompute` keeps no activations between layers, for large models.
    """

    steps: int = 150
    batch_size: int = 16
    accumulate: int = 1
    learning_rate: float = 1e-3
    warmup: int = 10
    weight_decay: float = 0.0
    clip: float = 1.0
    max_length: int = 1024
    lora_rank: int = 4
    lora_alpha: float = 8.0
    lora_targets: tuple[str, ...] = LORA_TARGETS
    autocast: bool = False
    recompute: bool = False
    held_out: float = 0.05
    eval_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {
            "steps": (self.steps >= 1, "1 or more"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "accumulate": (self.accumulate >= 1, "1 or more"),
            "learning_rate": (0 < self.learning_rate < 10, "a number above 0"),
            "warmup": (self.warmup >= 0, "0 or more"),
            "clip": (self.clip > 0, "a number above 0"),
            "max_length": (self.max_length >= 2, "2 or more"),
            "lora_rank": (self.lora_rank >= 0, "0 (full) or more"),
            "lora_alpha": (self.lora_alpha > 0, "a number above 0"),
            "held_out": (0 <= self.held_out < 1, "a share below 1"),
            "eval_every": (self.eval_every >= 1, "1 or more"),
        }
        for name, (holds, expected) in checks.items():
            if not holds:
                raise SettingError(f"{name} is {getattr(self, name)!r}; expected {expected}")


@dataclass(frozen=True)
class Example:
    """One conversation: ids, and the labels that say which of them are learned."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Report:
    """Progress: optimiser steps done, mean training loss since the last report, held-out loss."""

    step: int
    loss: float
    held_out_loss: float | None


def encode_example(tokenizer: Tokenizer, messages: Conversation, max_length: int) -> Example:
    """Ids of a conversation that ends with an answer; only the answers' ids are labels.

    An answer reaches from where the template ends its generation prompt to the end of what the
    template writes for it, so the end token is learned too.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise PromptError("a conversation to learn from must end with an answer")
    ids: list[int] = []
    labels: list[int] = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = list(tokenizer.encode_chat(messages[:number]).ids)
        after = list(tokenizer.encode_chat(messages[: number + 1], generation_prompt=False).ids)
        if after[: len(before)] != before or before[: len(ids)] != ids:
            raise PromptError(
                "the chat template does not write a conversation as a growing text, so its answers "
                "cannot be told apart"
            )
        labels += [IGNORED] * (len(before) - len(ids)) + after[len(before) :]
        ids = after
    return Example(tuple(ids[:max_length]), tuple(labels[:max_length]))


def batches(
    examples: Sequence[Example], size: int, seed: int, skip: int
) -> Iterator[list[Example]]:
    """Endless batches: every example once an epoch, in an order that the seed fixes."""
    epoch, done = 0, 0
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(len(examples))
        for start in range(0, max(1, len(examples) - size + 1), size):
            if done >= skip:
                yield [examples[i] for i in order[start : start + size]]
            done += 1
        epoch += 1


def collate(examples: Sequence[Example], device: torch.device) -> tuple[Tensor, Tensor]:
    """Right-padded (B, T) ids and labels; padding is never a label."""
    width = max(len(example.ids) for example in examples)
    ids = [list(each.ids) + [0] * (width - len(each.ids)) for each in examples]
    labels = [list(each.labels) + [IGNORED] * (width - len(each.ids)) for each in examples]
    return torch.tensor(ids, device=device), torch.tensor(labels, device=device)


def answer_loss(
    model: Llama, ids: Tensor, labels: Tensor, adapters: tuple[Applied, ...] = ()
) -> Tensor:
    """Mean cross-entropy of the labelled tokens, each predicted from what stands before it."""
    logits = model(ids, adapters=adapters)[:, :-1]
    targets = labels[:, 1:]
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)


def new_adapter(model: Llama, training: Training) -> tuple[LoraAdapter, dict[str, nn.Parameter]]:
    """A fresh adapter (A random, B zero, so it changes nothing yet) and its parameters by name."""
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
    if not deltas:
        raise SettingError(f"lora_targets {training.lora_targets} match no module of the model")
    return LoraAdapter(deltas), parameters


def rate(step: int, training: Training) -> float:
    """Learning rate of a step counted from 0: linear warm-up, then a cosine down to a tenth."""
    if step < training.warmup:
        return training.learning_rate * (step + 1) / training.warmup
    share = (step - training.warmup) / max(1, training.steps - training.warmup)
    return training.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))


class Trainer:
    """Trains `model`, or an adapter for it; iterate `run()` for progress.

    A model that is itself trained must not be memory-mapped: `prepared` copies it.
    """

    def __init__(self, model: Llama, examples: Sequence[Example], training: Training):
        if not examples:
            raise PromptError("nothing to learn from; expected at least one conversation")
        self.model, self.training = model, training
        order = np.random.default_rng(training.seed).permutation(len(examples))
        cut = min(int(len(examples) * training.held_out), len(examples) - 1)
        self.held_out = [examples[i] for i in order[:cut]]
        self.examples = [examples[i] for i in order[cut:]]
        model.recompute = training.recompute
        self.adapter: LoraAdapter | None = None
        if training.lora_rank:
            model.requires_grad_(False)
            self.adapter, self.parameters = new_adapter(model, training)
        else:
            self.parameters = prepared(model)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=training.learning_rate, betas=(0.9, 0.95),
            weight_decay=training.weight_decay,
        )  # fmt: skip
        self.step = 0

    def adapters(self, rows: int) -> tuple[Applied, ...]:
        return () if self.adapter is None else (Applied(self.adapter, slice(0, rows)),)

    def precision(self) -> AbstractContextManager[Any]:
        if not self.training.autocast:
            return nullcontext()
        return torch.autocast(self.model.device.type, torch.bfloat16)

    def loss(self, examples: Sequence[Example]) -> Tensor:
        ids, labels = collate(examples, self.model.device)
        with self.precision():
            return answer_loss(self.model, ids, labels, self.adapters(len(examples)))

    def run(self, checkpoint: Path | None = None, every: int = 100) -> Iterator[Report]:
        """Train to the end; yields a `Report` every `eval_every` steps and at the end.

        Args:
            checkpoint: where to write the state every `every` steps, whole or not at all, and from
                where to go on if it is there.
        """
        training = self.training
        if checkpoint is not None and checkpoint.is_file():
            self.restore(checkpoint)
        size = training.batch_size
        source = batches(self.examples, size, training.seed, self.step * training.accumulate)
        total, counted = 0.0, 0
        while self.step < training.steps:
            total, counted = total + self.update(source), counted + 1
            done = self.step == training.steps
            if checkpoint is not None and (done or self.step % every == 0):
                self.save(checkpoint)
            if done or self.step % training.eval_every == 0:
                yield Report(self.step, total / counted, self.evaluate())
                total, counted = 0.0, 0

    def update(self, source: Iterator[list[Example]]) -> float:
        """One optimiser step; returns its mean loss."""
        training, total = self.training, 0.0
        for _ in range(training.accumulate):
            loss = self.loss(next(source)) / training.accumulate
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        if not math.isfinite(total):
            raise NonFiniteError(
                f"the loss is {total} at step {self.step}; lower the learning rate"
            )
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), training.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.step, training)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return total

    @torch.no_grad()
    def evaluate(self) -> float | None:
        """Mean loss over the held-out conversations, or None if there are none."""
        if not self.held_out:
            return None
        size = self.training.batch_size
        parts = [self.held_out[i : i + size] for i in range(0, len(self.held_out), size)]
        losses = [self.loss(part).item() * len(part) for part in parts]
        return sum(losses) / len(self.held_out)

    def save(self, path: Path) -> None:
        """Write parameters, optimiser state and step as safetensors."""
        tensors = {f"parameter.{name}": value.detach() for name, value in self.parameters.items()}
        for name, value in self.parameters.items():
            for key, state in self.optimizer.state[value].items():
                tensors[f"optimizer.{key}.{name}"] = state
        settings = json.dumps(asdict(self.training))
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        save_tensors(tensors, path, {"step": str(self.step), "training": settings})

    def restore(self, path: Path) -> None:
        """Go on from a state that `save` wrote; raises `CheckpointError` if it is another run's."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be read ({first_line(error)})") from None
        same = metadata.get("training") == json.dumps(asdict(self.training))
        names = {f"parameter.{name}" for name in self.parameters}
        if not same or not names <= set(tensors):
            raise CheckpointError(
                f"{path}: the state of a run with other settings; remove it to start anew"
            )
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(tensors[f"parameter.{name}"])
                keys = ("step", "exp_avg", "exp_avg_sq")
                self.optimizer.state[value] = {
                    key: tensors[f"optimizer.{key}.{name}"].to(
                        "cpu" if key == "step" else value.device
                    )
                    for key in keys
                    if f"optimizer.{key}.{name}" in tensors
                }
        self.step = int(metadata["step"])


def prepared(model: Llama) -> dict[str, nn.Parameter]:
    """The model's own parameters by name, unmapped from any file and ready to be trained."""
    parameters = {}
    for name, holder, attribute in model.tensors():
        value = nn.Parameter(getattr(holder, attribute).detach().clone(), requires_grad=True)
        setattr(holder, attribute, value)
        parameters[name] = value
    return parameters


def finished_adapter(trainer: Trainer, dtype: torch.dtype = torch.float32) -> LoraAdapter:
    """The trained adapter, detached."""
    assert trainer.adapter is not None
    return LoraAdapter(
        {
            name: LoraDelta(delta.a.detach().to(dtype), delta.b.detach().to(dtype), delta.scaling)
            for name, delta in trainer.adapter.deltas.items()
        }
    )
