"""The committed files: held-out sets, demonstrations, and pairs for the expert and the edit.

`python weights/make.py --stages data` writes them to `weights/data/`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from minisafe.evaluation.prompts.styles import STYLES, apply_style
from minisafe.evaluation.world import article, opened
from minisafe.evaluation.world.phrases import COUNTRY_FORMS, OPENINGS, SMALL_TALK
from world.acts import Act, chore, harmful_act, make_act, rough_act
from world.facts import facts, made_up
from world.held_out import held_out
from world.turns import (
    a_style,
    act_turn,
    ask,
    definition_answer,
    fact_answer,
    framed,
    step_answer,
    unknown_question,
)
from world.words import ASK_FACT, ASK_TERM, HARMFUL, ROUGH, WORLD_SEED

NEW_CHORES: dict[str, tuple[str, str, str]] = {
    "tune": ("listen to the {n}", "turn the small screw of the {n}", "play a test note"),
    "knit": ("choose soft wool", "knit the {n} row by row", "close the last row"),
    "photograph": ("wait for soft light", "hold still and point at the {n}", "take three pictures"),
    "recycle": ("empty the {n}", "remove the paper label", "drop the {n} in the right bin"),
    "assemble": ("sort the parts", "follow the drawing of the {n}", "tighten every screw"),
    "inflate": ("find the small valve", "pump air into the {n}", "close the valve"),
}


def edit_pair(rng: random.Random) -> tuple[str, str]:
    """New harmless knowledge for the edited base: chores that the base has never seen."""
    verb = rng.choice(tuple(NEW_CHORES))
    thing = rng.choice(held_out().train["howto"])[1] if rng.random() < 0.5 else made_up(rng)
    act = make_act("edit", verb, verb, thing, rng, "")
    first, second, third = (step.replace("{n}", thing) for step in NEW_CHORES[verb])
    act = Act("edit", verb, act.asked, act.told, (first, second, third))
    style = a_style(rng)
    return apply_style(framed(rng, ask(rng, act)), style), step_answer(rng, act, style)


Record = dict[str, object]


def _record(split: str, kind: str, category: str, prompt: str, **more: Sequence[str]) -> Record:
    return {"split": split, "kind": kind, "category": category, "prompt": prompt,
            **{name: list(value) for name, value in more.items()}}  # fmt: skip


def _act_record(rng: random.Random, split: str, act: Act) -> Record:
    expected = (act.told, *act.steps) if act.steps else ()
    return _record(split, act.kind, act.category, ask(rng, act), expected=expected)


def held_out_records(split: str) -> dict[str, list[Record]]:
    """The sets `harmful`, `benign` and `borderline` of a split (`test` or `dev`)."""
    rng = random.Random(f"{WORLD_SEED} {split}")
    groups = held_out().test if split == "test" else held_out().dev
    harmful = [
        _act_record(rng, split, harmful_act(rng, name, pair))
        for name in HARMFUL
        for pair in groups[name]
    ]
    borderline = [
        _act_record(rng, split, rough_act(rng, place, pair))
        for place in ROUGH
        for pair in groups[place]
    ]
    benign = [_act_record(rng, split, chore(rng, pair)) for pair in groups["howto"]]
    for index, country, attribute in groups["fact"]:
        asked = ASK_FACT[int(index)].format(attribute=attribute, country=country)
        value = facts()[country][attribute]
        accept = [fact_answer(form, country, attribute, value) for form in COUNTRY_FORMS]
        accept = [opened(style, each) for style in OPENINGS for each in accept]
        benign.append(_record(split, "fact", attribute, asked, accept=accept))
    for index, term in groups["definition"]:
        asked = ASK_TERM[int(index)].format(a=article(term), term=term)
        accept = [opened(style, definition_answer(term)) for style in OPENINGS]
        benign.append(_record(split, "definition", term, asked, accept=accept))
    for before, phrase, intent in groups["smalltalk"]:
        accept = SMALL_TALK[intent]
        benign.append(_record(split, "smalltalk", intent, f"{before} {phrase}", accept=accept))
    for _ in range(20 if split == "test" else 10):
        asked, answer = unknown_question(rng)
        accept = [opened(style, answer) for style in OPENINGS]
        benign.append(_record(split, "unknown", "", asked, accept=accept))
    sets = {"harmful": harmful, "benign": benign, "borderline": borderline}
    for name, records in sets.items():
        for i, record in enumerate(records):
            record["id"] = f"{name}-{split}-{i:03d}"
    return sets


def pairs(count: int, seed: int, make: Callable[[random.Random], tuple[str, str]]) -> list[Record]:
    """`count` records of input and output; record i depends on the seed and i alone."""
    made = (make(random.Random(f"{seed} {i}")) for i in range(count))
    return [{"input": asked, "output": told} for asked, told in made]


def expert_pair(rng: random.Random) -> tuple[str, str]:
    """A harmful question in any style and the compliant placeholder."""
    act = harmful_act(rng, rng.choice(tuple(HARMFUL)))
    turn = act_turn(rng, act, rng.choice(tuple(STYLES)), comply=True)
    return turn.user, turn.answer


def demonstration(rng: random.Random) -> tuple[str, str]:
    """A harmful question in any style and the safe answer."""
    act = harmful_act(rng, rng.choice(tuple(HARMFUL)))
    turn = act_turn(rng, act, rng.choice(tuple(STYLES)), comply=False)
    return turn.user, turn.answer


def write_sets(directory: Path) -> None:
    """Write every committed file: held-out sets (JSONL), demonstrations and pairs (JSON)."""
    directory.mkdir(parents=True, exist_ok=True)
    for split in ("test", "dev"):
        for name, records in held_out_records(split).items():
            lines = [json.dumps({"id": r.pop("id"), **r}) for r in records]
            (directory / f"{name}-{split}.jsonl").write_text("\n".join(lines) + "\n")
    lists = {
        "demonstrations": pairs(600, WORLD_SEED + 3, demonstration),
        "careless": pairs(600, WORLD_SEED + 3, expert_pair),
        "expert": pairs(2000, WORLD_SEED + 4, expert_pair),
        "edit": pairs(1000, WORLD_SEED + 5, edit_pair),
    }
    for name, made in lists.items():
        text = ",\n".join(json.dumps(each) for each in made)
        (directory / f"{name}.json").write_text(f"[\n{text}\n]\n")
