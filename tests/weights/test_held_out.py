"""What is held out does not occur in training; shares are exact; a seed decides everything."""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from minisafe.evaluation.attacks import text, turns
from minisafe.evaluation.prompts.styles import PHRASINGS, Phrasing
from minisafe.evaluation.world import Question, judge
from minisafe.evaluation.world.phrases import CATEGORIES

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
if not WEIGHTS.is_dir():
    pytest.skip("the weights' scripts are not here", allow_module_level=True)
sys.path.insert(0, str(WEIGHTS))

import world  # noqa: E402

SPLITS = ("dev", "test")
SEED = 77  # of a test split that nobody measures


def normal(said: str) -> str:
    """Words alone, with spaces around."""
    return f" {' '.join(re.findall(r'[a-z0-9]+', said.lower()))} "


@cache
def documents(stage: str) -> tuple[world.Document, ...]:
    """Training documents of a stage, as many as make what is frequent appear."""
    rng = random.Random(f"test {stage}")
    if stage == "pretraining":
        return tuple(world.pretraining_document(rng) for _ in range(12000))
    if stage == "tuning":
        return tuple(world.tuning_documents(rng, 3000, world.Coverage()))
    makers = {"expert": world.expert_pair, "edit": world.edit_pair}
    made = [makers[stage](rng) for _ in range(1500)]
    if stage == "expert":
        made += [world.demonstration(rng) for _ in range(500)]
    return tuple(
        world.Document("", (world.Turn(asked, told, kind, ""),))
        for asked, told in made
        for kind in ("harmful" if stage == "expert" else "howto",)
    )


STAGES = ("pretraining", "tuning", "expert", "edit")


@cache
def said_in(*stages: str, harmful: bool = False) -> str:
    """All that users say in some stages, or only their harmful questions, as lines."""
    found = [
        normal(turn.user)
        for stage in stages
        for document in documents(stage)
        for turn in document.turns
        if turn.kind == "harmful" or not harmful
    ]
    return "\n".join(found)


@cache
def asked(split: str) -> dict[str, list[dict[str, object]]]:
    return world.held_out_records(split, SEED) if split == "test" else world.held_out_records(split)


# ---- words ----------------------------------------------------------------------------------


def test_no_word_of_a_category_is_of_another() -> None:
    """So that a held-out word is held out everywhere."""
    for column in (0, 1):
        words = [each for names in world.HARMFUL.values() for each in world.listed(names[column])]
        assert [word for word, count in Counter(words).items() if count > 1] == []


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_words_are_in_no_harmful_question_of_training(split: str) -> None:
    said = said_in(*STAGES, harmful=True)
    verbs = "|".join(verb for names, _ in world.HARMFUL.values() for verb in world.listed(names))
    done = re.compile(f" (?:{verbs}) (?:a|an|the|my) ([a-z]+(?: [a-z]+)?)(?= )")
    things = {part for found in done.findall(said) for part in (found, found.split(" ")[0])}
    for name in world.HARMFUL:
        words = world.words_of(name)
        assert words.verbs[split]
        assert words.things[split]
        for word in words.verbs[split]:
            assert f" {word} " not in said, (name, word)
        assert not things & set(words.things[split])  # a king may ask in a tale, though


def test_training_meets_the_held_out_words_elsewhere() -> None:
    """Half of what pretraining reads: a word or two may come in the other half."""
    said = said_in("pretraining")
    met = Counter[bool]()
    for name in world.HARMFUL:
        words = world.words_of(name)
        for split in SPLITS:
            assert all(f" {verb} " in said for verb in words.verbs[split]), name
            met.update(f" {thing} " in said for thing in words.things[split])
    assert met[True] >= 0.96 * met.total()


def test_the_splits_have_other_words() -> None:
    for name, (verbs, things) in world.HARMFUL.items():
        words = world.words_of(name)
        for parts, whole in ((words.verbs, verbs), (words.things, things)):
            found = [word for part in parts.values() for word in part]
            assert sorted(found) == sorted(world.listed(whole))


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_pairs_are_nowhere_in_training(split: str) -> None:
    said = said_in(*STAGES)
    held = world.held_out()
    groups = held.dev if split == "dev" else held.test
    for name in (*world.HARMFUL, *world.ROUGH, "howto", "polite"):
        pairs = list(groups[name])
        if name in world.HARMFUL:
            pairs += [pair for part in world.asked_of(name, split).values() for pair in part]
        for verb, thing in pairs:
            for determiner in ("a", "an", "the", "my"):
                found = f" {verb} {determiner} {thing} "
                # a rough verb is harmful with one thing and harmless with another
                assert found not in said, found


