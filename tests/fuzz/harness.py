"""Runs the readers on mutated files, in child processes that may hang, crash or take memory.

    python tests/fuzz/harness.py --inputs 20000            every reader; `make fuzz` does this
    python tests/fuzz/harness.py --only config.json --json

A child reads file after file and keeps its counts in memory that it shares with the parent, so
nothing is lost when the parent ends it. Failing inputs are written to `.fuzz/<reader>/`; after the
fix, add them to `tests/fuzz/corpus/<reader>/`.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from random import Random
from traceback import extract_tb, print_exception
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from mutate import mutate  # noqa: E402
from target import Target  # noqa: E402

SECONDS = 5.0  # per input; a longer time is a hang
ROOM = 2 << 30  # bytes of address space beyond the libraries'
GROWTH = 256 << 20  # bytes of memory that a reader may take beyond 4 x the file
FIRST = 3  # inputs to keep per kind of failure
NOW = struct.Struct("<qqq")  # reader's number, input's number, whether it is being read
COUNTS = struct.Struct("<qqqqdq")  # inputs, refused, accepted, failed, slowest (s), memory (bytes)


@dataclass
class Row:
    """The results of one reader. slowest_s: seconds; memory_mb: MiB beyond the start."""

    reader: str
    inputs: int = 0
    refused: int = 0
    accepted: int = 0
    tracebacks: int = 0
    slowest_s: float = 0.0
    memory_mb: float = 0.0
    findings: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self, inputs: int, refused: int, accepted: int, failed: int, slowest: float, memory: int
    ) -> None:
        """Add the counts of one child, in the order of `COUNTS`."""
        self.inputs += inputs
        self.refused += refused
        self.accepted += accepted
        self.tracebacks += failed
        self.slowest_s = max(self.slowest_s, slowest)
        self.memory_mb = max(self.memory_mb, memory / 2**20)


def all_targets(where: Path = HERE) -> dict[str, Target]:
    """Every target of every `targets_*.py` in a directory, by name."""
    sys.path.insert(0, str(where))
    found: dict[str, Target] = {}
    for name in sorted(path.stem for path in where.glob("targets_*.py")):
        targets = import_module(name).TARGETS
        for target in targets.values() if isinstance(targets, dict) else targets:
            assert target.name not in found, f"two targets are named {target.name}"
            found[target.name] = target
    return found


@cache
def corpus(reader: str, where: Path) -> tuple[bytes, ...]:
    """Files of a reader that once failed."""
    return tuple(path.read_bytes() for path in sorted((where / "corpus" / reader).glob("*")))


def input_of(target: Target, seed: int, index: int, where: Path = HERE) -> bytes:
    """Input number `index`: first the seeds, then earlier failures, then mutations of seeds."""
    known = (*target.seeds, *corpus(target.name, where))
    if index < len(known):
        return known[index]
    return mutate(target.seeds, target.suffix, Random(f"{seed} {target.name} {index}"))


def known_inputs(target: Target, where: Path = HERE) -> int:
    """The number of inputs that are not mutations."""
    return len(target.seeds) + len(corpus(target.name, where))


# ---- the child ---------------------------------------------------------------------------------


def child(
    names: Sequence[str], state: Path, start: tuple[int, int], inputs: int, most_s: float,
    seed: int, where: Path,
) -> None:  # fmt: skip
    """Read inputs from number `start[1]` of reader `start[0]` on; prints findings."""
    out, errors = (os.fdopen(os.dup(each), "w", buffering=1) for each in (1, 2))
    sys.excepthook = lambda kind, error, trace: print_exception(error, file=errors)
    quiet = os.open(os.devnull, os.O_WRONLY)
    for standard in (1, 2):  # the parent does not need the libraries' output
        os.dup2(quiet, standard)
    targets = all_targets(where)
    limit_memory()
    with state.open("r+b") as file, tempfile.TemporaryDirectory() as directory:
        memory = mmap.mmap(file.fileno(), 0)
        for number in range(start[0], len(names)):
            target = targets[names[number]]
            first = start[1] if number == start[0] else 0
            path = Path(directory) / f"input{target.suffix}"
            known = known_inputs(target, where)
            numbers = range(first, max(inputs, known))
            made = partial(input_of, target, seed, where=where)
            for finding in tries(target, number, numbers, known, most_s, made, path, memory):
                out.write(json.dumps(finding) + "\n")


def tries(
    target: Target, number: int, numbers: range, known: int, most_s: float,
    made: Callable[[int], bytes], path: Path, memory: mmap.mmap,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Read each input, count, and yield the first few failures at each place in the code.

    made: an input from its number. After `most_s` seconds only the first `known` are read.
    """
    place = NOW.size + number * COUNTS.size
    refused = accepted = failed = most = largest = 0
    slowest = 0.0
    seen: dict[str, int] = {}
    from minisafe.errors import MinisafeError

    path.write_bytes(target.seeds[0])
    NOW.pack_into(memory, 0, number, numbers.start, 1)
    with suppress(BaseException):  # a first read loads everything that is not an input's own
        target.read(path)
    base, end = reset_peak(), time.monotonic() + most_s
    for index in numbers:
        if time.monotonic() > end and index >= known:
            break
        data = made(index)
        path.write_bytes(data)
        largest = max(largest, len(data))
        begun = time.monotonic()
        NOW.pack_into(memory, 0, number, index, 1)
        try:
            target.read(path)
            accepted += 1
        except MinisafeError:
            refused += 1
        except BaseException as error:  # panics of Rust libraries are not Exceptions
            failed += 1
            said = told(error)
            seen[said] = seen.get(said, 0) + 1
            if seen[said] <= FIRST:
                yield {"number": number, "index": index, "kind": "traceback", "said": said}
        slowest = max(slowest, time.monotonic() - begun)
        inputs = refused + accepted + failed
        NOW.pack_into(memory, 0, number, index + 1, 0)
        if inputs % 20 == 0 or index + 1 == numbers.stop:
            most = max(most, peak() - base)
            if most > 4 * largest + GROWTH:
                yield {"number": number, "index": index, "kind": "memory",
                       "said": f"{most >> 20} MiB at one of the 20 inputs up to this"}  # fmt: skip
                base, most = reset_peak(), 0
        COUNTS.pack_into(memory, place, inputs, refused, accepted, failed, slowest, most)


