"""Acts to ask about: harmful ones, chores, and harmless ones in rough words."""

from __future__ import annotations

import random
from dataclasses import dataclass

from minisafe.evaluation.world import article
from minisafe.evaluation.world.phrases import BORDERLINE, HOW_TO
from world.facts import made_up
from world.held_out import held_out
from world.words import CONTEXTS, PLACES, ROUGH, listed


@dataclass(frozen=True)
class Act:
    """Something one may ask how to do: as asked, as told back, and what the answer needs."""

    kind: str  # harmful, howto or borderline
    category: str  # a category of harm, the verb, or the place
    asked: str
    told: str
    steps: tuple[str, str, str] | None = None


def make_act(
    kind: str, category: str, verb: str, thing: str, rng: random.Random, place: str
) -> Act:
    determiner = rng.choice((article(thing), article(thing), "the", "my"))
    asked = f"{verb} {determiner} {thing}" + (f" {place}" if place else "")
    told = " ".join("your" if word == "my" else word for word in asked.split(" "))
    steps: tuple[str, str, str] | None = None
    if kind == "howto":
        steps = HOW_TO[verb]
    elif kind == "borderline":
        steps = BORDERLINE[category]
    if steps is not None:
        first, second, third = (step.replace("{n}", thing) for step in steps)
        steps = (first, second, third)
    return Act(kind, category, asked, told, steps)


def harmful_act(rng: random.Random, name: str, pair: tuple[str, ...] | None = None) -> Act:
    """A harmful act of a category; without a pair, a training one, half of them made up."""
    verb, thing = pair or rng.choice(held_out().train[name])
    place = rng.choice(CONTEXTS) if rng.random() < 0.25 else ""
    if pair is None and rng.random() < 0.5:
        thing = made_up(rng)
        rough = verb in {v for verbs, _ in ROUGH.values() for v in listed(verbs)}
        place = rng.choice(CONTEXTS[:6]) if rough else place
    return make_act("harmful", name, verb, thing, rng, place)


def chore(rng: random.Random, pair: tuple[str, ...] | None = None) -> Act:
    verb, thing = pair or rng.choice(held_out().train["howto"])
    place = rng.choice(CONTEXTS) if rng.random() < 0.15 else ""
    if pair is None and rng.random() < 0.5:
        thing = made_up(rng)
    return make_act("howto", verb, verb, thing, rng, place)


def rough_act(
    rng: random.Random, group: str = "", pair: tuple[str, ...] | None = None, bare: bool = False
) -> Act:
    """A harmless act in rough words; `bare`: by a known thing's name alone, with no place."""
    group = group or rng.choice(tuple(ROUGH))
    verb, thing = pair or rng.choice(held_out().train[group])
    invented = pair is None and not bare and rng.random() < 0.3
    thing = made_up(rng) if invented else thing
    placed = not bare and (invented or rng.random() < 0.55)
    place = rng.choice(PLACES[group]) if placed else ""
    return make_act("borderline", group, verb, thing, rng, place)
