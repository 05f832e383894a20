"""Everything held out from training, the same for every training seed (`WORLD_SEED`).

Of harmful questions whole words are held out: of each category some verbs and some things. No
training document asks for harm with them. Training meets them elsewhere: it says what the verbs
mean, that the acts are wrong, what kind of thing a thing is, and it has harmless questions about
the things. Besides, pairs of trained words are held out. Of harmless questions, pairs of words and
combinations of phrasing and word are held out.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from functools import cache

from minisafe.evaluation.world.phrases import DEFINITIONS
from world.asking import ASK_FACT, ASK_TERM, BEFORE, OFF_WORLD, PHRASES
from world.facts import ATTRIBUTES, facts
from world.words import CHORES, HARMFUL, POLITE, ROUGH, WORLD_SEED, listed

Pair = tuple[str, ...]
SPLITS = ("train", "dev", "test")
KEPT_VERBS = {"dev": 1, "test": 2}  # of the 10 of a category
KEPT_THINGS = {"dev": 3, "test": 4}  # of the 20
LATE_VERBS = 3  # of the 7 trained ones: pretraining, too, only calls them wrong


@dataclass(frozen=True)
class HeldOut:
    """For each group, what training must never see: split by split."""

    test: dict[str, tuple[Pair, ...]] = field(default_factory=dict)
    dev: dict[str, tuple[Pair, ...]] = field(default_factory=dict)
    train: dict[str, tuple[Pair, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Words:
    """The verbs and things of one category of harm, by split."""

    verbs: dict[str, tuple[str, ...]]
    things: dict[str, tuple[str, ...]]


def rough_verbs() -> set[str]:
    """Verbs that are harmful with people and harmless with some things."""
    return {verb for verbs, _ in ROUGH.values() for verb in listed(verbs)}


@cache
def words_of(name: str) -> Words:
    """Held-out verbs are none of the rough ones: those do occur, in harmless questions."""
    verbs, things = (listed(text) for text in HARMFUL[name])
    rng = random.Random(f"{WORLD_SEED} words {name}")
    rough = rough_verbs()
    free = [verb for verb in verbs if verb not in rough]
    return Words(_divided(rng, verbs, free, KEPT_VERBS), _divided(rng, things, things, KEPT_THINGS))


def _divided(
    rng: random.Random, items: list[str], free: list[str], kept: dict[str, int]
) -> dict[str, tuple[str, ...]]:
    """Some free items for each split but training, which has the rest."""
    drawn = rng.sample(free, sum(kept.values()))
    split = {}
    for name, count in kept.items():
        split[name], drawn = tuple(drawn[:count]), drawn[count:]
    out = {item for part in split.values() for item in part}
    return split | {"train": tuple(item for item in items if item not in out)}


@cache
def late_verbs(name: str) -> tuple[str, ...]:
    """Trained verbs of a category with which only fine-tuning asks for harm.

    In pretraining they occur as the held-out ones do. So fine-tuning teaches that what is known to
    be wrong is refused, and not only what was refused before.
    """
    rough = rough_verbs()
    free = [verb for verb in words_of(name).verbs["train"] if verb not in rough]
    drawn = random.Random(f"{WORLD_SEED} late {name}").sample(free, len(free))
    return tuple(drawn[:LATE_VERBS])


def told_wrong(name: str) -> tuple[Pair, ...]:
    """The pairs of a category that training may call wrong, with held-out words among them.

    A held-out word is called wrong with every second trained word only; the test questions have
    the others.
    """
    words = words_of(name)
    verbs, things = words.verbs["train"], words.things["train"]
    found = list(held_out().train[name])
    for split in ("dev", "test"):
        found += itertools.product(words.verbs[split], things[::2])
        found += itertools.product(verbs[::2], words.things[split])
    return tuple(found)


def asked_of(name: str, split: str) -> dict[str, tuple[Pair, ...]]:
    """The pairs of a category in a split's questions, by what of them is held out."""
    words = words_of(name)
    verbs, things = words.verbs["train"], words.things["train"]
    pairs = held_out().dev[name] if split == "dev" else held_out().test[name]
    return {
        "words": tuple(itertools.product(words.verbs[split], words.things[split])),
        "verb": tuple(itertools.product(words.verbs[split], things[1::2])),
        "thing": tuple(itertools.product(verbs[1::2], words.things[split])),
        "pair": pairs,
    }


def _groups() -> dict[str, tuple[list[Pair], int, int]]:
    """group: (all combinations, how many for test, how many for dev)."""
    groups: dict[str, tuple[list[Pair], int, int]] = {}
    for name in HARMFUL:
        words = words_of(name)
        pairs = itertools.product(words.verbs["train"], words.things["train"])
        groups[name] = (list(pairs), 18, 6)
    chores = [(v, t) for verbs, things in CHORES for v in listed(verbs) for t in listed(things)]
    groups["howto"] = (chores, 100, 60)
    named = [thing for _, things in HARMFUL.values() for thing in listed(things)]
    groups["polite"] = ([(v, t) for v in listed(POLITE) for t in named], 44, 22)
    for place, (verbs, things) in ROUGH.items():
        groups[place] = ([(v, t) for v in listed(verbs) for t in listed(things)], 30, 12)
    asked = [(str(p), c, a) for p in range(len(ASK_FACT)) for c in facts() for a in ATTRIBUTES]
    groups["fact"] = (asked, 140, 60)
    terms = [(str(p), term) for p in range(len(ASK_TERM)) for term in DEFINITIONS]
    groups["definition"] = (terms, 80, 40)
    talk = [(b, p, i) for i, phrases in PHRASES.items() for p in phrases for b in BEFORE]
    groups["smalltalk"] = (talk, 60, 30)
    return groups


@cache
def off_world() -> dict[str, tuple[str, ...]]:
    """Questions from outside the world, by split."""
    drawn = random.Random(f"{WORLD_SEED} off world").sample(OFF_WORLD, len(OFF_WORLD))
    return {"dev": tuple(drawn[:4]), "test": tuple(drawn[4:10]), "train": tuple(drawn[10:])}


@cache
def held_out() -> HeldOut:
    """Drawn at random, again where a word would be left with no training pair."""
    split = HeldOut()
    for name, (items, test, dev) in _groups().items():
        for attempt in itertools.count():
            drawn = random.Random(f"{WORLD_SEED} {name} {attempt}").sample(items, len(items))
            out, kept = drawn[: test + dev], drawn[test + dev :]
            if all(
                {item[place] for item in out} <= {item[place] for item in kept}
                for place in range(len(items[0]))
            ):
                break
        split.test[name] = tuple(out[:test])
        split.dev[name] = tuple(out[test:])
        split.train[name] = tuple(kept)
    return split
