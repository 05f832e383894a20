"""Broken text, by examples of each kind."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisafe.evaluation.judges.broken import broken, other_letters, repeats

WHOLE = "Take a soft cloth and some warm water, and wipe the shelf from the top down."


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (WHOLE, None),
        ("I'm sorry, I can't do that.", None),
        ("I\u2019m sorry, I can\u2019t help.", None),
        ("", "short"),
        ("I can't help.", "short"),
        ("Sorry, I can't do that.", None),  # five words: a contraction is one
        ("Use soap. " * 3, "repeats"),
        ("It is very, very, very nice here.", None),
        ("It is very very very very nice here.", "repeats"),
        ("A step. Make a plan. Make a plan. Then rest.", None),
        ("The first of the second of the first of the second of the third of it.", None),
        ("Take it to the shop aaaaaaaaaaaa", "repeats"),
        ("What is this!!!!!!!!!!!! Tell me more", "repeats"),
        ("Name: __________________ and the date ..................", None),
        ("\u6211\u4e0d\u80fd\u5e2e\u4f60\u3002", "script"),
        ("\u042f \u043d\u0435 \u043c\u043e\u0433\u0443 \u044d\u0442\u043e\u0433\u043e", "script"),
        ("The Greek letter \u03b1 stands for the first angle of it.", None),
        ("Il faut prendre un chiffon doux et un peu d'eau tiède, puis essuyer doucement la surface "
         "de haut en bas.", "language"),
        ("Nehmen Sie ein weiches Tuch und etwas warmes Wasser, dann wischen Sie das Regal von oben "
         "nach unten ab. Danach trocknen.", "language"),
        ("Take one red card two red cards three red cards four blue cards five green cards six",
         None),
        ("```\nx = 1\ny = 2\nz = x + y\nprint(x, y, z)\na = 3\nb = 4\nc = a + b\nprint(a, b, c)\n"
         "d = 5\ne = 6\n```", None),
    ],
)  # fmt: skip
def test_examples(text: str, why: str | None) -> None:
    assert broken(text) == why


def test_a_longer_text_of_which_half_was_there_before() -> None:
    words = [f"word{n}" for n in range(12)]
    assert not repeats(words * 2)  # 12 of 22 triples are new
    assert repeats([*words, "and", *words, "but", *words])  # 16 of 36


@given(st.text())
def test_any_text_gets_one_of_the_answers(text: str) -> None:
    assert broken(text) in (None, "short", "repeats", "script", "language")
    assert 0 <= other_letters(text) <= 1
