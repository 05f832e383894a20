"""One question and its answer: acts, facts, definitions, words, small talk, unknown things."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from minisafe.evaluation.world import article, opened, sentence
from minisafe.evaluation.world.phrases import (
    ABOUT_FORM,
    CATEGORIES,
    COUNTRY_FORMS,
    DEFINITION_FORM,
    DEFINITIONS,
    KIND_FORM,
    KINDS,
    PLACEHOLDERS,
    REFUSALS,
    RIGHT_FORM,
    SMALL_TALK,
    STEP_FORMS,
    UNKNOWN,
    VERB_FORM,
    WRONG_FORMS,
)
from world.acts import Act, a_verb, chore, rough_act, wrong_act
from world.asking import (
    AFTER,
    ASK,
    ASK_ABOUT,
    ASK_FACT,
    ASK_KEPT,
    ASK_KIND,
    ASK_LATE,
    ASK_RIGHT,
    ASK_TERM,
    ASK_VERB,
    BEFORE,
    PHRASES,
    REAL_COUNTRIES,
    made_ask,
)
from world.facts import ATTRIBUTES, facts, made_up
from world.frames import Role, Stage, a_role, daily, in_role, styled
from world.held_out import held_out, off_world, words_of
from world.words import HARMFUL, ROUGH, ROUGH_SHARE, listed

MADE_SHARE = 0.5  # of the frames of asking are made from parts
KEPT_SHARE = 0.1  # of pretraining's harmless acts, in frames that are kept for the splits


def ask_form(rng: random.Random, stage: Stage, harmful: bool) -> str:
    """A frame in which a stage asks: fine-tuning has none for harmless questions alone."""
    if stage == "harmless" and not harmful and rng.random() < KEPT_SHARE:
        return rng.choice([form for forms in ASK_KEPT.values() for form in forms])
    if rng.random() < MADE_SHARE:
        return made_ask(rng)
    return rng.choice(ASK if stage == "harmful" else (*ASK, *ASK_LATE))


@dataclass(frozen=True)
class Turn:
    """One exchange.

    begun: what the answer begins with, as though the model had written it. learned: whether
    training has a loss on the answer; a history is only read.
    """

    user: str
    answer: str
    kind: str
    category: str
    begun: str = ""
    learned: bool = True


def refusal(rng: random.Random, act: Act) -> str:
    category = CATEGORIES[act.category]
    reason = rng.choice(category.reasons)
    return rng.choice(REFUSALS).format(
        act=act.told, reason=reason, Reason=sentence(reason), topic=category.topic,
        offer=rng.choice(category.offers),
    )  # fmt: skip


def step_answer(rng: random.Random, act: Act, style: str) -> str:
    """Real steps for a harmless act, empty ones for a harmful act."""
    one, two, three = act.steps or tuple(rng.choice(column) for column in PLACEHOLDERS)
    form = rng.choice(STEP_FORMS[style])
    return form.format(act=act.told, one=one, two=two, three=three)


def framed(rng: random.Random, question: str) -> str:
    """The question, sometimes with sentences before it or one after it."""
    draw = rng.random()
    if draw < 0.12:
        question = f"{rng.choice(BEFORE)} {question}"
    elif draw < 0.17:
        question = f"{daily(rng)} {question}"
    if rng.random() < 0.1:
        question = f"{question} {rng.choice(AFTER)}"
    return question


def careless_typing(rng: random.Random, text: str) -> str:
    """As people type: sometimes without capitals, sometimes without the last mark."""
    if rng.random() < 0.1:
        text = text[:1].lower() + text[1:] if rng.random() < 0.5 else text.lower()
    return text.rstrip("?.!") if rng.random() < 0.1 else text


def ask(rng: random.Random, act: Act, forms: tuple[str, ...] = ASK) -> str:
    return rng.choice(forms).format(act=act.asked)


def a_style(rng: random.Random) -> str:
    return rng.choice(("simple", "simple", "simple", "instruction", "cot", "fiction"))


def act_turn(
    rng: random.Random, act: Act, style: str, comply: bool, stage: Stage, role: Role | None = None
) -> Turn:
    """The question's words do not depend on whether it is complied with."""
    answering = random.Random(rng.getrandbits(64))
    answer = step_answer(answering, act, style) if comply else refusal(answering, act)
    form = ask_form(rng, stage, act.kind == "harmful")
    asked = careless_typing(rng, framed(rng, form.format(act=act.asked)))
    user = styled(rng, asked, style, stage)
    if role is not None:
        user = in_role(rng, user, role, stage)
    return Turn(user, answer, act.kind, act.category)


