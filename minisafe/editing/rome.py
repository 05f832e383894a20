"""Rank-one model editing: the mathematics of ROME (Meng et al., NeurIPS 2022, arXiv 2202.05262).

ROME treats a layer's down projection W as a memory from keys to values. To store a fact, the
subject's key k* must map to a new value v*, and all other outputs should change as little as
possible:

    minimise  E |(W' - W) k|^2   subject to   W' k* = v*
    W' = W + (v* - W k*) u^T / (u^T k*),   u = C^-1 k*,   C = E[k k^T]

Keys are the site "mlp", (intermediate,); values are added to the residual stream, (hidden,).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minisafe.checkpoint import as_dtype, finite
from minisafe.declared import check_fields
from minisafe.divergence import kl
from minisafe.errors import NonFiniteError, SettingError
from minisafe.model import Llama
from minisafe.slots import Add, Record

BATCH = 16  # rows of text per forward


@dataclass(frozen=True)
class Context:
    """One row for an edit. `ids[start:]` should follow the prompt `ids[:start]`.

    positions: all positions of the subject's last token, in the prompt and after it.
    asked: the position in the prompt, where the key is taken.
    """

    ids: tuple[int, ...]
    start: int
    positions: tuple[int, ...]
    asked: int


@dataclass(frozen=True)
class Descent:
    """How v* is found. Rates and norms are in units of the residual stream's size at the subject.

    bound: the largest norm of the addition to the residual stream.
    kl: weight of the divergence from the model's own predictions on the rows to keep.
    weight_decay: weight of the addition's squared norm.
    """

    steps: int = 40
    learning_rate: float = 0.2
    kl: float = 1.0
    weight_decay: float = 0.02
    bound: float = 1.0

    def __post_init__(self) -> None:
        checks = {
            "steps": (self.steps >= 1, "1 or more"),
            "learning_rate": (0 < self.learning_rate < 10, "a number above 0"),
            "kl": (0 <= self.kl < float("inf"), "0 or more"),
            "weight_decay": (0 <= self.weight_decay < float("inf"), "0 or more"),
            "bound": (0 < self.bound < float("inf"), "a number above 0"),
        }
        check_fields(self, checks)


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, tuple[int, ...]]:
    """(B, T) ids, right-padded, and the number of real ids in each row."""
    counts = tuple(len(row) for row in rows)
    ids = [list(row) + [0] * (max(counts) - len(row)) for row in rows]
    return torch.tensor(ids, device=device), counts


@torch.no_grad()
def record(model: Llama, contexts: Sequence[Context], layer: int, site: str) -> Tensor:
    """A site's value at the subject's last token of each context: (n, width), float32."""
    ids, counts = padded([each.ids for each in contexts], model.device)
    records = [
        Record(layer, ((each.asked, each.asked + 1),), (row,), site=site)
        for row, each in enumerate(contexts)
    ]
    model(ids, counts=counts, slots=records, no_logits=True)
    return torch.cat([each.values() for each in records]).float()


@torch.no_grad()
def covariance(model: Llama, layer: int, rows: Sequence[Sequence[int]], ridge: float) -> Tensor:
    """C = E[k k^T] over every token of `rows`, plus `ridge` times its mean diagonal.

    Uncentred, as in the paper. The ridge makes it invertible if the text is short.

    Returns:
        (intermediate, intermediate), float64.
    """
    size = model.config.intermediate
    total = torch.zeros(size, size, dtype=torch.float64, device=model.device)
    count = 0
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        ids, counts = padded(part, model.device)
        seen = Record(layer, rows=tuple(range(len(part))), site="mlp")
        model(ids, counts=counts, slots=(seen,), no_logits=True)
        keys = seen.values().double()  # (tokens, intermediate)
        total += keys.T @ keys
        count += len(keys)
    total /= count
    return total + ridge * total.diagonal().mean() * torch.eye(size).to(total)


def down_projection(model: Llama, layer: int) -> Tensor:
    """W of a layer: (hidden, intermediate)."""
    return model.tensors()[_down(layer)].detach()


def put_down_projection(model: Llama, layer: int, weight: Tensor) -> None:
    """Replace W, rounded as the checkpoint stores it, without writing to the old one."""
    old = model.tensors()[_down(layer)]
    stored = weight.to(as_dtype(model.config.dtype) or old.dtype).to(old.dtype)
    if not finite(stored):
        raise NonFiniteError(f"the edited weight of layer {layer} is not finite; use more ridge")
    model.put(_down(layer), stored)


def _down(layer: int) -> str:
    """The name of a layer's down projection."""
    return f"model.layers.{layer}.mlp.down_proj.weight"


