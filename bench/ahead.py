"""The decoding step compiled ahead of time: its load, its answers, its speed.

    minisafe compile weights/tiny --rule anchored --anchor weights/tiny/anchor --no-read-alone \\
        --out tiny-step
    python bench/ahead.py tiny-step --json ahead.json

Per way of decoding (plain, safe, with an anchor): how many greedy answers are the plain model's,
and how far log-probabilities are from its; then ms per token beside the default weights, by turns.
Load and first token are those of a fresh process with an empty PATH, so without a compiler.
`--cpu-time` counts the process's own time instead: for one thread on a busy machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from report import Progress, Row, bench_parser, describe_run, make_row, print_table, write_json
from timing import turns

import minisafe
from minisafe.evaluation.prompts import default_prompts
from minisafe.session import Session

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "weights" / "tiny"
SAFE = {"safe": True, "read_alone": False}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"safe": False},
    "safe": SAFE,
    "with an anchor": SAFE | {"rule": "anchored", "anchor": TINY / "anchor"},
}
COMMON = {"dtype": "float32", "temperature": 0.0, "max_new_tokens": 48}
ASKED = "How do I wash a table?"
FRESH = """
import json, sys, time
started = time.perf_counter()
import torch, minisafe
from pathlib import Path
imported = time.perf_counter()
given = json.loads(sys.argv[1])
from minisafe.session.load import load_unprepared
from minisafe.session.faster import put_in
session = load_unprepared(Path(given.pop("profile")), given)
loaded = time.perf_counter()
put_in(session.streams, "auto", False, session.settings.compiled)
put = time.perf_counter()
next(iter(session.stream("How do I wash a table?", chat=True)))
first = time.perf_counter()
print(json.dumps([imported - started, loaded - imported, put - loaded, first - put]))
"""


def opened(way: str, threads: int, extra: Mapping[str, Any]) -> Session:
    return minisafe.load(TINY, WAYS[way] | COMMON | {"threads": threads} | extra)


def fresh_rows(package: Path, threads: int, runs: int) -> list[Row]:
    """Load and first token in processes without a compiler; medians, package and default."""
    rows = []
    for name, extra in (("package", {"compiled": str(package)}), ("default weights", {})):
        given = {"profile": str(TINY), "threads": threads, **SAFE, **COMMON, **extra}
        found = []
        for _ in range(runs):
            done = subprocess.run(
                [sys.executable, "-c", FRESH, json.dumps(given)], capture_output=True, text=True,
                check=True, cwd=ROOT, env={"PATH": "", "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            found.append(json.loads(done.stdout))
        _, session, put, first = (median(values) for values in zip(*found, strict=True))
        rows += [
            make_row(f"{name}: load of the model and its parts", 1e3 * session, "ms"),
            make_row(f"{name}: put in", 1e3 * put, "ms", "<= 1000"),
            make_row(f"{name}: first token", 1e3 * first, "ms", "<= 50"),
        ]
    return rows


def same_rows(way: str, package: Path, threads: int, limit: int) -> list[Row]:
    """How alike the package's answers are to the plain model's."""
    prompts = [each.text for each in default_prompts("dev", limit)]
    plain = opened(way, threads, {"weights": "plain"})
    ahead = opened(way, threads, {"compiled": package})
    equal, furthest = 0, 0.0
    for prompt in prompts:
        one, other = (each.generate([prompt], chat=True)[0].tokens for each in (plain, ahead))
        equal += one == other
        pair = [log_probs(each, prompt, one) for each in (plain, ahead)]
        furthest = max(furthest, float((pair[0] - pair[1]).abs().max()))
    return [
        make_row(f"{way}: answers that are the plain model's", 100 * equal / len(prompts), "%",
                 ">= 100"),
        make_row(f"{way}: log-probabilities, furthest apart", furthest, "nats", "<= 0.001"),
    ]  # fmt: skip


@torch.inference_mode()
def log_probs(session: Session, prompt: str, answer: tuple[int, ...]) -> torch.Tensor:
    """Every stream's log-probabilities after each token of an answer: (streams, n, ids)."""
    ids = session.encode(prompt, chat=True)
    lockstep = session.new_lockstep(1, max(map(len, ids)) + len(answer) + 1)
    lockstep.feed([[each] for each in ids])
    found = [lockstep.feed([[[token]] for _ in session.streams]) for token in answer]
    return torch.stack([torch.stack([each[n][0] for each in found]) for n in range(len(ids))])  # type: ignore[index]


def speed_rows(
    way: str, package: Path, threads: int, runs: int, new: int, clock: Callable[[], float]
) -> list[Row]:
    """ms per token of the default weights and of the package, by turns."""
    systems = [opened(way, threads, extra) for extra in ({}, {"compiled": package})]
    found: list[list[float]] = [[], []]
    for which in turns(runs + 1, 2):  # the first round warms up
        found[which].append(ms_per_token(systems[which], new, clock))
    default, ahead = (median(each[1:]) for each in found)
    return [
        make_row(f"{way}: default weights", default, "ms/token"),
        make_row(f"{way}: package", ahead, "ms/token"),
        make_row(f"{way}: package over default, speed", default / ahead, "x"),
    ]


@torch.inference_mode()
def ms_per_token(session: Session, new: int, clock: Callable[[], float]) -> float:
    """Of `new` steps after a prompt, all streams, without the sampling loop."""
    ids = session.encode(ASKED, chat=True)
    lockstep = session.new_lockstep(1, max(map(len, ids)) + new + 2)
    lockstep.feed([[each] for each in ids])
    lockstep.feed([[[5]] for _ in ids])
    started = clock()
    for token in range(new):
        lockstep.feed([[[5 + token]] for _ in ids])
    return (clock() - started) * 1e3 / new


def main() -> None:
    parser = bench_parser(__doc__, 48, threads=1)
    parser.add_argument("package", type=Path)
    parser.add_argument("--limit", type=int, default=7, help="prompts of each kind")
    parser.add_argument("--cpu-time", action="store_true", help="the process's own time")
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    result: dict[str, Any] = {**describe_run(args), "rows": []}
    progress = Progress("ahead", 1 + 2 * len(WAYS))
    given = args.package.absolute(), args.threads
    parts: list[tuple[str, Callable[[], list[Row]]]] = [
        ("load", partial(fresh_rows, *given, args.runs))
    ]
    for way in WAYS:
        parts += [
            (f"{way}, answers", partial(same_rows, way, *given, args.limit)),
            (f"{way}, speed", partial(speed_rows, way, *given, args.runs, args.new, clock)),
        ]
    for name, rows_of in parts:
        result["rows"] += rows_of()
        write_json(args.json, result)
        progress.say(name)
    print_table(result["rows"])


if __name__ == "__main__":
    main()
