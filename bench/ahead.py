"""The decoding step compiled ahead of time: its load, its answers, its speed.

    minisafe compile weights/tiny --rule anchored --anchor weights/tiny/anchor --no-read-alone \\
        --out tiny-step
    python bench/ahead.py tiny-step --json ahead.json

Per way of decoding (plain, safe, with an anchor): how many greedy answers are the plain model's,
and how far log-probabilities are from its; then ms per token beside the default weights and, if it
is installed, llama.cpp with the base in BF16 (safe: two contexts, as `speed.py`), by turns.
Load and first token are those of a fresh process with an empty PATH, so without a compiler.
`--cpu-time` counts the process's own time instead: for one thread on a busy machine.
"""

from __future__ import annotations

import atexit
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import util
from pathlib import Path
from statistics import median
from typing import Any

import torch
from llamacpp import Peer, write_gguf
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
Step = Callable[[int], object]  # reads one token in every stream
PEER_TARGETS = {"plain": ">= 0.75", "safe": ">= 1.1"}  # llama.cpp has no third stream's adapter
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
    """ms per token of the default weights, of the package, and of llama.cpp, by turns."""
    sessions = [opened(way, threads, extra) for extra in ({}, {"compiled": package})]
    ids = sessions[0].encode(ASKED, chat=True)
    steps: list[Callable[[], Step]] = [partial(own_step, session, ids, new) for session in sessions]
    target = PEER_TARGETS.get(way)
    if target is not None and all(util.find_spec(each) for each in ("llama_cpp", "gguf")):
        peer_model = peer_of(sessions[0], threads, max(map(len, ids)) + new + 2)
        steps.append(partial(peer_step, peer_model, ids))
    found: list[list[float]] = [[] for _ in steps]
    for which in turns(runs + 1, len(steps)):  # the first round warms up
        found[which].append(ms_per_token(steps[which](), new, clock))
    default, ahead, *peer = (median(each[1:]) for each in found)
    rows = [
        make_row(f"{way}: default weights", default, "ms/token"),
        make_row(f"{way}: package", ahead, "ms/token"),
        make_row(f"{way}: package over default, speed", default / ahead, "x"),
    ]
    for cpp in peer:
        rows += [
            make_row(f"{way}: llama.cpp BF16, {len(ids)} contexts", cpp, "ms/token"),
            make_row(f"{way}: package over llama.cpp, speed", cpp / ahead, "x", target),
            make_row(f"{way}: default weights over llama.cpp, speed", cpp / default, "x"),
        ]
    return rows


def own_step(session: Session, ids: Sequence[tuple[int, ...]], new: int) -> Step:
    """The prompt is read, and one token."""
    lockstep = session.new_lockstep(1, max(map(len, ids)) + new + 2)
    lockstep.feed([[each] for each in ids])
    lockstep.feed([[[5]] for _ in ids])
    return lambda token: lockstep.feed([[[token]] for _ in ids])


def peer_step(peer: Peer, ids: Sequence[tuple[int, ...]]) -> Step:
    """The same in llama.cpp, in one context per stream; log-probabilities as `feed` gives them."""
    contexts = [peer.context() for _ in ids]
    for context, own in zip(contexts, ids, strict=True):
        peer.stack.callback(peer.api.llama_free, context)
        peer.logits(context, [*own, 5])
    return lambda token: [peer.logits(each, [token]).log_softmax(-1) for each in contexts]


def peer_of(session: Session, threads: int, capacity: int) -> Peer:
    """llama.cpp with the session's base in BF16, from a temporary file."""
    file = Path(tempfile.mkdtemp()) / "model.gguf"
    atexit.register(shutil.rmtree, file.parent, ignore_errors=True)
    write_gguf(session.model, file)
    peer = Peer(file, capacity, threads)
    atexit.register(peer.close)
    return peer


@torch.inference_mode()
def ms_per_token(step: Step, new: int, clock: Callable[[], float]) -> float:
    """Of `new` steps, without the sampling loop."""
    started = clock()
    for token in range(new):
        step(5 + token)
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
