"""What safe decoding costs on a real model: speed and memory, beside transformers and llama.cpp.

    python bench/real.py weights/smollm2 --gguf MODEL.gguf --json cost.json

PROFILE names base, expert and anchor (`minisafe get smollm2`). Every system runs in a fresh process
(`real_probe.py`), which is what a user's memory sees; all systems take turns, round by round, in
both dtypes, and answer the same chat message with their own greedy tokens. A number is the median
of the rounds, a ratio the median of the rounds' ratios. `--resume` continues the run in --json.

plain is the base alone, safe the base and its expert (SGDS), anchored the three streams of the
profile's rule, profile the profile as it is: on this harmless message its gate leaves the answer to
the base. The peer's further streams are whole models with the adapter merged in. llama.cpp reads
the base as a GGUF file in BF16, and --gguf as it is quantised.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import util
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from llamacpp import write_gguf
from report import (
    Progress,
    Row,
    bench_parser,
    describe_run,
    kept_when_stopped,
    make_row,
    write_json,
)
from timing import ratio, turns

import minisafe

BENCH = Path(__file__).resolve().parent
OURS = ("plain", "safe", "anchored", "profile")
PEERS = ("transformers", "transformers-two", "transformers-three")
CPPS = ("llama.cpp", "llama.cpp-two")
DTYPES = ("float32", "bfloat16")
OVER = (  # systems of one dtype: name, above, below, target; of times per token
    ("safe over plain, time", "safe", "plain", "<= 1.3"),
    ("anchored over plain, time", "anchored", "plain", "<= 1.3"),
    ("profile over plain, time", "profile", "plain", "<= 1.3"),
    ("plain over transformers, speed", "transformers", "plain", None),
    ("safe over transformers' two models, speed", "transformers-two", "safe", None),
    ("anchored over transformers' three models, speed", "transformers-three", "anchored", None),
    ("plain over llama.cpp BF16, speed", "llama.cpp", "plain", None),
    ("safe over llama.cpp's two contexts, speed", "llama.cpp-two", "safe", None),
)
MEMORY = (
    ("safe over plain, peak memory", "safe", "plain"),
    ("anchored over plain, peak memory", "anchored", "plain"),
    ("transformers' two models over safe, peak memory", "transformers-two", "safe"),
    ("transformers' three models over anchored, peak memory", "transformers-three", "anchored"),
)
UNITS = {"first_ms": "ms", "token_ms": "tokens/s", "peak": "MiB", "anonymous": "MiB"}
Samples = dict[str, list[dict[str, float]]]  # by name: what each turn gave


@dataclass(frozen=True)
class Case:
    """One system in one dtype. file: the GGUF file, for llama.cpp. quantised: it is --gguf's."""

    system: str
    dtype: str
    file: Path | None = None
    quantised: bool = False

    @property
    def name(self) -> str:
        return f"{self.system}, {'as in --gguf' if self.quantised else self.dtype}"

    def flags(self) -> list[str]:
        """The flags of `real_probe.py` that are this case's own."""
        found = ["--system", self.system, "--dtype", self.dtype]
        if self.file is not None:
            found += ["--gguf", str(self.file)]
        return [*found, "--block", "1"] if self.quantised else found


# ---- what is run -------------------------------------------------------------------------------


def has(*packages: str) -> bool:
    """Whether the packages are installed; prints a line on the first that is not."""
    missing = [name for name in packages if util.find_spec(name) is None]
    if missing:
        print(f"{missing[0]} is not installed here: its rows are skipped (bench/README.md)")
    return not missing


@contextmanager
def cases_of(args: argparse.Namespace) -> Iterator[list[Case]]:
    """All cases that can run here, while the BF16 file of llama.cpp is there."""
    systems = [*OURS, *(PEERS if has("transformers") else ())]
    found = [Case(system, dtype) for dtype in args.dtypes for system in systems]
    with TemporaryDirectory() as directory:
        if has("llama_cpp", "gguf"):
            if "bfloat16" in args.dtypes:
                file = bf16_file(args.profile, Path(directory))
                found += [Case(system, "bfloat16", file) for system in CPPS]
            if args.gguf is not None:
                found += [Case(system, "float32", args.gguf, True) for system in CPPS]
        yield [case for case in found if case.system in args.systems]


def bf16_file(profile: Path, directory: Path) -> Path:
    """The profile's base as a BF16 GGUF file."""
    made = {"safe": False, "dtype": "bfloat16", "weights": "plain"}
    with minisafe.load(profile, made) as session:
        write_gguf(session.model, directory / "bf16.gguf")
    return directory / "bf16.gguf"


