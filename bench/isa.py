"""Decoding with fewer of the CPU's instructions: one row per instruction set and kind of weights.

    python bench/isa.py --shape 100m --json bench/results/isa.json

oneDNN obeys `ONEDNN_MAX_CPU_ISA`, so this machine can imitate older ones, each in a separate
process. torch's other operators (attention, norms, torch's own int8 product) still use all
instructions. So this shows which paths become very slow, not the speed of another machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
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
from subjects import LABELS, converted, find_subject, random_prompt
from systems import PLAIN, SAFE, System, minisafe_systems
from timing import answer_ms, turns

from minisafe.fast.prepare import prepare

OWN = "own"
NEEDS = {  # the CPU flags needed to imitate each set, as in /proc/cpuinfo
    "AVX2": "avx2",
    "AVX512_CORE": "avx512bw",
    "AVX512_CORE_VNNI": "avx512_vnni",
    "AVX512_CORE_BF16": "avx512_bf16",
    OWN: "",
}
KINDS = ("plain", "packed", "int8")  # in the dtype of the file; additionally, plain in float32


def instruction_sets() -> list[str]:
    """The sets that this machine can imitate, and its own; only its own without /proc."""
    path = Path("/proc/cpuinfo")
    flags = path.read_text().split() if path.is_file() else []
    return [name for name, flag in NEEDS.items() if not flag or flag in flags]


def find_systems(args: argparse.Namespace) -> dict[str, System]:
    """Plain and safe decoding for every kind of weights."""
    subject = find_subject(args.shape)
    if subject is None:
        return {}
    prompt = random_prompt(args.prompt, subject.model.config.vocab_size)
    ways = [(subject, kind) for kind in KINDS]
    if subject.model.dtype != torch.float32:
        ways.append((converted(subject, torch.float32), "plain"))
    systems = {}
    for each, kind in ways:
        model = prepare(copy.deepcopy(each.model), kind)
        found = minisafe_systems(replace(each, model=model), prompt, args.new)
        dtype = str(model.dtype).removeprefix("torch.")
        systems |= {f"{name}, {dtype} {kind}": found[name] for name in (PLAIN, SAFE)}
    return systems


def measure_here(args: argparse.Namespace) -> None:
    """Measure in this process; writes the finished rows after every turn."""
    systems = find_systems(args)
    for system in systems.values():
        answer_ms(system, 2)
    names = list(systems)
    times: dict[str, list[tuple[float, float]]] = {}
    for which in turns(args.runs, len(names)):
        name = names[which]
        times.setdefault(name, []).append(answer_ms(systems[name], args.new))
        write_json(args.json, {"rows": list(rows_of(times))})


def rows_of(times: Mapping[str, Sequence[tuple[float, float]]]) -> Iterator[Row]:
    for name, found in times.items():
        yield make_row(f"{name}, first token", median(first for first, _ in found), "ms")
        yield make_row(name, 1e3 / median(token for _, token in found), "tokens/s")


def measure(isa: str, label: str, argv: Sequence[str], rows: list[Row]) -> None:
    """Add the rows of a process with this instruction set, even after an interruption."""
    env = {k: v for k, v in os.environ.items() if k != "ONEDNN_MAX_CPU_ISA"}
    env |= {} if isa == OWN else {"ONEDNN_MAX_CPU_ISA": isa}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = [sys.executable, __file__, *argv, "--here", "--json", str(path)]
        try:
            done = subprocess.run(command, env=env, check=False)
            if done.returncode != 0:
                raise SystemExit(f"{isa}: exit code {done.returncode}")
        finally:
            if path.is_file():
                found = json.loads(path.read_text(encoding="utf-8"))["rows"]
                rows += under(f"{label}, {isa}", found)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = bench_parser(__doc__, new=12)
    parser.add_argument("--shape", choices=LABELS, default="100m")
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument(
        "--isa", nargs="+", choices=NEEDS, help="instruction sets; default: all possible"
    )
    parser.add_argument("--here", action="store_true", help="in this process (internal)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.here:
        measure_here(args)
        return
    rows: list[Row] = []
    result: dict[str, Any] = {"rows": rows} | describe_run(args)
    chosen = args.isa or instruction_sets()
    progress = Progress(args.shape, len(chosen))
    with kept_when_stopped(args.json, rows):
        for isa in chosen:
            try:
                measure(isa, args.shape, argv, rows)
            finally:
                write_json(args.json, result)
            progress.say(isa)


if __name__ == "__main__":
    main()