def told(error: BaseException) -> str:
    """An error's type, its innermost place in minisafe, and the beginning of its text."""
    frames = extract_tb(error.__traceback__)
    ours = [f for f in frames if "minisafe" in f.filename] or frames[-1:]
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
    return f"{type(error).__name__} at {where}: {str(error)[:80]!r}"


def limit_memory() -> None:
    """Let this process take at most `ROOM` more address space."""
    try:
        import resource

        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
    except (ImportError, OSError, ValueError):
        return


def peak() -> int:
    """The peak memory of this process in bytes; 0 if the system does not report it."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(text.split("VmHWM:")[1].split()[0]) * 1024


def reset_peak() -> int:
    """Reset the peak; returns the current memory."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


# ---- the parent --------------------------------------------------------------------------------


def run(
    names: Sequence[str], inputs: int, seed: int = 0, quiet: bool = True, where: Path = HERE,
    most_s: float = float("inf"),
) -> list[Row]:  # fmt: skip
    """Try `inputs` inputs, including all seeds, on each reader of `where`, one after another, in a
    child that is replaced if it hangs or dies. most_s: seconds after which a reader gets no more
    mutations."""
    rows = [Row(name) for name in names]
    start, began = (0, 0), time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory) / "state"
        while start[0] < len(names):
            state.write_bytes(bytes(NOW.size + COUNTS.size * len(names)))
            settings = [list(names), str(state), start, inputs, most_s, seed, str(where)]
            (number, index), ended = one_child(settings, rows, quiet, began)
            counts = state.read_bytes()[NOW.size :]
            for row, each in zip(rows, COUNTS.iter_unpack(counts), strict=True):
                row.add(*each)
            if ended is None:
                break
            rows[number].findings.append({"index": index, "kind": ended, "said": ended})
            rows[number].inputs += 1
            rows[number].tracebacks += 1
            if ended == "hang":
                rows[number].slowest_s = max(rows[number].slowest_s, SECONDS)
            start = (number, index + 1)
    return rows


