"""Reading a prompt: time to the first token, beside transformers on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

from huggingface import has_transformers, transformers_model, transformers_tokens
from report import Row, make_row
from subjects import SHAPES, random_prompt, random_subject
from systems import PEER, PLAIN, SAFE, System, minisafe_systems
from timing import ratio, seconds_by_turns

from minisafe.fast.prepare import prepare


def first_token(system: System) -> int:
    return next(system())


def systems_of(label: str, n_prompt: int) -> dict[str, Callable[[], object]]:
    """Plain and safe decoding on packed weights, and the peer on the original tensors."""
    subject = random_subject(SHAPES[label])
    prompt = random_prompt(n_prompt, subject.model.config.vocab_size)
    systems: dict[str, System] = {}
    if has_transformers():  # before packing, because the peer uses the plain tensors
        peer = transformers_model(subject.model)
        systems[PEER] = partial(transformers_tokens, (peer,), prompt)
    prepare(subject.model, "packed")
    ours = minisafe_systems(subject, prompt, 1)
    systems |= {name: ours[name] for name in (PLAIN, SAFE)}
    return {name: partial(first_token, system) for name, system in systems.items()}


def prefill_rows(label: str, n_prompt: int, runs: int) -> list[Row]:
    """Milliseconds of prompt and first token, and their ratios; a first round warms up."""
    systems = systems_of(label, n_prompt)
    seconds_by_turns(1, *systems.values())
    times = dict(zip(systems, seconds_by_turns(runs, *systems.values()), strict=True))
    what = f"{label}: prefill of {n_prompt} tokens"
    rows = [make_row(f"{what}, {name}", 1e3 * median(t), "ms") for name, t in times.items()]
    if PEER in times:
        over = ratio(times[PEER], times[PLAIN])
        rows.append(make_row(f"{what}, plain over transformers, speed", over, "x", ">= 1.0"))
    over = ratio(times[SAFE], times[PLAIN])
    return [*rows, make_row(f"{what}, safe (LoRA) over plain, time", over, "x", "<= 2.1")]
