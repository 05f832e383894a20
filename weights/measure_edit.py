"""Measure rank-one edits on the shipped world: `python weights/measure_edit.py --facts 20`.

Each fact gives a country's attribute another country's value. The table shows per cent of greedy
chat answers, with Wilson 95 % intervals, before and after. Each edit starts from a fresh base; with
--together, all edits are in one model:

    efficacy        the new value, in the phrasing that was edited
    paraphrase      the new value, in the seven other phrasings
    neighbourhood   every other country's own value of the same attribute
    same subject    the country's own values of its other attributes
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measure import Share
from world import ASK_FACT, ATTRIBUTES, facts

import minisafe
from minisafe.editing import Edit, Editing, edit
from minisafe.editing.rome import down_projection, put_down_projection
from minisafe.session import Session

HERE = Path(__file__).resolve().parent
MEASURES = ("efficacy", "paraphrase", "neighbourhood", "same subject")
Fact = tuple[str, str, str]  # country, attribute, new value
Asked = list[tuple[str, str]]  # question, and the text that a right answer contains


def lines() -> list[str]:
    """The text of the covariance: the held-out questions of the dev split."""
    text = (HERE / "data" / "benign-dev.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["prompt"] for line in text.splitlines()]


def drawn(count: int, seed: int = 0) -> list[Fact]:
    """Facts to store, with no attribute of a country twice."""
    rng = random.Random(seed)
    pairs = [(country, attribute) for country in facts() for attribute in ATTRIBUTES]
    found = []
    for country, attribute in rng.sample(pairs, count):
        values = {each[attribute] for each in facts().values()} - {facts()[country][attribute]}
        found.append((country, attribute, rng.choice(sorted(values))))
    return found


def as_edit(country: str, attribute: str, value: str) -> Edit:
    prompt = ASK_FACT[0].replace("{attribute}", attribute).replace("{country}", "{}")
    return Edit(country, prompt, f"The {attribute} of {country} is {value}.")


def questions(fact: Fact, stored: Sequence[Fact]) -> dict[str, Asked]:
    """The questions about a fact for each measure; `stored` facts replace the world's facts."""
    table = {country: dict(values) for country, values in facts().items()}
    for country, attribute, value in stored:
        table[country][attribute] = value
    country, attribute, value = fact
    forms = [form.format(attribute=attribute, country=country) for form in ASK_FACT]
    about = [(name, attribute) for name in table if name != country]
    rest = [(country, name) for name in ATTRIBUTES if name != attribute]
    ours, theirs = (
        [(ASK_FACT[0].format(attribute=a, country=c), table[c][a]) for c, a in cells]
        for cells in (rest, about)
    )
    paraphrases = [(each, value) for each in forms[1:]]
    return dict(zip(MEASURES, ([(forms[0], value)], paraphrases, theirs, ours), strict=True))


def right(session: Session, asked: dict[str, Asked]) -> dict[str, list[bool]]:
    """Whether each answer contains the value."""
    flat = [(name, *pair) for name, pairs in asked.items() for pair in pairs]
    results = session.generate([question for _, question, _ in flat], chat=True, batch_size=32)
    found: dict[str, list[bool]] = {name: [] for name in asked}
    for (name, _, value), result in zip(flat, results, strict=True):
        found[name].append(value.lower() in result.text.lower())
    return found


def measure(
    session: Session, chosen: Sequence[Fact], settings: Editing, together: bool = False
) -> dict[str, tuple[list[bool], list[bool]]]:
    """Answers before and after, by measure; restores the session's model at the end."""
    found: dict[str, tuple[list[bool], list[bool]]] = {name: ([], []) for name in MEASURES}
    model, depth = session.model, session.model.config.n_layers
    for group in [chosen] if together else [[fact] for fact in chosen]:
        before = [right(session, questions(fact, [])) for fact in group]
        old = {layer: down_projection(model, layer) for layer in range(depth)}
        edits = [as_edit(*fact) for fact in group]
        done = edit(model, session.tokenizer, edits, lines(), settings)
        after = [right(session, questions(fact, group)) for fact in group]
        put_down_projection(model, done[0].layer, old[done[0].layer])
        for name in MEASURES:
            found[name][0].extend(hit for each in before for hit in each[name])
            found[name][1].extend(hit for each in after for hit in each[name])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--facts", type=int, default=20)
    parser.add_argument("--layers", default="2", help="layers to compare, such as 1,2,3")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--together", action="store_true", help="all facts in one model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    session = minisafe.load(HERE / "tiny", {"safe": False, "dtype": "float32"})
    print("| layer | measure | n | before | after | 95 % |\n|---|---|---|---|---|---|")
    for layer in map(int, options.layers.split(",")):
        settings = Editing(layer=layer, chat=True, seed=options.seed)
        found = measure(session, drawn(options.facts, options.seed), settings, options.together)
        for name, (old, new) in found.items():
            was, now = Share(sum(old), len(old)), Share(sum(new), len(new))
            low, high = now.interval()
            print(f"| {layer} | {name} | {now.n} | {was.value:.1f} | {now.value:.1f} "
                  f"| {low:.1f} to {high:.1f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
