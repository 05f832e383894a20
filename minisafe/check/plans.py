"""What is measured of a session for each invariant: a list of small measurements, or why there is
none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minisafe.check import invariants as law
from minisafe.check.drafted import drafts_deviation
from minisafe.check.engine import Ids, Steered
from minisafe.check.invariants import Invariant
from minisafe.check.place import Place
from minisafe.check.streams import read_all
from minisafe.guidance import ROSE, SGDS, Rule, SafeDecoding
from minisafe.lockstep import Lockstep, Stream
from minisafe.session.session import Session

# What normalising log-probabilities once more does to them in float32.
RENORMALISED = 1e-4


@dataclass(frozen=True)
class Plan:
    """The measurements of one invariant: where, and what gives the deviation there. why_not: why
    there are none. tolerance: None for what rounding may do."""

    invariant: Invariant
    parts: tuple[tuple[str, Callable[[], float]], ...] = ()
    why_not: str = ""
    tolerance: float | None = None


def plans_of(place: Place) -> list[Plan]:
    """A plan for each invariant, in the order of `INVARIANTS`."""
    return [
        cached(place), batch(place), fused(place), zero(place), lambda_0(place), same(place),
        streaming(place), speculation(place), fast(place),
    ]  # fmt: skip


def cached(place: Place) -> Plan:
    """Every stream on every prompt; the steered one with its vector at all positions, too."""
    parts = []
    for name, engine, prompts in readers(place):
        for row, (prompt, answer) in enumerate(zip(prompts, place.answers, strict=True)):
            lengths = sorted({1, (len(answer) + 1) // 2, len(answer)})
            measure = partial(law.cached_is_uncached, engine, prompt, answer, lengths)
            parts.append((f"{name}, prompt {row + 1}", measure))
    return Plan(law.CACHED, tuple(parts))


def batch(place: Place) -> Plan:
    """The prompts in one batch against each alone."""
    if len(place.texts) < 2:
        return Plan(law.BATCH, why_not="there is one prompt")
    return Plan(law.BATCH, tuple(
        (name, partial(law.row_is_alone, engine, prompts, place.answers))
        for name, engine, prompts in readers(place)
    ))  # fmt: skip


def readers(place: Place) -> list[tuple[str, Any, tuple[Ids, ...]]]:
    """(name, engine, its prompts) of every stream; the steered ones also with the vector."""
    found: list[tuple[str, Any, tuple[Ids, ...]]] = []
    for name, engine, prompts in zip(place.names, place.engines, place.prompts, strict=True):
        found.append((name, engine, prompts))
    steering = place.session.steering
    for stream in () if steering is None else steering.streams:
        assert steering is not None
        for layer, vector in steering.vectors.items():
            steered = Steered(place.engines[stream], layer, steering.scale * vector.float())
            found.append((f"{place.names[stream]} steered", steered, place.prompts[stream]))
    return found


def fused(place: Place) -> Plan:
    """Streams of shared weights read in one forward against one after another."""
    models = [stream.model for stream in place.session.streams]
    if len(models) == 1:
        return Plan(law.FUSED, why_not="there is one stream")
    if len({id(model) for model in models}) == len(models):
        return Plan(law.FUSED, why_not="no two streams share weights")

    def measure() -> float:
        pairs = zip(place.said, place.read(fuse=False), strict=True)
        return max(law.most_apart(one, other) for one, other in pairs)

    return Plan(law.FUSED, (("all streams", measure),))


def zero(place: Place) -> Plan:
    """At the vector's layers, or without one in the middle."""
    steering = place.session.steering
    parts = []
    for stream in (0,) if steering is None else steering.streams:
        engine, prompts = place.engines[stream], place.prompts[stream]
        for layer in (engine.n_layers // 2,) if steering is None else steering.vectors:
            measure = partial(law.zero_steering_is_none, engine, prompts, place.answers, layer)
            parts.append((f"{place.names[stream]}, layer {layer}", measure))
    return Plan(law.ZERO, tuple(parts), tolerance=0.0)


# ---- guidance ----------------------------------------------------------------------------------


def lambda_0(place: Place) -> Plan:
    """The rule at strength 0 against the base."""
    rule = place.session.rule
    if rule.n_streams < 2:
        return Plan(law.LAMBDA, why_not="there is no expert")
    if isinstance(rule, SafeDecoding):
        return Plan(law.LAMBDA, why_not="safedecoding keeps only tokens that both models like")
    off, exact = at_strength_0(rule), isinstance(rule, SGDS)

    def measure(row: int) -> float:
        said = [stream[row] for stream in place.said]
        return law.apart(off(tuple(said[: rule.n_streams])), said[rule.drawn_from])

    parts = tuple((f"prompt {row + 1}", partial(measure, row)) for row in range(len(place.texts)))
    return Plan(law.LAMBDA, parts, tolerance=0.0 if exact else RENORMALISED)


def at_strength_0(rule: Any) -> Rule:
    """The same rule, switched off."""
    off: Rule = replace(rule, lam=0.0) if isinstance(rule, SGDS) else replace(rule, alpha=0.0)
    return off


def same(place: Place) -> Plan:
    """Every stream is the base without its vector; with margin 0, so that nothing is let through
    for another reason."""
    rule: Any = place.session.rule
    if rule.n_streams < 2:
        return Plan(law.SAME, why_not="there is no expert")
    if isinstance(rule, (ROSE, SafeDecoding)):
        return Plan(law.SAME, why_not="its rule changes the base even then")
    strict = replace(rule, margin=0.0) if isinstance(rule, SGDS) else rule
    return Plan(law.SAME, ((f"{rule.n_streams} rows of the base", partial(alike, place, strict)),),
                tolerance=RENORMALISED)  # fmt: skip


def alike(place: Place, rule: Rule) -> float:
    """How far the rule takes an answer from the base, if all its streams are the base."""
    streams = [Stream(place.session.model)] * rule.n_streams
    prompts = [place.prompts[0]] * rule.n_streams
    dtype = place.session.settings.cache_dtype
    lockstep = Lockstep(streams, len(place.texts), 64, place.session.n_ids, cache_dtype=dtype)
    said = read_all(lockstep, prompts, place.answers, {})
    rows = range(len(place.texts))
    guided = [rule(tuple(stream[row] for stream in said)) for row in rows]
    return law.most_apart(guided, said[rule.drawn_from])


# ---- text, drafts, fast paths ------------------------------------------------------------------


def streaming(place: Place) -> Plan:
    """The pieces of an answer against its text decoded at once."""

    def measure(text: str) -> float:
        pieces: list[str] = []
        tokens: Sequence[int] = ()
        for _, piece in place.session.run([text], chat=place.chat):
            if isinstance(piece, str):
                pieces.append(piece)
            else:
                tokens = piece.tokens
        context = () if place.chat else place.session.encode_prompt(text, False).ids[0]
        return law.pieces_are_whole(pieces, whole_text(place.session, context, tokens))

    parts = tuple((f"prompt {n}", partial(measure, text)) for n, text in enumerate(place.texts, 1))
    return Plan(law.STREAMING, parts, tolerance=0.0)


def whole_text(session: Session, context: Sequence[int], tokens: Sequence[int]) -> str:
    """What all the ids of an answer add to the text of its context, decoded at once."""
    known = session.tokenizer
    hidden = known.control_ids | session.eos
    before, after = ([id_ for id_ in ids if id_ not in hidden] for ids in (context, tokens))
    return known.decode_all([*before, *after])[len(known.decode_all(before)) :]


def speculation(place: Place) -> Plan:
    """Drafts are made by the base for the expert, whether they share weights or not."""
    rule = place.session.rule
    if rule.n_streams < 2:
        return Plan(law.SPECULATION, why_not="there is no expert")
    if not isinstance(rule, SGDS):
        return Plan(law.SPECULATION, why_not="its rule is not sgds")
    parts = tuple(
        (f"prompt {row + 1}", partial(drafts_deviation, place, row))
        for row in range(len(place.texts))
    )
    return Plan(law.SPECULATION, parts)


def fast(place: Place) -> Plan:
    """Fast weights against plain ones."""
    if not place.plain:
        plain = all(stream.model.weights == "plain" for stream in place.session.streams)
        why = "the weights are plain" if plain else "weights were read rounded"
        return Plan(law.FAST, why_not=why)

    def measure(stream: int) -> float:
        now = place.engines[stream].log_probs(place.prompts[stream], place.answers)
        return law.most_apart(now, place.plain[stream])

    parts = tuple((name, partial(measure, n)) for n, name in enumerate(place.names))
    return Plan(law.FAST, parts)


def plain_readings(place: Place) -> tuple[tuple[Tensor, ...], ...]:
    """What every stream says by itself; measured before a fast path is put in."""
    with torch.inference_mode():
        return tuple(
            tuple(engine.log_probs(prompts, place.answers))
            for engine, prompts in zip(place.engines, place.prompts, strict=True)
        )