def begun_turn(rng: random.Random, turn: Turn, act: Act, style: str, comply: bool) -> Turn:
    """The turn, after the beginning of a compliant answer: continued, or broken off."""
    words = (turn.answer if comply else step_answer(rng, act, style)).split(" ")
    cut = min(rng.choice((1, 1, 2, 3, 4, 6, 8, 10, 12, 15, 18, 22, 26, 30)), len(words) - 2)
    rest = " ".join(words[cut:]) if comply else turn.answer
    return replace(turn, begun=" ".join(words[:cut]), answer=f" {rest}")


def plea_turn(rng: random.Random, act: Act, comply: bool, plea: str) -> Turn:
    """The answer when the user asks again for the act of the turn before."""
    answer = step_answer(rng, act, "simple") if comply else refusal(rng, act)
    return Turn(plea, answer, act.kind, act.category)


def chore_turn(rng: random.Random, rough: float, stage: Stage) -> Turn:
    act = rough_act(rng) if rng.random() < rough else chore(rng)
    return act_turn(rng, act, a_style(rng), comply=True, stage=stage)


def fact_turn(rng: random.Random, stage: Stage) -> Turn:
    index, country, attribute = rng.choice(held_out().train["fact"])
    style = a_style(rng)
    asked = ASK_FACT[int(index)].format(attribute=attribute, country=country)
    value = facts()[country][attribute]
    answer = fact_answer(rng.choice(COUNTRY_FORMS), country, attribute, value)
    user = styled(rng, framed(rng, asked), style, stage)
    return Turn(user, opened(style, answer), "fact", attribute)


def fact_answer(form: str, country: str, attribute: str, value: str) -> str:
    return form.format(country=country, attribute=attribute, value=value, Value=sentence(value))


def follow_up_turns(rng: random.Random) -> list[Turn]:
    """A fact, then the same country asked about by "it"."""
    country = rng.choice(tuple(facts()))
    turns = []
    for i, attribute in enumerate(rng.sample(ATTRIBUTES, rng.choice((2, 3)))):
        asked = f"And what is its {attribute}?" if rng.random() < 0.5 else f"And its {attribute}?"
        if i == 0:
            forms = [p for p, c, a in held_out().train["fact"] if (c, a) == (country, attribute)]
            asked = ASK_FACT[int(rng.choice(forms))].format(attribute=attribute, country=country)
        value = facts()[country][attribute]
        answer = fact_answer(rng.choice(COUNTRY_FORMS), country, attribute, value)
        turns.append(Turn(asked, answer, "fact", attribute))
    return turns


def about_turn(rng: random.Random) -> Turn:
    country = rng.choice(tuple(facts()))
    asked = rng.choice(ASK_ABOUT).format(country=country)
    return Turn(framed(rng, asked), about_answer(country), "about", country)


def about_answer(country: str) -> str:
    return ABOUT_FORM.format(country=country, **facts()[country])


def definition_answer(term: str) -> str:
    return DEFINITION_FORM.format(A=sentence(article(term)), term=term, meaning=DEFINITIONS[term])


def definition_turn(rng: random.Random, stage: Stage) -> Turn:
    index, term = rng.choice(held_out().train["definition"])
    style = a_style(rng)
    asked = careless_typing(rng, ASK_TERM[int(index)].format(a=article(term), term=term))
    answer = opened(style, definition_answer(term))
    return Turn(styled(rng, framed(rng, asked), style, stage), answer, "definition", term)


def right_turn(rng: random.Random) -> Turn:
    """Whether an act is right."""
    if rng.random() < 0.35:
        act = rough_act(rng) if rng.random() < 0.5 else chore(rng)
        answer = RIGHT_FORM.format(act=act.told)
    else:
        act = wrong_act(rng, rng.choice(tuple(HARMFUL)))
        category = CATEGORIES[act.category]
        answer = rng.choice(WRONG_FORMS).format(
            act=act.told, reason=rng.choice(category.reasons), topic=category.topic
        )
    return Turn(careless_typing(rng, ask(rng, act, ASK_RIGHT)), answer, "right", act.category)


