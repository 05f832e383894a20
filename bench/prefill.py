"""Reading a prompt: time to the first token, beside transformers on the same weights."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from statistics import median

import speed
from speed import Row, System, make_row
from timing import by_turns, ratio

from minisafe.prepare import prepare

PLAIN, SAFE, PEER = speed.PLAIN, speed.SAFE, speed.PEER


def first_token(system: System) -> int:
    return next(system())


def systems_of(label: str, n_prompt: int) -> dict[str, Callable[[], object]]:
    """Plain and safe decoding on packed weights, and the peer on the tensors they are made from."""
    subject = speed.random_subject(speed.SHAPES[label])
    draw = random.Random(0)
    prompt = tuple(draw.randrange(subject.model.config.vocab_size) for _ in range(n_prompt))
    systems = {}
    if speed.util.find_spec("transformers") is None:
        print("transformers is not installed here: its rows are skipped (see bench/README.md)")
    else:  # before the weights are packed, for the peer takes the plain tensors
        peer = speed.transformers_model(subject.model)
        systems[PEER] = partial(speed.transformers_tokens, (peer,), prompt)
    prepare(subject.model, "packed")
    ours = speed.minisafe_systems(subject, prompt, 1)
    systems |= {name: ours[name] for name in (PLAIN, SAFE)}
    return {name: partial(first_token, system) for name, system in systems.items()}


def prefill_rows(label: str, n_prompt: int, runs: int) -> list[Row]:
    """Milliseconds of prompt and first token, and their ratios; a round to warm up is lost."""
    systems = systems_of(label, n_prompt)
    by_turns(1, *systems.values())
    times = dict(zip(systems, by_turns(runs, *systems.values()), strict=True))
    what = f"{label}: prefill of {n_prompt} tokens"
    rows = [make_row(f"{what}, {name}", 1e3 * median(t), "ms") for name, t in times.items()]
    if PEER in times:
        over = ratio(times[PEER], times[PLAIN])
        rows.append(make_row(f"{what}, plain over transformers, speed", over, "x", ">= 1.0"))
    over = ratio(times[SAFE], times[PLAIN])
    return [*rows, make_row(f"{what}, safe (LoRA) over plain, time", over, "x", "<= 2.1")]
