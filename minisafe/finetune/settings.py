"""How to train, and the learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from minisafe.declared import check_fields

LORA_TARGETS = ("q_proj", "v_proj")


@dataclass(frozen=True)
class Training:
    """How to train. `steps` are optimiser steps, each over `batch_size * accumulate` examples.

    lora_rank 0 trains every weight. `autocast` computes in bf16 and keeps the weights' dtype.
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
            "weight_decay": (0 <= self.weight_decay < 10, "0 or more"),
            "clip": (self.clip > 0, "a number above 0"),
            "max_length": (self.max_length >= 2, "2 or more"),
            "lora_rank": (self.lora_rank >= 0, "0 (full) or more"),
            "lora_alpha": (0 < self.lora_alpha < math.inf, "a number above 0"),
            "lora_targets": (bool(self.lora_targets), "one module or more"),
            "held_out": (0 <= self.held_out < 1, "a share below 1"),
            "eval_every": (self.eval_every >= 1, "1 or more"),
            "seed": (self.seed >= 0, "0 or more"),
        }
        check_fields(self, checks)


def share(step: int, steps: int, warmup: int, final: float = 0.1) -> float:
    """The share of the peak rate at a step counted from 0: linear warm-up, then a cosine down to
    `final` at the end."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))


def rate(step: int, training: Training) -> float:
    """Learning rate of a step counted from 0; it ends at a tenth of the peak."""
    return training.learning_rate * share(step, training.steps, training.warmup)