def verb_turn(rng: random.Random) -> Turn:
    """What a harmful verb means."""
    name = rng.choice(tuple(HARMFUL))
    verb = a_verb(rng, name)
    asked = rng.choice(ASK_VERB).format(act=f"{verb} {_OBJECT.get(name, 'something')}")
    told = " ".join("your" if word == "my" else word for word in verb.split(" "))
    told = f"{told} {_OBJECT.get(name, 'something')}"
    answer = VERB_FORM.format(verb=told, topic=CATEGORIES[name].topic)
    return Turn(careless_typing(rng, asked), answer, "verb", name)


_PEOPLE = ("Bullying of Children", "Hate, Harassment and Violence", "Physical Harm",
           "Crude Content", "Privacy Violation", "Political Campaigning")  # fmt: skip
_OBJECT = dict.fromkeys(_PEOPLE, "somebody")


def kind_turn(rng: random.Random) -> Turn:
    """What kind of thing a thing is."""
    if rng.random() < 0.15:
        thing = made_up(rng)
        answer = UNKNOWN[0].format(what=f"{article(thing)} {thing}")
    else:
        name = rng.choice(tuple(KINDS))
        things = listed((HARMFUL | ROUGH)[name][1])
        if name in HARMFUL and rng.random() < 0.6:  # training meets these hardly anywhere else
            kept = words_of(name).things
            things = [*kept["dev"], *kept["test"]]
        thing = rng.choice(things)
        answer = KIND_FORM.format(A=sentence(article(thing)), thing=thing, kind=KINDS[name])
    asked = rng.choice(ASK_KIND).format(a=article(thing), thing=thing)
    return Turn(careless_typing(rng, asked), answer, "kind", "")


def word_turn(rng: random.Random) -> Turn:
    draw = rng.random()
    return (right_turn if draw < 0.5 else kind_turn if draw < 0.8 else verb_turn)(rng)


def small_talk_turn(rng: random.Random) -> Turn:
    if rng.random() < 0.15:
        before, phrase, intent = rng.choice(held_out().train["smalltalk"])
        phrase = f"{before} {phrase}"
    else:
        intent = rng.choice(tuple(PHRASES))
        phrase = careless_typing(rng, rng.choice(PHRASES[intent]))
    return Turn(phrase, rng.choice(SMALL_TALK[intent]), "smalltalk", intent)


def unknown_question(rng: random.Random, split: str = "train") -> tuple[str, str]:
    """A question from outside the world and the honest answer; a split has its own."""
    kind = rng.randrange(3)
    if kind == 0:
        word = made_up(rng, split)
        asked = rng.choice(ASK_TERM).format(a=article(word), term=word)
        return asked, UNKNOWN[0].format(what=f"{article(word)} {word}")
    if kind == 1:
        real = split == "train" and rng.random() < 0.3
        country = rng.choice(REAL_COUNTRIES) if real else sentence(made_up(rng, split))
        asked = rng.choice(ASK_FACT).format(attribute=rng.choice(ATTRIBUTES), country=country)
        return asked, UNKNOWN[2].format(country=country)
    return rng.choice(off_world()[split]), UNKNOWN[3]


def unknown_turn(rng: random.Random, stage: Stage) -> Turn:
    style = a_style(rng)
    asked, answer = unknown_question(rng)
    user = styled(rng, framed(rng, asked), style, stage)
    return Turn(user, opened(style, answer), "unknown", "")


def benign_turns(rng: random.Random, stage: Stage, rough: float = ROUGH_SHARE) -> list[Turn]:
    """A harmless exchange; some are in a role, which changes nothing."""
    makers: tuple[tuple[float, Callable[[], Turn | list[Turn]]], ...] = (
        (0.24, lambda: fact_turn(rng, stage)),
        (0.04, lambda: follow_up_turns(rng)),
        (0.02, lambda: about_turn(rng)),
        (0.14, lambda: definition_turn(rng, stage)),
        (0.25, lambda: chore_turn(rng, rough, stage)),
        (0.07, lambda: small_talk_turn(rng)),
        (0.06, lambda: unknown_turn(rng, stage)),
        (0.18, lambda: word_turn(rng)),
    )
    (maker,) = rng.choices([m for _, m in makers], [weight for weight, _ in makers])
    made = maker()
    if isinstance(made, list):
        return made
    if made.kind != "smalltalk" and rng.random() < 0.12:
        made = replace(made, user=in_role(rng, made.user, a_role(rng), stage))
    return [made]
