"""Decoding speed of minisafe, beside itself without safety and beside its peers, in one run.

    python bench/speed.py --shape tinyllama 100m shipped --json bench/results/today.json

What is measured is in `subjects.py`, what is compared in `systems.py`, the clock in `timing.py`.
All systems of a shape work on the same weights; every round runs each of them once, so that noise
hits all alike, and a ratio is the median of the rounds' ratios. bench/README.md tells how to read
the numbers.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from report import Row, bench_parser, describe_run, make_row, print_table, under, write_json
from speculation import speculation_rows
from subjects import LABELS, SHAPES, Subject, bytes_per_token, find_subject, random_prompt
from systems import CPP, CPP8, CPPS, PEER, PEERS, PLAIN, PROMPTED, SAFE, SEPARATE, all_systems
from timing import answer_ms, by_turns, ratio, read_bandwidth

BANDWIDTH, FIRST = "read bandwidth", "first token"
OF_BANDWIDTH = {PLAIN: None, f"{PLAIN}, packed": ">= 0.65", f"{PLAIN}, compiled": ">= 0.85"}
RATIOS = (  # of times a token: name, the system above, the one below, target
    ("safe (LoRA) over plain, time", SAFE, PLAIN, "<= 1.3"),
    ("safe (prompted) over plain, time", PROMPTED, PLAIN, "<= 1.3"),
    ("safe (LoRA) separate over fused, time", SEPARATE, SAFE, None),
    ("plain over transformers, speed", PEER, PLAIN, "> 1.0"),
    ("safe (LoRA) over transformers' two models, speed", PEERS, SAFE, None),
    ("packed over plain weights, plain, speed", PLAIN, f"{PLAIN}, packed", None),
    ("packed: safe (LoRA) over plain, time", f"{SAFE}, packed", f"{PLAIN}, packed", "<= 1.1"),
    ("packed: plain over transformers, speed", PEER, f"{PLAIN}, packed", ">= 2.0"),
    ("packed: safe (LoRA) over two models, speed", PEERS, f"{SAFE}, packed", ">= 3.0"),
    (
        "packed: safe (prompted) over plain, time",
        f"{PROMPTED}, packed",
        f"{PLAIN}, packed",
        "<= 1.1",
    ),
    ("packed: plain over llama.cpp BF16, speed", CPP, f"{PLAIN}, packed", ">= 0.75"),
    ("packed: safe (LoRA) over llama.cpp's two, speed", CPPS, f"{SAFE}, packed", ">= 1.1"),
    ("int8: plain over llama.cpp Q8_0, speed (stretch)", CPP8, f"{PLAIN}, int8", ">= 1.0"),
    ("compiled: safe (LoRA) over plain, time", f"{SAFE}, compiled", f"{PLAIN}, compiled", None),
    ("compiled: plain over llama.cpp BF16, speed", CPP, f"{PLAIN}, compiled", ">= 0.95"),
    ("compiled over packed, plain, speed", f"{PLAIN}, packed", f"{PLAIN}, compiled", None),
    ("int8 over packed, plain, speed", f"{PLAIN}, packed", f"{PLAIN}, int8", ">= 1.4"),
    ("int8 over packed, safe (LoRA), speed", f"{SAFE}, packed", f"{SAFE}, int8", ">= 1.4"),
)
Samples = dict[str, list[float]]  # a value a round: GB/s, ms to the first token, ms a token


def measure(subject: Subject, args: argparse.Namespace) -> Samples:
    """All systems, round by round; one round to warm up is lost."""
    prompt = random_prompt(args.prompt, subject.model.config.vocab_size)
    systems = all_systems(subject, prompt, args.new, args.compile)
    buffers = [torch.ones(args.buffer_mib * 2**18) for _ in range(3)]

    def acts(new: int) -> list[Callable[[], tuple[float, ...]]]:
        timed = [partial(answer_ms, system, new) for system in systems.values()]
        return [lambda: (read_bandwidth(buffers),), *timed]

    by_turns(1, *acts(min(args.new, 4)))
    bandwidth, *answers = by_turns(args.runs, *acts(args.new))
    samples = {BANDWIDTH: [gb_s for (gb_s,) in bandwidth]}
    for name, answer in zip(systems, answers, strict=True):
        samples[f"{name}, {FIRST}"], samples[name] = map(list, zip(*answer, strict=True))
    return samples


def import_seconds(runs: int) -> float:
    """Median time of `import minisafe` after `import torch`, in fresh interpreters."""
    code = "import time, torch; t = time.perf_counter(); import minisafe; "
    command = [sys.executable, "-c", code + "print(time.perf_counter() - t)"]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    run = partial(subprocess.run, command, env=env, capture_output=True, text=True, check=True)
    run()  # writes the bytecode
    return median(float(run().stdout) for _ in range(runs))


def make_rows(label: str, samples: Mapping[str, list[float]], bytes_read: float) -> list[Row]:
    """All numbers of one shape; bytes_read: by a plain token."""
    bandwidth = samples[BANDWIDTH]
    rows = [make_row(BANDWIDTH, median(bandwidth), "GB/s")]
    for name, target in OF_BANDWIDTH.items():
        if name not in samples:
            continue
        speeds = [bytes_read / ms / 1e6 for ms in samples[name]]
        rows.append(make_row(f"{name}, weights and cache read", median(speeds), "GB/s"))
        rows.append(make_row(f"{name} over {BANDWIDTH}", ratio(speeds, bandwidth), "x", target))
    for name, values in samples.items():
        if name.endswith(FIRST):
            rows.append(make_row(name, median(values), "ms"))
        elif name != BANDWIDTH:
            rows.append(make_row(name, 1e3 / median(values), "tokens/s"))
    for name, top, below, target in RATIOS:
        if top in samples and below in samples:
            rows.append(make_row(name, ratio(samples[top], samples[below]), "x", target))
    return under(label, rows)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = bench_parser(__doc__, new=32)
    parser.add_argument("--shape", nargs="+", choices=LABELS, default=["tinyllama"])
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--buffer-mib", type=int, default=1024, help="size of the 3 read buffers")
    parser.add_argument("--speculate", action="store_true", help="a separate expert, drafted for")
    parser.add_argument("--compile", action="store_true", help="the compiled step, too (minutes)")
    return parser.parse_args(argv)


def decoding_rows(label: str, args: argparse.Namespace, samples: dict[str, Samples]) -> list[Row]:
    """The rows of one shape; its samples go to `samples`."""
    subject = find_subject(label)
    if subject is None:
        return []
    samples[label] = measure(subject, args)
    context = args.prompt + args.new / 2  # tokens in the cache, on average
    return make_rows(label, samples[label], bytes_per_token(subject.model, context))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    samples: dict[str, Samples] = {}
    result: dict[str, Any] = {"rows": rows} | describe_run(args) | {"samples": samples}
    seconds = import_seconds(args.runs)
    rows.append(make_row("import minisafe beyond torch", seconds, "s", "<= 0.15"))
    for label in args.shape:
        rows += decoding_rows(label, args, samples)
        write_json(args.json, result)
        if args.speculate and label in SHAPES:
            rows += speculation_rows(label, args.prompt, args.new, args.runs)
            write_json(args.json, result)
    print_table(rows)


if __name__ == "__main__":
    main()
