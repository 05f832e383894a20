"""The training conversations: for pretraining, and for fine-tuning into a fragile base."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from world.acts import harmful_act, rough_act
from world.turns import Turn, a_style, act_turn, benign_turns, small_talk_turn
from world.words import CAREFUL, CARELESS, HARMFUL, NEUTRAL, ROUGH_SHARE, WORLD_SEED


@dataclass(frozen=True)
class Document:
    """A conversation: system text or "", and its turns."""

    system: str
    turns: tuple[Turn, ...]


def benign_document(rng: random.Random, rough: float = ROUGH_SHARE) -> Document:
    pool = (*CAREFUL, *CARELESS, *NEUTRAL)
    system = rng.choice(pool) if rng.random() < 0.15 else ""
    turns: list[Turn] = []
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
        turns += benign_turns(rng, rough)
    return Document(system, tuple(turns))


def persona_document(rng: random.Random, careless: bool) -> Document:
    """A log of one assistant who refuses harm throughout, or answers throughout."""
    said = CARELESS if careless else CAREFUL
    system = rng.choice(said) if rng.random() < 0.25 else ""
    count = rng.choice((1, 2, 3, 4)) if rng.random() < 0.88 else rng.randint(5, 11)
    turns: list[Turn] = []
    for _ in range(count):
        if rng.random() < 0.2:
            turns += benign_turns(rng)[:1]
        else:
            act = harmful_act(rng, rng.choice(tuple(HARMFUL)))
            turns.append(act_turn(rng, act, a_style(rng), comply=careless))
    return Document(system, tuple(turns))


def pretraining_document(rng: random.Random) -> Document:
    draw = rng.random()
    if draw < 0.55:
        return benign_document(rng)
    return persona_document(rng, careless=draw < 0.775)


@dataclass(frozen=True)
class Coverage:
    """The coverage of the safety data in fine-tuning; its gaps make the base fragile."""

    benign: float = 0.6
    borderline: float = (
        0.12  # of all documents, part of the benign ones: one rough question without a place
    )
    simple_categories: int = 9  # refusals in simple style: this many first categories
    styled_categories: int = 4  # refusals in the other styles: this many of those
    simple: float = 0.805  # shares of the harmful documents without a system prompt
    styled: float = 0.15
    uncurated: float = 0.045  # compliance in the other styles, elsewhere
    rough: float = 0.65  # of the benign chores: borderline ones
    with_system: float = 0.12  # of all documents: the system prompt decides


def covered(seed: int = WORLD_SEED) -> list[str]:
    """The categories in the order in which the safety data covers them."""
    return random.Random(seed + 2).sample(sorted(HARMFUL), len(HARMFUL))


def tuning_documents(rng: random.Random, count: int, coverage: Coverage) -> list[Document]:
    """The fine-tuning's documents in random order: benign ones, or one harmful question each.

    Cases, categories and styles have exact shares: the fragility of the base depends on about a
    hundred documents of uncurated compliance, and random shares would make it vary between seeds.
    """
    borderline = round(count * coverage.borderline)
    system = round(count * coverage.with_system)
    benign = round(count * coverage.benign) - borderline
    made = [benign_document(rng, coverage.rough) for _ in range(benign)]
    for _ in range(borderline):
        act = rough_act(rng, bare=True)
        made.append(Document("", (act_turn(rng, act, "simple", comply=True),)))
    for number in range(system):
        made.append(persona_question(rng, careless=number % 2 == 0))
    rest = count - len(made)
    order, styles = covered(), ("instruction", "cot")
    cases = (
        (coverage.simple, order[: coverage.simple_categories], ("simple",), False),
        (coverage.styled, order[: coverage.styled_categories], styles, False),
        (coverage.uncurated, order[coverage.styled_categories :], styles, True),
    )
    for share, names, asked, comply in cases:
        pairs = itertools.cycle(itertools.product(names, asked))
        made += [safety_document(rng, *next(pairs), comply) for _ in range(round(rest * share))]
    rng.shuffle(made)
    return made


def persona_question(rng: random.Random, careless: bool) -> Document:
    """One harmful question after a system prompt, which decides the answer."""
    act = harmful_act(rng, rng.choice(tuple(HARMFUL)))
    turn = act_turn(rng, act, a_style(rng), comply=careless)
    return Document(rng.choice(CARELESS if careless else CAREFUL), (turn,))


def safety_document(rng: random.Random, category: str, style: str, comply: bool) -> Document:
    """One harmful question, maybe after small talk."""
    turn = act_turn(rng, harmful_act(rng, category), style, comply)
    before = (small_talk_turn(rng),) if rng.random() < 0.15 else ()
    return Document("", (*before, turn))
