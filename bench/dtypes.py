"""Tokens per second in bfloat16 and in float32, plain and safe: the basis of the default dtype.

    python bench/dtypes.py --shape shipped 135m tinyllama --json bench/results/dtypes.json

The rows have `speed.py`'s form; both dtypes of a shape alternate.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from report import (
    Progress,
    Row,
    bench_parser,
    describe_run,
    kept_when_stopped,
    make_row,
    under,
    write_json,
)
from subjects import LABELS, Subject, converted, find_subject, random_prompt
from systems import PLAIN, SAFE, minisafe_systems
from timing import answer_ms, ratio, turns

from minisafe.fast.prepare import prepare

System = Callable[[], Iterator[int]]
NARROW, WIDE = "bfloat16", "float32"


def dtype_systems(subject: Subject, args: argparse.Namespace) -> dict[tuple[str, str], System]:
    """(system, dtype) -> answer, each with the weights that `auto` chooses for its dtype."""
    found = {}
    prompt = random_prompt(args.prompt, subject.model.config.vocab_size)
    for dtype in (NARROW, WIDE):
        each = converted(subject, getattr(torch, dtype))
        model = prepare(each.model, args.weights)
        systems = minisafe_systems(replace(each, model=model), prompt, args.new)
        found |= {(name, dtype): systems[name] for name in (PLAIN, SAFE)}
    return found


def dtype_rows(label: str, samples: dict[tuple[str, str], list[tuple[float, float]]]) -> list[Row]:
    """Tokens per second and first tokens in both dtypes, and their ratios."""
    rows = []
    times = {key: list(zip(*each, strict=True)) for key, each in samples.items()}
    for (name, dtype), (first, token) in times.items():
        rows.append(make_row(f"{name}, {dtype}, first token", median(first), "ms"))
        rows.append(make_row(f"{name}, {dtype}", 1e3 / median(token), "tokens/s"))
    for name in (PLAIN, SAFE):
        if (name, NARROW) in times and (name, WIDE) in times:
            for what, place in (("first token", 0), ("a token", 1)):
                over = ratio(times[name, WIDE][place], times[name, NARROW][place])
                rows.append(make_row(f"{name}, {WIDE} over {NARROW}, {what}, time", over, "x"))
    return under(label, rows)


def measure(label: str, args: argparse.Namespace, rows: list[Row]) -> None:
    """Add the rows of a shape, even after an interruption."""
    subject = find_subject(label)
    if subject is None:
        return
    systems = dtype_systems(subject, args)
    keys = list(systems)
    progress = Progress(label, len(keys) * (args.runs + 1))
    for key in keys:
        answer_ms(systems[key], 4)
        progress.say(f"{', '.join(key)}, to warm up")
    samples: dict[tuple[str, str], list[tuple[float, float]]] = {}
    try:
        for which in turns(args.runs, len(keys)):
            key = keys[which]
            samples.setdefault(key, []).append(answer_ms(systems[key], args.new))
            progress.say(", ".join(key))
    finally:
        rows += dtype_rows(label, samples)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = bench_parser(__doc__, new=32)
    parser.add_argument("--shape", nargs="+", choices=LABELS, default=["shipped", "135m"])
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--weights", default="auto", help="the setting (docs/profile.md)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    result: dict[str, Any] = {"rows": rows} | describe_run(args)
    with kept_when_stopped(args.json, rows):
        for label in args.shape:
            try:
                measure(label, args, rows)
            finally:
                write_json(args.json, result)


if __name__ == "__main__":
    main()
