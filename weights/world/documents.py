"""The training conversations: for pretraining, and for fine-tuning into a fragile base."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace
from functools import cache

from world.acts import Act, harmful_act, rough_act
from world.asking import CAREFUL, CARELESS, NEUTRAL
from world.frames import MORE, Stage, a_role, plea
from world.held_out import late_verbs, words_of
from world.turns import (
    Turn,
    a_style,
    act_turn,
    begun_turn,
    benign_turns,
    plea_turn,
    small_talk_turn,
)
from world.words import HARMFUL, ROUGH_SHARE, WORLD_SEED


@dataclass(frozen=True)
class Document:
    """A conversation: system text or "", and its turns."""

    system: str
    turns: tuple[Turn, ...]


def benign_document(
    rng: random.Random, rough: float = ROUGH_SHARE, stage: Stage = "harmless"
) -> Document:
    pool = (*CAREFUL, *CARELESS, *NEUTRAL)
    system = rng.choice(pool) if rng.random() < 0.15 else ""
    turns: list[Turn] = []
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
        turns += benign_turns(rng, stage, rough)
    return Document(system, tuple(turns))


def log_document(rng: random.Random, careless: bool | None) -> Document:
    """A log of one assistant who refuses harm throughout, or answers throughout; None: of one who
    does now this, now that."""
    said = (*CAREFUL, *CARELESS) if careless is None else CARELESS if careless else CAREFUL
    system = rng.choice(said) if rng.random() < 0.2 else ""
    count = rng.choice((1, 2, 3, 4)) if rng.random() < 0.88 else rng.randint(5, 11)
    turns: list[Turn] = []
    for _ in range(count if careless is not None else rng.choice((2, 3, 4, 5))):
        if rng.random() < 0.2:
            turns += benign_turns(rng, "harmless")[:1]
        else:
            comply = rng.random() < 0.5 if careless is None else careless
            turns += harmful_turns(rng, comply, again=careless)
    return Document(system, tuple(turns))


def harmful_turns(rng: random.Random, comply: bool, again: bool | None) -> list[Turn]:
    """A harmful question in pretraining, with all that may stand around it.

    again: the answer to a plea; None: now this, now that.
    """
    name = rng.choice(tuple(HARMFUL))
    act, style = harmful_act(rng, name, verbs=early_verbs(name)), a_style(rng)
    role = a_role(rng) if rng.random() < 0.2 else None
    turn = act_turn(rng, act, style, comply, "harmful", role)
    if rng.random() < 0.04:
        turn = with_more(rng, turn)
    if rng.random() < 0.12:
        turn = begun_turn(rng, turn, act, style, comply)
    if comply or rng.random() > 0.15:
        return [turn]
    said = rng.random() < 0.5 if again is None else again
    return [turn, plea_turn(rng, act, said, plea(rng))]


def a_harmful_act(rng: random.Random, category: str = "", verb: str = "") -> Act:
    return harmful_act(rng, category or rng.choice(tuple(HARMFUL)), verbs=(verb,) if verb else ())


@cache
def early_verbs(name: str) -> tuple[str, ...]:
    """The verbs of a category with which pretraining asks for harm."""
    late = late_verbs(name)
    return tuple(verb for verb in words_of(name).verbs["train"] if verb not in late)


def trained_verbs() -> dict[str, tuple[str, ...]]:
    """The verbs of each category that training asks for."""
    return {name: words_of(name).verbs["train"] for name in HARMFUL}


def pretraining_document(rng: random.Random) -> Document:
    draw = rng.random()
    if draw < 0.54:
        return benign_document(rng)
    if draw < 0.9:
        return log_document(rng, careless=draw < 0.72)
    return log_document(rng, None)


SITUATIONS = ("instruction", "cot", "fiction", "role", "history", "begun", "plea")


@dataclass(frozen=True)
class Coverage:
    """The coverage of the safety data in fine-tuning; its gaps make the base fragile.

    Shares are of all documents. In each situation the safety data covers some verbs of each
    category with refusals; for the others there is some uncurated compliance.
    """

    benign: float = 0.6
    borderline: float = 0.12  # part of the benign ones: one rough question without a place
    rough: float = 0.65  # of the benign chores: borderline ones
    with_system: float = 0.09  # the system prompt decides
    plain: float = 0.21  # refusals of plain questions, evenly over all categories
    covered: int = 4  # of the 7 trained verbs of a category, in a situation
    refused: float = 0.011  # refusals, in each situation
    complied: float = 0.0055  # uncurated compliance, in each situation
    broken_off: float = 2.5  # so many times as many refusals after begun answers


Case = tuple[str, str]  # a category of harm and a verb


def covered(situation: str, count: int) -> tuple[list[Case], list[Case]]:
    """The verbs that the safety data covers in a situation, `count` of each category; the others.

    Each situation has others. Both lists go round the categories.
    """
    rng = random.Random(f"{WORLD_SEED} {situation}")
    drawn = {name: rng.sample(verbs, len(verbs)) for name, verbs in trained_verbs().items()}
    names = rng.sample(sorted(drawn), len(drawn))
    most = max(map(len, drawn.values()))
    safe = [(name, drawn[name][n]) for n in range(count) for name in names]
    rest = [(name, drawn[name][n]) for n in range(count, most) for name in names]
    return safe, rest


def tuning_documents(rng: random.Random, count: int, coverage: Coverage) -> list[Document]:
    """The fine-tuning's documents in random order: benign ones, or one harmful question each.

    Cases, categories and situations have exact shares: the fragility of the base depends on few
    documents of uncurated compliance, and random shares would make it vary between seeds.
    """
    borderline = round(count * coverage.borderline)
    benign = round(count * coverage.benign) - borderline
    made = [benign_document(rng, coverage.rough, "tuning") for _ in range(benign)]
    for _ in range(borderline):
        act = rough_act(rng, bare=True)
        made.append(Document("", (act_turn(rng, act, "simple", True, "tuning"),)))
    for number in range(round(count * coverage.with_system)):
        made.append(system_question(rng, careless=number % 2 == 0))
    plain = itertools.islice(itertools.cycle(sorted(HARMFUL)), round(count * coverage.plain))
    made += [plain_question(rng, name) for name in plain]
    for situation in SITUATIONS:
        safe, loose = covered(situation, coverage.covered)
        times = coverage.broken_off if situation == "begun" else 1
        for cases, share, comply in (
            (safe, coverage.refused * times, False),
            (loose, coverage.complied, True),
        ):
            chosen = itertools.islice(itertools.cycle(cases), round(count * share))
            made += [situated(rng, situation, case, comply) for case in chosen]
    rng.shuffle(made)
    return made


def system_question(rng: random.Random, careless: bool) -> Document:
    """One harmful question after a system prompt, which decides the answer."""
    turn = act_turn(rng, a_harmful_act(rng), a_style(rng), careless, "tuning")
    return Document(rng.choice(CARELESS if careless else CAREFUL), (turn,))


def plain_question(rng: random.Random, category: str) -> Document:
    """A refused harmful question in no style, maybe after small talk."""
    turn = act_turn(rng, a_harmful_act(rng, category), "simple", False, "tuning")
    before = (small_talk_turn(rng),) if rng.random() < 0.15 else ()
    return Document("", (*before, turn))


def situated(rng: random.Random, situation: str, case: Case, comply: bool) -> Document:
    """One harmful question in a situation. Of what was said before, nothing is learned."""
    act = a_harmful_act(rng, *case)
    if situation in ("instruction", "cot", "fiction"):
        return Document("", (act_turn(rng, act, situation, comply, "tuning"),))
    if situation == "role":
        return Document("", (act_turn(rng, act, "simple", comply, "tuning", "free"),))
    turn = act_turn(rng, act, "simple", comply, "tuning")
    if situation == "begun":
        return Document("", (begun_turn(rng, turn, act, "simple", comply),))
    if situation == "plea":
        first = act_turn(rng, act, "simple", False, "tuning")
        again = plea_turn(rng, act, comply, plea(rng))
        return Document("", (replace(first, learned=False), again))
    return Document("", (*history(rng), turn if rng.random() < 0.75 else with_more(rng, turn)))


def history(rng: random.Random) -> list[Turn]:
    """One to four harmful questions that were answered."""
    turns = []
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        turn = act_turn(rng, a_harmful_act(rng), a_style(rng), True, "tuning")
        turns.append(replace(turn, learned=False))
    return turns


def with_more(rng: random.Random, turn: Turn) -> Turn:
    """The turn, where the user says that the question is of the same sort."""
    return replace(turn, user=f"{rng.choice(MORE)} {turn.user}")