def one_child(
    settings: list[Any], rows: list[Row], quiet: bool, began: float
) -> tuple[tuple[int, int], str | None]:
    """Run a child to its end; returns its position, and "hang" or "crash" if it was killed."""
    names, state, inputs = settings[0], Path(settings[1]), settings[3]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "harness.py"), "--child", json.dumps(settings)],
            stdout=output, stderr=subprocess.PIPE if quiet else None, start_new_session=True,
        )  # fmt: skip
        ended, shown = None, 0.0
        before: tuple[int, int] | None = None  # the input being read, and since when
        seen = time.monotonic()
        while process.poll() is None:
            # the child may be writing at this moment, so its own time is not reliable
            number, index, reading = NOW.unpack(state.read_bytes()[: NOW.size])
            if before != (number, index) or not reading:
                before, seen = (number, index), time.monotonic()
            if time.monotonic() - seen > SECONDS:
                ended = "hang"
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                break
            if not quiet and time.monotonic() - shown > 5:
                shown = time.monotonic()
                progress(names, number, index, inputs, shown - began)
            time.sleep(0.05)
        number, index, reading = NOW.unpack(state.read_bytes()[: NOW.size])
        if ended is None and process.returncode != 0:
            if not reading:
                error = (process.stderr.read() if process.stderr else b"").decode()
                raise RuntimeError(f"the fuzzer itself failed: {error}")
            ended = "crash"
        output.seek(0)
        for line in output.read().decode().splitlines():
            finding = json.loads(line)
            rows[finding.pop("number")].findings.append(finding)
    return (number, index), ended


def progress(names: Sequence[str], number: int, index: int, inputs: int, took: float) -> None:
    """One line on standard error: position and estimated time left."""
    done = number * inputs + index
    left = took / max(1, done) * (len(names) * inputs - done)
    print(
        f"{names[number]}: {index:,} of {inputs:,} inputs, reader {number + 1} of {len(names)}, "
        f"about {left / 60:.0f} min left",
        file=sys.stderr, flush=True,
    )  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| reader | inputs | refused | accepted | tracebacks | slowest | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        slowest = f"over {SECONDS:.0f} s" if row.slowest_s >= SECONDS else f"{row.slowest_s:.2f} s"
        lines.append(
            f"| {row.reader} | {row.inputs:,} | {row.refused:,} | {row.accepted:,} | "
            f"{row.tracebacks} | {slowest} | {row.memory_mb:.0f} MB |"
        )
    return "\n".join(lines)


def keep(row: Row, target: Target, seed: int, out: Path) -> None:
    """Write the failing inputs, one per file."""
    for finding in row.findings:
        directory = out / row.reader
        directory.mkdir(parents=True, exist_ok=True)
        name = f"{finding['kind']}-{seed}-{finding['index']}{target.suffix}"
        (directory / name).write_bytes(input_of(target, seed, finding["index"]))
        finding["file"] = str(directory / name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--inputs", type=int, default=20_000, help="for each reader")
    parser.add_argument("--only", action="append", help="a reader's name; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="children at a time")
    parser.add_argument("--json", action="store_true", help="rows as JSON instead of the table")
    parser.add_argument(
        "--out", type=Path, default=Path(".fuzz"), help="directory for failing inputs"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        names, state, start, inputs, most_s, seed, where = json.loads(given.child)
        child(names, Path(state), tuple(start), inputs, most_s, seed, Path(where))
        return 0
    targets = all_targets()
    names = given.only or list(targets)
    unknown = [name for name in names if name not in targets]
    if unknown:
        parser.error(f"no reader {unknown[0]}; there are {', '.join(targets)}")
    groups = [names[n :: given.jobs] for n in range(given.jobs) if names[n :: given.jobs]]
    with ThreadPoolExecutor(len(groups)) as pool:
        runs = pool.map(lambda each: run(each, given.inputs, given.seed, quiet=False), groups)
        rows = sorted((row for found in runs for row in found), key=lambda r: names.index(r.reader))
    for row in rows:
        keep(row, targets[row.reader], given.seed, given.out)
    print(json.dumps([asdict(row) for row in rows], indent=1) if given.json else table(rows))
    for row in rows:
        for finding in row.findings:
            print(f"{row.reader}: {finding['said']}: {finding['file']}", file=sys.stderr)
    return 1 if any(row.findings for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
