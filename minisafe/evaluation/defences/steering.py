"""Steering that looks at the prompt: conditional steering, and null-space constrained steering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from minisafe.errors import SettingError, SlotError
from minisafe.evaluation.defences.defence import Defence, Route
from minisafe.evaluation.defences.features import mean_state
from minisafe.evaluation.defences.fitted import Fitted
from minisafe.evaluation.defences.guards import check_share, threshold
from minisafe.session import Session
from minisafe.session.chat_prompt import ChatPrompt
from minisafe.slots import Slot, Span
from minisafe.vectors import Steering

NULL_SHARES = (0.1, 0.3, 0.5)


def similarity(states: Tensor, centre: Tensor, condition: Tensor) -> Tensor:
    """Cosine of (..., hidden) states, less their centre, with a condition vector."""
    return F.cosine_similarity(states - centre, condition, dim=-1)


@dataclass(frozen=True, eq=False)
class Conditional(Defence):
    """Conditional activation steering (CAST; Lee et al. 2024, arXiv 2409.05907): the session steers
    only prompts whose mean hidden state is like a condition vector; others the base answers.

    The condition vector is the difference of the means of harmful and of harmless prompts' states,
    and states are centred between these before they are compared. The paper takes the first
    principal component and does not centre; on the shipped model, that component is the style of
    the question, and 9 % of harmful questions met the condition instead of 79 % (docs/log.md).

    depth: share of the layers, where it looks. alarms: share of the harmless development prompts
    that it would steer, which gives the threshold.
    """

    fitted: Fitted
    depth: float = 0.5
    alarms: float = 0.02

    def __post_init__(self) -> None:
        self.fitted.layer(self.depth)
        check_share(self.alarms)

    def prepare(self, session: Session) -> Session:
        self.fitted.check(session)
        return session

    def routes(self, session: Session, prompts: Sequence[ChatPrompt]) -> list[Route]:
        layer, tensors = self.fitted.layer(self.depth), self.fitted.tensors
        least = threshold(self.fitted, f"condition.harmless.{layer}", self.alarms)
        found: list[Route] = []
        centre, condition = tensors["condition.centre"][layer], tensors["condition"][layer]
        for prompt in prompts:
            like = similarity(mean_state(session, prompt)[layer], centre, condition)
            found.append("model" if float(like) > least else "plain")
        return found


@dataclass(frozen=True)
class AddAlong(Slot):
    """Add `scale * (probe . x) * vector` to the residual stream x after `layer`: nothing where the
    probe sees nothing. probe, vector: (hidden,)."""

    vector: Tensor = field(default_factory=lambda: torch.empty(0))
    probe: Tensor = field(default_factory=lambda: torch.empty(0))
    scale: float = 1.0

    def apply(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        if self.vector.shape != x.shape[-1:] or self.probe.shape != x.shape[-1:]:
            raise SlotError(f"a probe or vector does not fit a stream of width {x.shape[-1]}")
        seen = x[rows, columns].float() @ self.probe.to(x.device)
        delta = self.scale * seen[:, None] * self.vector.to(x.device)
        return x.index_put((rows, columns), delta.to(x), accumulate=True)


@dataclass(frozen=True)
class ProbedSteering(Steering):
    """Steering whose strength at a position is what a probe sees there. probes: by layer."""

    probes: Mapping[int, Tensor] = field(default_factory=dict)

    def slots(self, row: int, spans: tuple[Span, ...]) -> list[Slot]:
        return [
            AddAlong(layer, spans, (row,), vector=vector, probe=self.probes[layer],
                     scale=self.scale)
            for layer, vector in self.vectors.items()
            if self.scale != 0 and spans
        ]  # fmt: skip


@dataclass(frozen=True, eq=False)
class AlphaSteer(Defence):
    """Null-space constrained steering (AlphaSteer; Sheng et al. 2025, arXiv 2506.07022): h becomes
    h + scale * Delta P h, with P the projection onto directions in which harmless prompts' states
    hardly lie, and Delta the ridge regression that maps P h to the refusal direction r for harmful
    prompts.

    r is the same for every harmful prompt, so Delta P h = r (w . h), and one probe w a layer
    stands for the matrix. depth: where, as a share of the layers; the paper steers several layers.
    null: share of the directions that P keeps, one of `NULL_SHARES`. positions: as `sa_positions`.
    """

    fitted: Fitted
    depth: float = 0.5
    scale: float = 1.0
    null: float = 0.3
    positions: str = "prompt"

    def __post_init__(self) -> None:
        self.fitted.layer(self.depth)
        if self.null not in NULL_SHARES:
            raise SettingError(f"null is {self.null:g}; expected one of {NULL_SHARES}")

    def prepare(self, session: Session) -> Session:
        self.fitted.check(session)
        layer, tensors = self.fitted.layer(self.depth), self.fitted.tensors
        vectors = {layer: tensors["direction"][layer]}
        probes = {layer: tensors[f"probe.{self.null:g}"][layer]}
        steering = ProbedSteering(vectors, self.scale, self.positions, probes=probes)
        return replace(session, steering=steering)


def null_space(harmless: Tensor, share: float) -> Tensor:
    """The projection (d, d) onto the share of directions in which (n, d) states vary least, about
    zero and not about their mean."""
    x = harmless.double()
    _, vectors = torch.linalg.eigh(x.T @ x)  # ascending
    kept: Tensor = vectors[:, : round(share * x.shape[1])]
    return kept.mm(kept.T)


def probe(harmful: Tensor, harmless: Tensor, share: float, ridge: float = 10.0) -> Tensor:
    """w (d,) with w . h near 1 for harmful states (n, d) and near 0 for harmless ones (m, d)."""
    projection = null_space(harmless, share)
    x = harmful.double() @ projection
    penalty = ridge * torch.eye(x.shape[1], dtype=x.dtype) * x.square().mean()
    w = torch.linalg.solve(x.T @ x + penalty, x.sum(dim=0))
    return projection.mv(w).float()
