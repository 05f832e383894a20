"""Decoding speed of minisafe, without safety, with safety, and of its peers, in one run.

    python bench/speed.py --shape tinyllama 100m shipped --json bench/results/today.json

`subjects.py` has what is measured, `systems.py` what is compared, `timing.py` the clock. All
systems of a shape use the same weights. Every round runs each system once, so that noise affects
all of them equally, and a ratio is the median of the rounds' ratios. bench/README.md explains how
to read the numbers.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
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
from speculation import speculation_rows
from subjects import LABELS, SHAPES, Subject, bytes_per_token, find_subject, random_prompt
from systems import (
    ANCHORED,
    CPP,
    CPP4,
    CPP8,
    CPPS,
    PEER,
    PEERS,
    PLAIN,
    PROMPTED,
    SAFE,
    SEPARATE,
    all_systems,
)
from timing import answer_ms, ratio, read_bandwidth, turns

BANDWIDTH, FIRST = "read bandwidth", "first token"
OF_BANDWIDTH = {PLAIN: None, f"{PLAIN}, packed": ">= 0.65", f"{PLAIN}, compiled": ">= 0.85"}
RATIOS = (  # of times per token: name, the system above, the one below, target
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
    ("packed: anchored over plain, time", f"{ANCHORED}, packed", f"{PLAIN}, packed", "<= 1.25"),
    ("packed: plain over llama.cpp BF16, speed", CPP, f"{PLAIN}, packed", ">= 0.75"),
    ("packed: safe (LoRA) over llama.cpp's two, speed", CPPS, f"{SAFE}, packed", ">= 1.1"),
    ("int8: plain over llama.cpp Q8_0, speed", CPP8, f"{PLAIN}, int8", ">= 0.9"),
    ("int4: plain over llama.cpp Q4_0, speed", CPP4, f"{PLAIN}, int4", ">= 0.8"),
    ("int4 over packed, plain, speed", f"{PLAIN}, packed", f"{PLAIN}, int4", None),
    ("int4 over packed, safe (LoRA), speed", f"{SAFE}, packed", f"{SAFE}, int4", None),
    ("compiled: safe (LoRA) over plain, time", f"{SAFE}, compiled", f"{PLAIN}, compiled", None),
    ("compiled: plain over llama.cpp BF16, speed", CPP, f"{PLAIN}, compiled", ">= 0.95"),
    ("compiled over packed, plain, speed", f"{PLAIN}, packed", f"{PLAIN}, compiled", None),
    ("int8 over packed, plain, speed", f"{PLAIN}, packed", f"{PLAIN}, int8", ">= 1.4"),
    ("int8 over packed, safe (LoRA), speed", f"{SAFE}, packed", f"{SAFE}, int8", ">= 1.4"),
)
Samples = dict[str, list[float]]  # one value per round: GB/s, ms to the first token, ms per token


def measure(
    subject: Subject, args: argparse.Namespace, samples: Samples, label: str
) -> Iterator[str]:
    """All systems, round by round; a first round warms up. A system's numbers go to `samples` at
    once, and then its name is yielded, so that an interrupted run keeps them."""
    prompt = random_prompt(args.prompt, subject.model.config.vocab_size)
    print(f"{label}: preparing the systems", file=sys.stderr, flush=True)
    systems = all_systems(subject, prompt, args.new, args.compile)
    buffers = [torch.ones(args.buffer_mib * 2**18) for _ in range(3)]
    names = [BANDWIDTH, *systems]

    def act(name: str, new: int) -> tuple[float, ...]:
        if name == BANDWIDTH:
            return (read_bandwidth(buffers),)
        return answer_ms(systems[name], new)

    progress = Progress(label, len(names) * (args.runs + 1))
    for name in names:
        act(name, min(args.new, 4))
        progress.say(f"{name}, to warm up")
    for which in turns(args.runs, len(names)):
        name = names[which]
        keys = (name,) if name == BANDWIDTH else (f"{name}, {FIRST}", name)
        for key, value in zip(keys, act(name, args.new), strict=True):
            samples.setdefault(key, []).append(value)
        progress.say(name)
        yield name


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
    bandwidth = samples.get(BANDWIDTH)
    rows = [make_row(BANDWIDTH, median(bandwidth), "GB/s")] if bandwidth else []
    for name, target in OF_BANDWIDTH.items():
        if bandwidth is None or name not in samples:
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
    parser.add_argument(
        "--speculate", action="store_true", help="speculation for a separate expert"
    )
    parser.add_argument(
        "--compile", action="store_true", help="also the compiled step (takes minutes)"
    )
    return parser.parse_args(argv)


def decode(label: str, args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Add a shape's rows and samples to `result`, even after an interruption."""
    subject = find_subject(label)
    if subject is None:
        return
    read = bytes_per_token(subject.model, args.prompt + args.new / 2)  # of the cache, on average
    samples: Samples = result["samples"].setdefault(label, {})
    try:
        for _ in measure(subject, args, samples, label):
            write_json(args.json, result)
    finally:
        result["rows"] += make_rows(label, samples, read)
        write_json(args.json, result)


def measure_all(args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Measure every shape, and the import time."""
    seconds = import_seconds(args.runs)
    result["rows"].append(make_row("import minisafe beyond torch", seconds, "s", "<= 0.15"))
    for label in args.shape:
        decode(label, args, result)
        if args.speculate and label in SHAPES:
            result["rows"] += speculation_rows(label, args.prompt, args.new, args.runs)
            write_json(args.json, result)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    result: dict[str, Any] = {"rows": []} | describe_run(args) | {"samples": {}}
    with kept_when_stopped(args.json, result["rows"]):
        measure_all(args, result)


if __name__ == "__main__":
    main()