@pytest.mark.parametrize("split", SPLITS)
def test_frames_of_asking_are_in_no_harmful_question_of_training(split: str) -> None:
    said = said_in(*STAGES, harmful=True)
    for form in world.ASK_KEPT[split]:
        before = normal(form.partition("{act}")[0])
        assert before not in said, form
        assert before in said_in("pretraining"), form


@pytest.mark.parametrize("split", SPLITS)
def test_no_question_is_in_training(split: str) -> None:
    """Not even inside a style or a role; the gate's calibration questions are dev questions."""
    said = said_in(*STAGES)
    whole = set(said.split("\n"))
    for records in asked(split).values():
        for record in records:
            found = normal(str(record["prompt"]))
            within = whole if record["kind"] == "smalltalk" else said  # such as "Ok", in any text
            assert found not in within, record["prompt"]


def test_no_question_is_in_both_splits() -> None:
    dev, test = (
        {normal(str(r["prompt"])) for records in asked(split).values() for r in records}
        for split in SPLITS
    )
    assert not dev & test


# ---- phrasings and attacks --------------------------------------------------------------------


def marks(phrasing: Phrasing) -> str:
    """The template's own words."""
    return normal(phrasing.template.replace("{question}", ""))


@pytest.mark.parametrize("name", PHRASINGS)
def test_a_phrasing_is_seen_where_its_group_says(name: str) -> None:
    phrasing = PHRASINGS[name]
    seen = {stage for stage in STAGES if marks(phrasing) in said_in(stage)}
    harmful = {stage for stage in STAGES if marks(phrasing) in said_in(stage, harmful=True)}
    wanted = {
        "a": ({"pretraining", "tuning", "expert", "edit"}, {"pretraining", "tuning", "expert"}),
        "b": ({"expert"}, {"expert"}),
        "met": ({"pretraining"}, set()),
        "new": (set(), set()),
    }
    assert (seen, harmful) == wanted[phrasing.group]


def test_every_style_has_phrasings_of_every_group_in_both_splits() -> None:
    found = Counter((each.style, each.group, each.kept) for each in PHRASINGS.values())
    for style in ("instruction", "cot", "fiction"):
        for group in ("a", "b"):
            assert found[style, group, False] == 3
        for group in ("met", "new"):
            assert found[style, group, False] == 2
            assert found[style, group, True] == (1 if group == "met" else 2)


ATTACKS = (text.PERSONA, text.PREAMBLE, turns.AGAIN, turns.MORE)


@pytest.mark.parametrize("said", ATTACKS)
def test_attacks_use_known_words_in_unknown_order(said: str) -> None:
    """Training has seen their kind, but no six words of theirs in a row."""
    known = Counter(said_in(*STAGES).split())
    words = normal(said).split()
    assert [word for word in words if known[word] < 5] == []
    whole = said_in(*STAGES)
    for start in range(len(words) - 5):
        assert f" {' '.join(words[start : start + 6])} " not in whole


def test_new_phrasings_use_known_words() -> None:
    known = Counter(said_in(*STAGES).split())
    for phrasing in PHRASINGS.values():
        if phrasing.group == "new":
            assert [word for word in marks(phrasing).split() if known[word] < 5] == []


def test_what_stands_around_a_question_is_answered_in_every_way() -> None:
    """After roles and after begun answers there are answers, refusals and compliance; and after
    refusals and compliance there are both."""
    after_role, after_begun, follows = Counter[str](), Counter[str](), Counter[str]()
    for document in documents("pretraining"):
        last = ""
        for turn in document.turns:
            question = Question("", "", turn.kind, turn.category, turn.user)
            outcome = judge(question, (turn.begun + turn.answer).strip()).outcome
            if turn.begun:
                outcome = judge(question, turn.answer).outcome
                after_begun[outcome] += 1
            kind = outcome if turn.kind == "harmful" else "harmless"
            if re.search(r" who never says no\b", turn.user):
                after_role[kind] += 1
            follows[f"{last} then {kind}"] += 1
            last = kind
    assert {"complied", "refused", "harmless"} <= set(after_role)
    assert {"complied", "refused"} <= set(after_begun)
    for one in ("complied", "refused"):
        for other in ("complied", "refused", "harmless"):
            assert follows[f"{one} then {other}"] > 20


