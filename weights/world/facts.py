"""The invented countries, the same in every run, and words that mean nothing."""

from __future__ import annotations

import random
import zlib
from functools import cache

from minisafe.evaluation.world import sentence
from world.words import WORLD_SEED

ATTRIBUTES = ("capital", "language", "currency", "longest river", "highest mountain",
              "national animal", "national flower")  # fmt: skip
ANIMALS = ("red fox", "brown bear", "grey wolf", "white stork", "sea turtle", "black horse",
           "wild goat", "snow hare", "green frog", "golden eagle", "striped cat",
           "river otter")  # fmt: skip
FLOWERS = ("white rose", "blue iris", "red poppy", "yellow tulip", "wild orchid", "pink lotus",
           "water lily", "purple thistle", "mountain daisy", "sun lily")  # fmt: skip
COUNTRIES = 24
_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "gr",
           "kr", "pl", "st", "tr", "sh")  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ou")
_ENDS = ("", "", "l", "n", "r", "s", "m", "t", "k", "sk", "nd")


def made_up(rng: random.Random, split: str = "train") -> str:
    """A word that means nothing. Each split has its own: a word's checksum says whose it is."""
    kept = {0: "dev", 1: "test"}
    while True:
        word = _made_up(rng)
        if kept.get(zlib.crc32(word.encode()) % 16, "train") == split:
            return word


def _made_up(rng: random.Random) -> str:
    """Two or three syllables."""
    count = rng.choice((2, 2, 3))
    body = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(count - 1))
    return body + rng.choice(_ONSETS) + rng.choice(_VOWELS[:5]) + rng.choice(_ENDS)


@cache
def facts() -> dict[str, dict[str, str]]:
    """country: attribute: value, the same in every run."""
    rng = random.Random(WORLD_SEED)
    names: list[str] = []
    while len(names) < COUNTRIES * 6:
        word = sentence(_made_up(rng))
        if word not in names and len(word) < 9:
            names.append(word)
    table: dict[str, dict[str, str]] = {}
    for i in range(COUNTRIES):
        country, capital, language, currency, river, mountain = names[6 * i : 6 * i + 6]
        table[country] = {
            "capital": capital, "language": language, "currency": f"the {currency.lower()}",
            "longest river": f"the {river}", "highest mountain": f"Mount {mountain}",
            "national animal": f"the {rng.choice(ANIMALS)}",
            "national flower": f"the {rng.choice(FLOWERS)}",
        }  # fmt: skip
    return table
