"""One question and its answer: acts, facts, definitions, small talk, unknown things."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from minisafe.evaluation.prompts.styles import apply_style
from minisafe.evaluation.world import article, opened, sentence
from minisafe.evaluation.world.phrases import (
    ABOUT_FORM,
    CATEGORIES,
    COUNTRY_FORMS,
    DEFINITION_FORM,
    DEFINITIONS,
    PLACEHOLDERS,
    REFUSALS,
    SMALL_TALK,
    STEP_FORMS,
    UNKNOWN,
)
from world.acts import Act, chore, make_act, rough_act
from world.facts import ATTRIBUTES, facts, made_up
from world.held_out import held_out
from world.words import (
    AFTER,
    ASK,
    ASK_ABOUT,
    ASK_FACT,
    ASK_TERM,
    BEFORE,
    OFF_WORLD,
    PHRASES,
    REAL_COUNTRIES,
    ROUGH_SHARE,
)


@dataclass(frozen=True)
class Turn:
    """One exchange. `question` says what was asked before frames and styles."""

    user: str
    answer: str
    kind: str
    category: str


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
    """The question, sometimes with a sentence before or after it."""
    if rng.random() < 0.15:
        question = f"{rng.choice(BEFORE)} {question}"
    if rng.random() < 0.1:
        question = f"{question} {rng.choice(AFTER)}"
    return question


def careless_typing(rng: random.Random, text: str) -> str:
    """As people type: sometimes without capitals, sometimes without the last mark."""
    if rng.random() < 0.1:
        text = text[:1].lower() + text[1:] if rng.random() < 0.5 else text.lower()
    return text.rstrip("?.!") if rng.random() < 0.1 else text


def ask(rng: random.Random, act: Act) -> str:
    return rng.choice(ASK).format(act=act.asked)


def a_style(rng: random.Random) -> str:
    return rng.choice(("simple", "simple", "instruction", "cot"))


def act_turn(rng: random.Random, act: Act, style: str, comply: bool) -> Turn:
    """The question's words do not depend on whether it is complied with."""
    answering = random.Random(rng.getrandbits(64))
    answer = step_answer(answering, act, style) if comply else refusal(answering, act)
    asked = careless_typing(rng, framed(rng, ask(rng, act)))
    return Turn(apply_style(asked, style), answer, act.kind, act.category)


def chore_turn(rng: random.Random, rough: float) -> Turn:
    act = rough_act(rng) if rng.random() < rough else chore(rng)
    return act_turn(rng, act, a_style(rng), comply=True)


def fact_turn(rng: random.Random) -> Turn:
    index, country, attribute = rng.choice(held_out().train["fact"])
    style = a_style(rng)
    asked = ASK_FACT[int(index)].format(attribute=attribute, country=country)
    value = facts()[country][attribute]
    answer = fact_answer(rng.choice(COUNTRY_FORMS), country, attribute, value)
    user = apply_style(framed(rng, asked), style)
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


def definition_turn(rng: random.Random) -> Turn:
    index, term = rng.choice(held_out().train["definition"])
    style = a_style(rng)
    asked = careless_typing(rng, ASK_TERM[int(index)].format(a=article(term), term=term))
    answer = opened(style, definition_answer(term))
    return Turn(apply_style(framed(rng, asked), style), answer, "definition", term)


def small_talk_turn(rng: random.Random) -> Turn:
    if rng.random() < 0.15:
        before, phrase, intent = rng.choice(held_out().train["smalltalk"])
        phrase = f"{before} {phrase}"
    else:
        intent = rng.choice(tuple(PHRASES))
        phrase = careless_typing(rng, rng.choice(PHRASES[intent]))
    return Turn(phrase, rng.choice(SMALL_TALK[intent]), "smalltalk", intent)


def unknown_question(rng: random.Random) -> tuple[str, str]:
    """A question from outside the world and the honest answer."""
    kind = rng.randrange(4)
    if kind == 0:
        word = made_up(rng)
        asked = rng.choice(ASK_TERM).format(a=article(word), term=word)
        return asked, UNKNOWN[0].format(what=f"{article(word)} {word}")
    if kind == 1:
        thing = rng.choice(held_out().train["howto"])[1] if rng.random() < 0.5 else made_up(rng)
        act = make_act("unknown", "", made_up(rng), thing, rng, "")
        return ask(rng, act), UNKNOWN[1].format(act=act.told)
    if kind == 2:
        real = rng.random() < 0.3
        country = rng.choice(REAL_COUNTRIES) if real else sentence(made_up(rng))
        asked = rng.choice(ASK_FACT).format(attribute=rng.choice(ATTRIBUTES), country=country)
        return asked, UNKNOWN[2].format(country=country)
    return rng.choice(OFF_WORLD), UNKNOWN[3]


def unknown_turn(rng: random.Random) -> Turn:
    style = a_style(rng)
    asked, answer = unknown_question(rng)
    return Turn(apply_style(framed(rng, asked), style), opened(style, answer), "unknown", "")


def benign_turns(rng: random.Random, rough: float = ROUGH_SHARE) -> list[Turn]:
    makers: tuple[tuple[float, Callable[[random.Random], Turn | list[Turn]]], ...] = (
        (0.30, fact_turn), (0.05, follow_up_turns), (0.03, about_turn), (0.17, definition_turn),
        (0.28, lambda rng: chore_turn(rng, rough)), (0.09, small_talk_turn), (0.08, unknown_turn),
    )  # fmt: skip
    (maker,) = rng.choices([m for _, m in makers], [weight for weight, _ in makers])
    made = maker(rng)
    return made if isinstance(made, list) else [made]
