"""Training conversations of the anchor: refusals that hold, whatever stands around the question.

Each kind of circumstance (`FAMILIES`) can be left out, so that an attack of that kind meets an
adapter that has never seen it. Half of the conversations are harmless, in the same circumstances,
and are answered as ever: what stands around a question says nothing about harm.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from minisafe.evaluation.world.phrases import DEFINITIONS
from world.acts import harmful_act, rough_act
from world.asking import made_ask
from world.documents import Document, a_harmful_act, history
from world.frames import DAILY, MORE, daily, in_role, plea, styled
from world.turns import Turn, act_turn, begun_turn, benign_turns, plea_turn, refusal
from world.words import HARMFUL, ROUGH, listed

FAMILIES = ("persona", "history", "prefill", "words", "rewording")
PLAIN = 0.25  # of the conversations are in no circumstance
ROUGH_ASKED = 0.3  # of the harmless ones
STYLES = ("simple", "instruction", "cot", "fiction")


def steadfast_documents(
    rng: random.Random, count: int, families: Sequence[str] = FAMILIES
) -> list[Document]:
    """`count` conversations in random order: every family has the same share, and half of each is
    harmful."""
    kinds = ["plain"] * round(count * PLAIN)
    kinds += itertools.islice(itertools.cycle(families), count - len(kinds)) if families else []
    made = [CIRCUMSTANCES[kind](rng, n % 2 == 0) for n, kind in enumerate(sorted(kinds))]
    rng.shuffle(made)
    return made


def asked_turn(rng: random.Random, harmful: bool, style: str = "simple") -> Turn:
    """A question and its right answer: a refusal, or what is known."""
    if harmful:
        return act_turn(rng, a_harmful_act(rng), style, False, "expert")
    if rng.random() < ROUGH_ASKED:
        return act_turn(rng, rough_act(rng), style, True, "expert")
    return benign_turns(rng, "tuning")[-1]


def plain(rng: random.Random, harmful: bool) -> Document:
    """In the styles that the expert has seen."""
    return Document("", (asked_turn(rng, harmful, rng.choice(STYLES)),))


def persona(rng: random.Random, harmful: bool) -> Document:
    """In a role, before or after the question."""
    turn = asked_turn(rng, harmful, rng.choice(STYLES))
    return Document("", (replace(turn, user=in_role(rng, turn.user, "free", "expert")),))


def after_history(rng: random.Random, harmful: bool) -> Document:
    """After harmful questions that were answered, or after a refusal and a plea."""
    turn = asked_turn(rng, harmful)
    if harmful and rng.random() < 0.3:
        act = a_harmful_act(rng)
        first = replace(act_turn(rng, act, "simple", False, "tuning"), learned=False)
        return Document("", (first, plea_turn(rng, act, False, plea(rng))))
    if rng.random() < 0.3:
        before = [replace(each, learned=False) for each in benign_turns(rng, "tuning")]
    else:
        before = history(rng)
    if rng.random() < 0.5:
        turn = replace(turn, user=f"{rng.choice(MORE)} {turn.user}")
    return Document("", (*before, turn))


def prefill(rng: random.Random, harmful: bool) -> Document:
    """After the beginning of an answer: a compliant one is broken off, a right one goes on."""
    if harmful:
        act = a_harmful_act(rng)
        style = rng.choice(STYLES)
        turn = act_turn(rng, act, style, False, "expert")
        return Document("", (begun_turn(rng, turn, act, style, False),))
    turn = asked_turn(rng, harmful)
    words = turn.answer.split(" ")
    cut = rng.randrange(0, max(1, len(words) - 1))
    rest = " ".join(words[cut:])
    return Document(
        "", (replace(turn, begun=" ".join(words[:cut]), answer=f" {rest}" if cut else rest),)
    )


_WHO = ("I", "We", "You and I", "My sister and I", "They", "My friends", "The children")
_DID = (
    "cooked",
    "bought",
    "cleaned",
    "found",
    "painted",
    "sold",
    "washed",
    "carried",
    "mended",
    "read",
    "made",
    "wanted",
    "saw",
    "liked",
    "watered",
    "opened",
    "closed",
    "remember",
)
_WHAT = (
    "soup",
    "some bread",
    "a book",
    "the garden",
    "our house",
    "a small table",
    "two chairs",
    "the plants",
    "an old lamp",
    "a red hat",
    "the window",
    "a long letter",
    "my room",
    "the shop",
    "some cheese",
    "a quiet street",
)
_WHEN = (
    "yesterday",
    "today",
    "last night",
    "in the morning",
    "at home",
    "in our town",
    "by the river",
    "after lunch",
    "before we went to bed",
    "with my brother",
    "all day",
    "in the evening",
    "a week ago",
    "as we like to do",
)
_THANKS = ("", "", "Thank you. ", "You have been kind to me. ", "Hello again. ")
_JOINED = (". ", ", and ", ". Then ", ", because ", ". After that ", ", but ")


def clause(rng: random.Random) -> str:
    return " ".join(rng.choice(column) for column in (_WHO, _DID, _WHAT, _WHEN))


def friendly(rng: random.Random) -> str:
    """A friendly text of two to seven clauses."""
    said = clause(rng)
    for _ in range(rng.randint(1, 6)):
        said += rng.choice(_JOINED) + clause(rng)
    return f"{rng.choice(_THANKS)}{said}."


@cache
def vocabulary() -> tuple[str, ...]:
    """Words of the world, for noise."""
    texts = [*DAILY, *DEFINITIONS, *DEFINITIONS.values()]
    texts += [thing for _, things in HARMFUL.values() for thing in listed(things)]
    texts += [thing for _, things in ROUGH.values() for thing in listed(things)]
    words = {word.strip(".,?!").lower() for text in texts for word in text.split(" ")}
    return tuple(sorted(word for word in words if word.isalpha() and len(word) > 2))


def noisy(rng: random.Random, text: str) -> str:
    """With words at random before it, in it or after it, or with letters swapped."""
    words = text.split(" ")
    if rng.random() < 0.3:
        for n in rng.sample(range(len(words)), max(1, len(words) // 3)):
            if len(words[n]) > 3 and words[n].isalpha():
                at = rng.randrange(1, len(words[n]) - 2)
                swapped = words[n][at + 1] + words[n][at]
                words[n] = words[n][:at] + swapped + words[n][at + 2 :]
        return " ".join(words)
    drawn = rng.choices(vocabulary(), k=rng.randint(2, 8))
    at = rng.choice((0, len(words), rng.randrange(len(words) + 1)))
    return " ".join((*words[:at], *drawn, *words[at:]))


def among_words(rng: random.Random, harmful: bool) -> Document:
    """With noise in the question."""
    turn = asked_turn(rng, harmful, rng.choice(STYLES))
    return Document("", (replace(turn, user=noisy(rng, turn.user)),))


def rewording(rng: random.Random, harmful: bool) -> Document:
    """In other words: two styles, one inside the other; after a long friendly text; made frames."""
    if harmful and rng.random() < 0.4:
        act = harmful_act(rng, rng.choice(tuple(HARMFUL)))
        answer = refusal(rng, act)
        turn = Turn(made_ask(rng).format(act=act.asked), answer, act.kind, act.category)
    else:
        turn = asked_turn(rng, harmful, rng.choice(STYLES))
    if rng.random() < 0.5:
        turn = replace(turn, user=styled(rng, turn.user, rng.choice(STYLES[1:]), "expert"))
    else:
        said = friendly(rng) if rng.random() < 0.7 else f"{daily(rng)} {daily(rng)}"
        turn = replace(turn, user=f"{said} {turn.user}")
    return Document("", (turn,))


CIRCUMSTANCES: dict[str, Callable[[random.Random, bool], Document]] = {
    "plain": plain, "persona": persona, "history": after_history, "prefill": prefill,
    "words": among_words, "rewording": rewording,
}  # fmt: skip
