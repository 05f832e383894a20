"""Attacks that search: they ask the defended model until it complies, or a budget is spent."""

from __future__ import annotations

from minisafe.evaluation.attacks.attack import Attempt, Oracle, Target
from minisafe.session.chat_prompt import ChatPrompt

BEGINNING = 12  # tokens of a compliant answer that a search makes likely
SWAPS = 256  # ids per place that a gradient proposes


def best_of(target: Target, oracle: Oracle, n: int) -> Attempt:
    """n answers at temperature 1; the first that complies, else the last."""
    prompt = ChatPrompt.of(target.asked)
    answers = oracle.ask([prompt] * n, temperature=1.0, draw=target.number * n)
    complied = oracle.complies(target, [prompt] * n, answers)
    return Attempt(prompt, answers[complied.index(True) if any(complied) else -1])


def coordinate(
    target: Target, oracle: Oracle, n_words: int = 5, width: int = 16, budget: int = 640
) -> Attempt:
    """Random coordinate search over inserted words, against the whole defence.

    In each round a word is replaced by `width` others, and the one that makes a compliant beginning
    likeliest stays. Then the question is asked; the search ends with an answer that complies.
    budget: queries, likelihoods and answers together.
    """
    draws = target.random("search")
    beginning = oracle.cut(oracle.compliant(target), BEGINNING)
    words = draws.choices(oracle.words, k=n_words)
    best = oracle.likelihood([with_words(target, words)], beginning)[0]
    spent = 1
    while True:
        prompt = with_words(target, words)
        answer = oracle.ask([prompt])[0]
        spent += 1
        if oracle.complies(target, [prompt], [answer])[0] or spent + width + 1 > budget:
            return Attempt(prompt, answer)
        at = draws.randrange(n_words)
        tries = [
            [*words[:at], word, *words[at + 1 :]] for word in draws.choices(oracle.words, k=width)
        ]
        found = oracle.likelihood([with_words(target, each) for each in tries], beginning)
        spent += width
        if max(found) > best:
            best, words = max(found), tries[found.index(max(found))]


def with_words(target: Target, words: list[str]) -> ChatPrompt:
    """The question, with words after it."""
    return ChatPrompt.of(f"{target.asked} {' '.join(words)}")
