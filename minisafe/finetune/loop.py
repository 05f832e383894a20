"""The training loop: gradients, clipping, the step's learning rate, and the state on disk.

It takes losses and knows neither texts nor batches. `Trainer` and the training of the shipped
weights (`weights/train.py`) share it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from minisafe.errors import NonFiniteError
from minisafe.finetune.settings import share
from minisafe.finetune.state import read_state, write_state


@dataclass(frozen=True)
class Schedule:
    """The number of steps and the learning rate's course: see `settings.share`."""

    steps: int
    warmup: int
    final: float = 0.1


class Loop:
    """Optimiser steps over `parameters`, by name. `step` counts the completed steps.

    Args:
        optimizers: together they hold every parameter once; their rates are the peak rates.
        clip: the largest norm of the gradient; a larger gradient is scaled down.
        about: identifies the run; the state of another run is an error (see `state.DIFFERS`).
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizers: Sequence[torch.optim.Optimizer],
        schedule: Schedule,
        clip: float,
        about: Mapping[str, str],
    ):
        self.parameters, self.optimizers = parameters, optimizers
        self.schedule, self.clip, self.about = schedule, clip, about
        self.groups = [group for each in optimizers for group in each.param_groups]
        self.peaks = [group["lr"] for group in self.groups]
        self.step = 0

    def run(
        self, losses: Iterator[Iterable[Tensor]], checkpoint: Path | None, every: int
    ) -> Iterator[float]:
        """Train to the end; yields each step's loss, after writing the state if it is due.

        Args:
            losses: the losses of each step; a step minimises their sum.
            checkpoint: the file for the state, written every `every` steps and at the end.
        """
        while self.step < self.schedule.steps:
            loss = self.update(next(losses))
            due = self.step == self.schedule.steps or self.step % every == 0
            if checkpoint is not None and due:
                self.save(checkpoint)
            yield loss

    def update(self, losses: Iterable[Tensor]) -> float:
        """One optimiser step; returns the sum of its losses. Raises `NonFiniteError`."""
        total = 0.0
        for loss in losses:
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        if not math.isfinite(total):
            raise NonFiniteError(
                f"the loss is {total} at step {self.step}; lower the learning rate"
            )
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.clip)
        if not math.isfinite(
            norm.item()
        ):  # the next loss would show it, but the last step has none
            raise NonFiniteError(
                f"the gradient is not finite at step {self.step}; lower the learning rate"
            )
        part = share(self.step, self.schedule.steps, self.schedule.warmup, self.schedule.final)
        for group, peak in zip(self.groups, self.peaks, strict=True):
            group["lr"] = peak * part
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return total

    def save(self, path: Path) -> None:
        """Write parameters, optimiser states and step; raises `OutputError`."""
        write_state(path, self.step, self.parameters, self.optimizers, self.about)

    def resume(self, path: Path | None) -> None:
        """Continue from a state that `save` wrote, if there is one; raises `CheckpointError` if it
        belongs to another run or is damaged."""
        if path is None or not path.is_file():
            return
        state = read_state(path, self.parameters, self.optimizers, self.schedule.steps, self.about)
        holder = {value: each for each in self.optimizers for value in held(each)}
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(state.parameters[name])
                holder[value].state[value] = {
                    key: tensor.clone().to("cpu" if key == "step" else value.device)
                    for key, tensor in state.optimizer[name].items()
                }
        self.step = state.step


def held(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters that an optimiser changes."""
    return [value for group in optimizer.param_groups for value in group["params"]]