def turn(case: Case, args: argparse.Namespace) -> dict[str, Any] | str:
    """What one fresh process of a case found, or the last line of its error."""
    command = [sys.executable, str(BENCH / "real_probe.py"), str(args.profile), *case.flags()]
    for name in ("weights", "prompt", "new", "threads"):
        command += [f"--{name}", str(getattr(args, name))]
    paths = (str(BENCH.parent), os.environ.get("PYTHONPATH", ""))
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if run.returncode:
        return (run.stderr.strip() or f"exit code {run.returncode}").splitlines()[-1]
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def measure(cases: Sequence[Case], args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Give every case its turns. Samples go to `result` and to the file after each; a case that
    fails has no more turns."""
    order = list(islice(turns(args.runs, len(cases)), result["turns"], None))
    progress = Progress("real", len(order))
    for which in order:
        case = cases[which]
        if case.name not in result["left_out"]:
            found = turn(case, args)
            if isinstance(found, str):
                result["left_out"][case.name] = found
                print(f"{case.name} is left out: {found}", file=sys.stderr)
            else:
                result["prefixes"].setdefault(case.name, hashes(found.pop("ids")))
                result["samples"].setdefault(case.name, []).append(found)
        result["turns"] += 1
        write_json(args.json, result)
        progress.say(case.name)


# ---- rows --------------------------------------------------------------------------------------


def make_rows(samples: Samples, dtypes: Sequence[str]) -> list[Row]:
    """Medians of every case, ratios within a dtype, and ratios of dtypes."""
    rows = [
        make_row(f"{name}{label}", as_shown(key, values(turns, key)), UNITS[key])
        for name, turns in samples.items()
        for key, label in (("token_ms", ""), ("first_ms", ", first token"),
                           ("peak", ", peak memory"), ("anonymous", ", of its own at the end"))
        if key in turns[0]
    ]  # fmt: skip
    for dtype in dtypes:
        for name, above, below, target in OVER:
            rows += over(samples, f"{dtype}: {name}", (above, below), (dtype, dtype), target)
        for name, above, below in MEMORY:
            pair = (f"{above}, {dtype}", f"{below}, {dtype}")
            if all(each in samples and "peak" in samples[each][0] for each in pair):
                one, other = (values(samples[each], "peak") for each in pair)
                rows.append(make_row(f"{dtype}: {name}", ratio(one, other), "x"))
    for system in OURS if len(set(dtypes)) == 2 else ():
        rows += over(samples, f"{system}: float32 over bfloat16, time", (system, system), DTYPES)
    return rows


def values(turns: Sequence[Mapping[str, float]], key: str) -> list[float]:
    return [each[key] for each in turns]


def as_shown(key: str, found: Sequence[float]) -> float:
    """The median in the unit of its row."""
    middle = median(found)
    if UNITS[key] == "MiB":
        return middle / 2**20
    return 1e3 / middle if key == "token_ms" else middle


def over(
    samples: Samples,
    name: str,
    systems: tuple[str, str],
    dtypes: tuple[str, ...],
    target: str | None = None,
) -> list[Row]:
    """The ratio of the times per token of two cases, if both were measured."""
    pair = [f"{system}, {dtype}" for system, dtype in zip(systems, dtypes, strict=True)]
    if not all(each in samples for each in pair):
        return []
    one, other = (values(samples[each], "token_ms") for each in pair)
    return [make_row(name, ratio(one, other), "x", target)]


def hashes(ids: Sequence[int]) -> list[str]:
    """A short hash of each beginning of an answer: answers can be compared, but are not kept."""
    texts = (str(tuple(ids[: n + 1])) for n in range(len(ids)))
    return [hashlib.sha256(text.encode()).hexdigest()[:8] for text in texts]


def same_tokens(prefixes: Mapping[str, Sequence[str]], new: int) -> list[Row]:
    """How many first tokens of the greedy answer each plain case shares with plain float32; of
    each case, the hashes of its beginnings."""
    ours = prefixes.get("plain, float32", ())
    found = []
    for name, theirs in prefixes.items():
        shared = sum(one == other for one, other in zip(ours, theirs, strict=False))
        if ours and name.partition(",")[0] in ("plain", *PEERS[:1], *CPPS[:1]):
            text = f"{name}: first tokens equal to plain float32's, of {new + 1}"
            found.append(make_row(text, shared, "tokens"))
    return found


# ---- the command -------------------------------------------------------------------------------


def existing(text: str) -> Path:
    """The argument of `--gguf`."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text}: no such file; expected a GGUF file")
    return Path(text)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = bench_parser(__doc__, new=48)
    parser.add_argument("profile", type=Path, help="with base, expert and anchor")
    parser.add_argument("--gguf", type=existing, help="the base, quantised, for llama.cpp")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--systems", nargs="+", choices=(*OURS, *PEERS, *CPPS),
                        default=[*OURS, *PEERS, *CPPS])  # fmt: skip
    parser.add_argument("--weights", default="auto", help="the setting (docs/profile.md)")
    parser.add_argument("--prompt", default="How is bread made? Tell me all the steps.",
                        help="a harmless message")  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="continue the run in --json")
    return parser.parse_args(argv)


def begun(args: argparse.Namespace, cases: Sequence[Case]) -> dict[str, Any]:
    """An empty result, or with --resume the one in the file; ends the program if that differs."""
    names = [case.name for case in cases]
    empty: dict[str, Any] = {"rows": [], "cases": names, "turns": 0, "left_out": {}}
    empty |= {"samples": {}, "prefixes": {}} | describe_run(args)
    empty["settings"] = {
        name: value for name, value in empty["settings"].items() if name not in ("resume", "runs")
    }
    if not args.resume or args.json is None or not args.json.is_file():
        return empty
    kept: dict[str, Any] = json.loads(args.json.read_text(encoding="utf-8"))
    if kept["cases"] != names or kept["settings"] != empty["settings"]:
        print(f"{args.json}: a run with other systems or settings; expected the same, or another "
              "--json", file=sys.stderr)  # fmt: skip
        raise SystemExit(2)
    return kept


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    with cases_of(args) as cases:
        result = begun(args, cases)
        rows: list[Row] = []
        with kept_when_stopped(args.json, rows):
            try:
                measure(cases, args, result)
            finally:
                rows += make_rows(result["samples"], args.dtypes)
                rows += same_tokens(result["prefixes"], args.new)
                write_json(args.json, result | {"rows": rows})


if __name__ == "__main__":
    main()
