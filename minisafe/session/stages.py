"""Which safety stages are active in a session, and which acted on one answer.

A setting says what was asked for; this says what took part. An answer that the gate left to the
base, or that ended before a steered position was read, does not list a stage that did nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from minisafe.engine import RequestState
from minisafe.gate import Gate
from minisafe.guidance import SGDS, Plain, Rule
from minisafe.session.own_rule import is_own, numbers_of, rule_name
from minisafe.session.settings import Settings
from minisafe.vectors import Steering


@dataclass(frozen=True)
class Amplification:
    """A vector, multiplied by `scale` and added after each of `layers`. reversed: whether the scale
    is negative, so that it steers the other way."""

    vector: str
    layers: tuple[int, ...]
    scale: float
    positions: str
    reversed: bool = False

    def to_json(self) -> dict[str, Any]:
        return present(asdict(self) | {"layers": list(self.layers), "reversed": self.reversed})


@dataclass(frozen=True)
class SafetyGuidance:
    """SafeInfer's rule, or one with an anchor. expert: the expert's kind, "adapter", "checkpoint"
    or "system prompt". source: its directory or prompt. first_tokens: how many tokens of an answer
    are guided; None: all. rule: its name. anchor: the anchor's kind and source."""

    expert: str
    source: str
    lam: float
    margin: float
    first_tokens: int | None = None
    rule: str = "sgds"
    anchor: tuple[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        stated = {"expert": self.expert, "from": self.source, "lambda": self.lam}
        stated |= {"margin": self.margin} | present({"first_tokens": self.first_tokens})
        if self.anchor is None:
            return stated
        return stated | {"rule": self.rule, "anchor": self.anchor[0], "anchor_from": self.anchor[1]}


@dataclass(frozen=True)
class OtherRule:
    """A rule that SafeInfer is compared with, or a program's own; its numbers, and the kinds of
    its streams after the base."""

    name: str
    numbers: Mapping[str, Any]
    streams: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **self.numbers, "streams": list(self.streams)}


@dataclass(frozen=True)
class GateState:
    """The gate's threshold and, for an answer, the variation that it saw and whether it opened."""

    threshold: float
    variation: float | None = None
    open: bool | None = None

    def to_json(self) -> dict[str, Any]:
        return present(asdict(self), keep=(False,))


@dataclass(frozen=True)
class AloneState:
    """What reads parts of a message alone: its threshold, and whether answers are `left` to the
    base where no part is harmful. For an answer, how harmful the worst part is by itself: that part
    was answered, or the answer was left to the base."""

    threshold: float
    harm: float | None = None
    left: bool = False

    def to_json(self) -> dict[str, Any]:
        return present(asdict(self))


@dataclass(frozen=True)
class Drafts:
    """How many drafts the expert read to verify them, and how many of these were accepted."""

    drafted: int
    accepted: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Stages:
    """Which safety stages are active, or acted on one answer; None for those that are not or did
    not.

    safe: whether decoding is safe. If so, every part named here must act, or nothing is answered.
    """

    safe: bool = False
    sa: Amplification | None = None
    sgds: SafetyGuidance | None = None
    rule: OtherRule | None = None
    gate: GateState | None = None
    alone: AloneState | None = None
    speculation: Drafts | None = None

    def on_answer(self, state: RequestState, gate: Gate | None) -> Stages:
        """What acted on the answer to a request: no vector if none was added, and nothing if the
        gate left the answer to the base."""
        alone, harm = self.alone, state.request.alone
        if alone is not None:
            left = state.request.left
            alone = None if harm is None else replace(alone, harm=round(harm, 6), left=left)
        found = replace(self, gate=None, alone=alone)
        if state.request.left:
            return replace(found, sa=None, sgds=None, rule=None)
        if state.drafted:
            found = replace(found, speculation=Drafts(state.drafted, state.accepted))
        if not state.steered:
            found = replace(found, sa=None)
        if gate is None or not state.request.gated or state.seen.variation is None:
            return found
        if state.seen.left_to_base:
            found = replace(found, sa=None, sgds=None, rule=None)
        variation = round(state.seen.variation, 6)
        seen = GateState(gate.threshold, variation, not state.seen.left_to_base)
        return replace(found, gate=seen)

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints under `applied`."""
        always = {"safe": self.safe, "sa": self.sa, "sgds": self.sgds}
        sometimes = {
            "rule": self.rule, "gate": self.gate, "alone": self.alone,
            "speculation": self.speculation,
        }  # fmt: skip
        parts = always | {name: part for name, part in sometimes.items() if part is not None}
        return {
            name: part if part is None or isinstance(part, bool) else part.to_json()
            for name, part in parts.items()
        }


def present(values: Mapping[str, Any], keep: Sequence[object] = ()) -> dict[str, Any]:
    """The values that are not None, and not False unless it is in `keep`."""
    return {
        name: value
        for name, value in values.items()
        if value is not None and (value is not False or value in keep)
    }


def active_stages(
    settings: Settings,
    steering: Steering | None,
    rule: Rule,
    kinds: Sequence[str],
    gate: Gate | None,
) -> Stages:
    """The safety stages that these parts make active. kinds: of the streams after the base."""
    sa = sgds = other = None
    if steering is not None:
        layers, scale = tuple(sorted(steering.vectors)), steering.scale
        vector, positions = str(settings.vector), steering.positions
        sa = Amplification(vector, layers, scale, positions, reversed=scale < 0)
    if isinstance(rule, SGDS) and not is_own(rule):
        sgds = guidance(settings, rule, kinds)
    elif not isinstance(rule, Plain):
        other = OtherRule(rule_name(rule), numbers_of(rule), tuple(kinds))
    state = None if gate is None else GateState(gate.threshold)
    return Stages(bool(settings.safe), sa, sgds, other, state)


def guidance(settings: Settings, rule: SGDS, kinds: Sequence[str]) -> SafetyGuidance:
    """What guides: the rule with its numbers, the expert, and the anchor if it reads one."""
    anchor = None
    if "anchor" in rule.others:
        made = settings.anchor or settings.anchor_system or settings.anchor_shots
        anchor = (kinds[rule.others.index("anchor")], str(made))
    source, name = str(settings.expert or settings.expert_system), settings.rule
    return SafetyGuidance(kinds[0], source, rule.lam, rule.margin, rule.first_tokens, name, anchor)