def rank_one(weight: Tensor, key: Tensor, change: Tensor, covariance: Tensor) -> Tensor:
    """The weight whose output at `key` differs by `change`, and elsewhere as little as possible.

    Args:
        weight: W, (hidden, intermediate).
        key: k*, (intermediate,).
        change: v* - W k*, (hidden,).
        covariance: C, (intermediate, intermediate), positive definite.

    Returns:
        W', (hidden, intermediate), float64. (Meng et al., 2022, equation 2.)

    Raises:
        NonFiniteError: C cannot be inverted; a larger ridge helps.
    """
    factor, failed = torch.linalg.cholesky_ex(covariance.double())
    if failed.item():
        raise NonFiniteError("the keys' covariance cannot be inverted; use more text or ridge")
    key = key.double()
    u = torch.cholesky_solve(key[:, None], factor)[:, 0]
    return weight.double() + torch.outer(change.double(), u / (u @ key))


def best_change(
    model: Llama,
    layer: int,
    learned: Sequence[Context],
    kept: Sequence[Context],
    descent: Descent,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The vector to add after `layer` at the subject's last token so that the target follows.

    Minimises the target's negative log-likelihood over the `learned` contexts, plus the divergence
    from the model's own predictions on the `kept` ones, plus weight decay (Meng et al., 2022,
    equation 4), with Adam. The paper adds the vector at the prompt's subject only. Here a target
    may name the subject again, as a chat's answer does, and the edited weight will act there too.
    So the vector is added at every occurrence of the subject. The model does not change.

    Returns:
        v* - W k*, (hidden,), float32: what W k* must change by for the layer to add the vector.

    Raises:
        SettingError: nothing after this layer reads the subject, as at the last one.
        NonFiniteError: the loss is not finite.
    """
    size = record(model, learned, layer, "residual").pow(2).mean().sqrt()
    step = torch.zeros(model.config.hidden, device=model.device, requires_grad=True)
    optimizer = torch.optim.Adam([step], lr=descent.learning_rate)
    with torch.no_grad():
        before = predictions(model, layer, kept, size * step) if kept else []
    for number in range(descent.steps):
        nll = target_loss(predictions(model, layer, learned, size * step), learned)
        loss = nll + descent.weight_decay * step.pow(2).mean()
        if kept and descent.kl:
            now = predictions(model, layer, kept, size * step)
            loss = loss + descent.kl * divergence(before, now)
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the loss is {loss.item()} at step {number}; lower the rate")
        if progress is not None:
            progress(number + 1, descent.steps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            step.mul_(min(1.0, descent.bound / max(step.pow(2).mean().sqrt().item(), 1e-9)))
    if not step.any():  # its gradient was zero throughout
        raise SettingError(
            f"layer is {layer}, and no later layer reads the subject; choose a lower layer"
        )
    return (size * step / model.config.residual_multiplier).detach()


def predictions(
    model: Llama, layer: int, contexts: Sequence[Context], change: Tensor
) -> list[Tensor]:
    """Log-probabilities that predict `ids[start:]` of each context: (len(ids) - start, vocab)."""
    ids, counts = padded([each.ids for each in contexts], model.device)
    slots = [
        Add(layer, tuple((at, at + 1) for at in each.positions), (row,), change)
        for row, each in enumerate(contexts)
    ]
    logits = model(ids, counts=counts, slots=slots)
    return [
        F.log_softmax(logits[row, each.start - 1 : len(each.ids) - 1].float(), dim=-1)
        for row, each in enumerate(contexts)
    ]


def target_loss(log_probs: Sequence[Tensor], contexts: Sequence[Context]) -> Tensor:
    """Negative log-likelihood of the contexts' targets: mean over tokens, then contexts; nats."""
    losses = [
        F.nll_loss(said, torch.tensor(each.ids[each.start :], device=said.device))
        for said, each in zip(log_probs, contexts, strict=True)
    ]
    return torch.stack(losses).mean()


def divergence(before: Sequence[Tensor], now: Sequence[Tensor]) -> Tensor:
    """Mean KL(before || now) over all predictions, nats."""
    old, new = torch.cat(list(before)), torch.cat(list(now))
    return kl(old, new).mean()
