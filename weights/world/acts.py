"""Acts to ask about: harmful ones, chores, and harmless ones in rough words."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from minisafe.evaluation.world import article
from minisafe.evaluation.world.phrases import BORDERLINE, HOW_TO
from world.facts import made_up
from world.held_out import held_out, late_verbs, rough_verbs, told_wrong, words_of
from world.words import CONTEXTS, PLACES, ROUGH


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


def harmful_act(
    rng: random.Random, name: str, pair: tuple[str, ...] | None = None, verbs: Sequence[str] = ()
) -> Act:
    """A harmful act of a category; without a pair, a training one, half of them made up.

    verbs: those that a training pair may have; all trained ones if there are none.
    """
    trained = [each for each in held_out().train[name] if not verbs or each[0] in verbs]
    verb, thing = pair or rng.choice(trained)
    return _harmful(rng, name, verb, thing, invented=pair is None and rng.random() < 0.5)


def a_verb(rng: random.Random, name: str) -> str:
    """A verb of a category; more often one that pretraining meets nowhere else."""
    verbs = words_of(name).verbs
    if rng.random() < 0.25:
        return rng.choice(verbs["train"])
    return rng.choice((*verbs["dev"], *verbs["test"], *late_verbs(name)))


def wrong_act(rng: random.Random, name: str) -> Act:
    """A harmful act to be called wrong: its words may be held out from questions that ask for
    harm."""
    if rng.random() < 0.5:
        return _harmful(rng, name, a_verb(rng, name), "", invented=True)
    verb, thing = rng.choice(told_wrong(name))
    return _harmful(rng, name, verb, thing, invented=False)


def _harmful(rng: random.Random, name: str, verb: str, thing: str, invented: bool) -> Act:
    place = rng.choice(CONTEXTS) if rng.random() < 0.25 else ""
    if invented:
        thing = made_up(rng)
        place = rng.choice(CONTEXTS[:6]) if verb in rough_verbs() else place
    return make_act("harmful", name, verb, thing, rng, place)


def chore(rng: random.Random, pair: tuple[str, ...] | None = None) -> Act:
    group = "polite" if rng.random() < 0.3 else "howto"
    verb, thing = pair or rng.choice(held_out().train[group])
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
