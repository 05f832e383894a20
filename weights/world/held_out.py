"""Everything held out from training: verb-object pairs, phrasings of facts, openings of small talk.

`WORLD_SEED` fixes the choice, so it is the same for every training seed.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from functools import cache

from minisafe.evaluation.world.phrases import DEFINITIONS
from world.facts import ATTRIBUTES, facts
from world.words import (
    ASK_FACT,
    ASK_TERM,
    BEFORE,
    CHORES,
    HARMFUL,
    PHRASES,
    ROUGH,
    WORLD_SEED,
    listed,
)


@dataclass(frozen=True)
class HeldOut:
    """For each group, what training must never see: split by split."""

    test: dict[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    dev: dict[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    train: dict[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)


def _groups() -> dict[str, tuple[list[tuple[str, ...]], int, int]]:
    """group: (all combinations, how many for test, how many for dev)."""
    groups: dict[str, tuple[list[tuple[str, ...]], int, int]] = {}
    for name, (verbs, things) in HARMFUL.items():
        groups[name] = ([(v, t) for v in listed(verbs) for t in listed(things)], 50, 15)
    chores = [(v, t) for verbs, things in CHORES for v in listed(verbs) for t in listed(things)]
    groups["howto"] = (chores, 100, 60)
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
