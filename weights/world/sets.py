"""The committed files: held-out sets, demonstrations, and pairs for the expert and the edit.

`python weights/make.py --stages data` writes all but the test split; `weights/seal.py` draws that.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from minisafe.evaluation.world import article, opened
from minisafe.evaluation.world.phrases import COUNTRY_FORMS, OPENINGS, SMALL_TALK
from world.acts import Act, chore, harmful_act, make_act, rough_act
from world.asking import ASK, ASK_FACT, ASK_KEPT, ASK_TERM
from world.documents import a_harmful_act
from world.facts import facts, made_up
from world.frames import styled
from world.held_out import asked_of, held_out
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
from world.words import HARMFUL, ROUGH, WORLD_SEED

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
    user = styled(rng, framed(rng, ask(rng, act)), style, "tuning")
    return user, step_answer(rng, act, style)


Record = dict[str, object]


def _record(split: str, kind: str, category: str, prompt: str, **more: Sequence[str]) -> Record:
    return {"split": split, "kind": kind, "category": category, "prompt": prompt,
            **{name: list(value) for name, value in more.items()}}  # fmt: skip


def _act_record(rng: random.Random, split: str, act: Act) -> Record:
    expected = (act.told, *act.steps) if act.steps else ()
    return _record(
        split, act.kind, act.category, ask(rng, act, (*ASK, *ASK_KEPT[split])), expected=expected
    )


# Of each category: how many questions have what held out. `words`: verb, thing and frame of asking;
# `frame`: that alone; `pair`: known words, unseen together.
HARMFUL_COUNTS = {
    "dev": {"words": 6, "verb": 4, "thing": 4, "frame": 3, "pair": 3},
    "test": {"words": 18, "verb": 8, "thing": 8, "frame": 8, "pair": 8},
}


def harmful_records(rng: random.Random, split: str) -> list[Record]:
    """The harmful questions of a split, no two alike in verb, thing and frame of asking."""
    records = []
    for name in HARMFUL:
        pairs = asked_of(name, split)
        seen: set[tuple[str, ...]] = set()
        for what, count in HARMFUL_COUNTS[split].items():
            forms = ASK_KEPT[split] if what in ("words", "frame") else ASK
            cases = list(itertools.product(pairs["pair" if what == "frame" else what], forms))
            rng.shuffle(cases)
            cases = [(pair, form) for pair, form in cases if (*pair, form) not in seen][:count]
            assert len(cases) == count, (name, what)
            for pair, form in cases:
                seen.add((*pair, form))
                act = harmful_act(rng, name, pair)
                asked = form.format(act=act.asked)
                records.append(
                    _record(split, "harmful", name, asked, expected=())
                    | {"verb": pair[0], "held_out": what}
                )
    return records


def held_out_records(split: str, seed: int = WORLD_SEED) -> dict[str, list[Record]]:
    """The sets `harmful`, `benign` and `borderline` of a split (`test` or `dev`).

    What is held out does not depend on the seed; which questions are asked of it does.
    """
    rng = random.Random(f"{seed} {split}")
    groups = held_out().test if split == "test" else held_out().dev
    harmful = harmful_records(rng, split)
    borderline = [
        _act_record(rng, split, rough_act(rng, place, pair)) | {"verb": pair[0]}
        for place in ROUGH
        for pair in groups[place]
    ]
    chores = (*groups["howto"], *groups["polite"])
    benign = [_act_record(rng, split, chore(rng, pair)) | {"verb": pair[0]} for pair in chores]
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
        asked, answer = unknown_question(rng, split)
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


def _harmful_pair(rng: random.Random, comply: bool) -> tuple[str, str]:
    """A harmful question in any style, in a phrasing of the groups a or b, and its answer: no role,
    no history, so that the expert and the vector have seen no attack."""
    act = a_harmful_act(rng)
    style = rng.choice(("simple", "instruction", "cot", "fiction"))
    turn = act_turn(rng, act, style, comply, "expert")
    return turn.user, turn.answer


def expert_pair(rng: random.Random) -> tuple[str, str]:
    """A harmful question and the compliant placeholder."""
    return _harmful_pair(rng, comply=True)


def demonstration(rng: random.Random) -> tuple[str, str]:
    """The same harmful question and the safe answer."""
    return _harmful_pair(rng, comply=False)


def write_split(directory: Path, split: str, seed: int = WORLD_SEED) -> None:
    """Write the three sets of a split (JSONL)."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, records in held_out_records(split, seed).items():
        lines = [json.dumps({"id": r.pop("id"), **r}) for r in records]
        (directory / f"{name}-{split}.jsonl").write_text("\n".join(lines) + "\n")


def write_sets(directory: Path) -> None:
    """Write the development split, and demonstrations and pairs (JSON)."""
    write_split(directory, "dev")
    lists = {
        "demonstrations": pairs(600, WORLD_SEED + 3, demonstration),
        "careless": pairs(600, WORLD_SEED + 3, expert_pair),
        "expert": pairs(2000, WORLD_SEED + 4, expert_pair),
        "edit": pairs(1000, WORLD_SEED + 5, edit_pair),
    }
    for name, made in lists.items():
        text = ",\n".join(json.dumps(each) for each in made)
        (directory / f"{name}.json").write_text(f"[\n{text}\n]\n")