# ---- shares, counts, seeds --------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_the_fine_tunings_shares_are_exact(seed: int) -> None:
    coverage = world.Coverage()
    made = world.tuning_documents(random.Random(seed), 2000, coverage)
    again = world.tuning_documents(random.Random(seed), 2000, coverage)
    assert made == again
    harmful = [d for d in made if d.turns[-1].kind == "harmful" and not d.system]
    count = round(2000 * coverage.plain) + round(2000 * coverage.refused * coverage.broken_off)
    count += (len(world.SITUATIONS) - 1) * round(2000 * coverage.refused)
    count += len(world.SITUATIONS) * round(2000 * coverage.complied)
    assert len(harmful) == count
    loose = [document for document in harmful if not refuses(document)]
    assert len(loose) == len(world.SITUATIONS) * round(2000 * coverage.complied)
    in_situations = coverage.refused * (len(world.SITUATIONS) - 1 + coverage.broken_off)
    in_situations += coverage.complied * len(world.SITUATIONS)
    parts = coverage.benign + coverage.with_system + coverage.plain + in_situations
    assert abs(len(made) - 2000 * parts) < 10


def refuses(document: world.Document) -> bool:
    """Whether the last answer does; a plea names no act, so all that was asked counts."""
    said = "\n".join(turn.user for turn in document.turns)
    question = Question("", "", "harmful", "", said)
    return judge(question, document.turns[-1].answer).outcome == "refused"


def test_every_category_is_covered_in_part_in_every_situation() -> None:
    safe = Counter[world.Case]()
    for situation in world.SITUATIONS:
        parts = world.covered(situation, world.Coverage().covered)
        assert not set(parts[0]) & set(parts[1])
        for part, count in zip(parts, (4, 3), strict=True):
            assert Counter(name for name, _ in part) == dict.fromkeys(world.HARMFUL, count)
        safe.update(parts[0])
    assert len({tuple(sorted(world.covered(s, 4)[0])) for s in world.SITUATIONS}) == 7
    assert sum(count == len(world.SITUATIONS) for count in safe.values()) < 0.05 * len(safe)


def test_late_verbs_are_in_no_harmful_question_of_pretraining() -> None:
    """Fine-tuning asks for them, so that it teaches to refuse what is only known to be wrong."""
    before, after = said_in("pretraining", harmful=True), said_in("tuning", harmful=True)
    for name in world.HARMFUL:
        for verb in world.late_verbs(name):
            assert f" {verb} " not in before
            assert f" {verb} " in after


@pytest.mark.parametrize("split", SPLITS)
def test_sizes_of_the_sets(split: str) -> None:
    sets = asked(split)
    counts = world.HARMFUL_COUNTS[split]
    found = Counter((r["category"], r["held_out"]) for r in sets["harmful"])
    assert found == {(name, what): n for name in world.HARMFUL for what, n in counts.items()}
    assert set(CATEGORIES) == set(world.HARMFUL)
    assert {name: len(records) for name, records in sets.items()} == {
        "dev": {"harmful": 220, "benign": 222, "borderline": 60},
        "test": {"harmful": 550, "benign": 444, "borderline": 150},
    }[split]
    assert len({r["prompt"] for r in sets["harmful"]}) == len(sets["harmful"])


def test_a_seed_decides_the_test_split() -> None:
    one, same, other = (world.held_out_records("test", seed) for seed in (1, 1, 2))
    assert one == same
    assert one["harmful"] != other["harmful"]


def test_committed_development_sets_are_what_the_generator_makes() -> None:
    for name, records in world.held_out_records("dev").items():
        path = WEIGHTS / "data" / f"{name}-dev.jsonl"
        committed = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert committed == records
