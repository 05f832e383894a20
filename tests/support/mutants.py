"""Would the tests notice? Mutants: one wrong line each, in a copy of the package.

    python tests/support/mutants.py [--only NAME] [--json] [--table FILE]

Each mutant of mutants.json is a file, one of its lines, what is put in that line's place, and the
tests that should go red. The tests run first on the package as it is, where they must pass, then on
a copy with the mutant in it, until one fails. Exit codes: 0 where at least 95 % are killed, 1 where
fewer are, 2 where a mutant is stale (its line is no longer there once) or the tests fail without
any mutant. `--only` takes a part of a name.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("mutants.json")
NEEDED = 0.95  # the share that must be killed
LONGEST_S = 900  # a mutant that hangs is noticed too
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*-work", "*.egg-info")


class Stale(Exception):
    """A mutant's line is not in its file, or more than once, or its tests are not there."""


@dataclass(frozen=True)
class Mutant:
    """One wrong line. file: from the root. old, new: the line without its indentation. tests: names
    of files, from tests/, the likeliest to notice first."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, root: Path) -> str:
        """The file's text with the mutant in it; raises `Stale`."""
        path = root / self.file
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        places = [place for place, line in enumerate(lines) if line.strip() == self.old]
        if len(places) != 1:
            raise Stale(
                f"{self.name}: {self.file} has this line {len(places)} times, expected once; "
                f"choose another line or correct the table: {self.old}"
            )
        missing = [name for name in self.tests if not (root / "tests" / name).is_file()]
        if missing or not self.tests:
            raise Stale(f"{self.name}: no tests {', '.join(missing)}")
        line = lines[places[0]]
        lines[places[0]] = line[: len(line) - len(line.lstrip())] + self.new
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant. by: the test that failed first."""

    name: str
    file: str
    killed: bool
    by: str
    seconds: float


def read_table(path: Path) -> list[Mutant]:
    records = json.loads(path.read_text(encoding="utf-8"))
    return [Mutant(**each | {"tests": tuple(each["tests"])}) for each in records]


def run_tests(root: Path, tests: Sequence[str]) -> tuple[bool, str]:
    """Whether they pass in this copy, and the first that does not."""
    environment = os.environ | {
        "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "HYPOTHESIS_PROFILE": "mutants",
        "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE",
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=no"]
    try:
        done = subprocess.run(
            [*command, *(f"tests/{name}" for name in tests)],
            cwd=root, env=environment, capture_output=True, text=True, timeout=LONGEST_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False, f"no end within {LONGEST_S} s"
    if done.returncode == 0:
        return True, ""
    said = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    first = said[0].split(" - ")[0].split(" ", 1)[1] if said else (done.stdout + done.stderr)[-300:]
    return False, first.removeprefix("tests/")


def copied(root: Path, to: Path) -> Path:
    """The package with its tests and what they read; weights are linked, since none changes."""
    for name in ("minisafe", "tests", "bench", "docs", "examples"):
        if (root / name).is_dir():
            shutil.copytree(root / name, to / name, ignore=NOT_COPIED)
    for path in (*root.glob("*.*"), root / "Makefile", root / ".ci"):
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, to / path.name)
    if (root / "weights").is_dir():
        (to / "weights").symlink_to(root / "weights")
    return to


def try_out(mutant: Mutant, copy: Path) -> Outcome:
    """Put the mutant into the copy, run its tests, and take it out again."""
    path = copy / mutant.file
    right, started = path.read_text(encoding="utf-8"), time.monotonic()
    path.write_text(mutant.applied(copy), encoding="utf-8")
    try:
        passed, by = run_tests(copy, mutant.tests)
    finally:
        path.write_text(right, encoding="utf-8")
    return Outcome(mutant.name, mutant.file, not passed, by, time.monotonic() - started)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def try_all(mutants: Sequence[Mutant], copy: Path) -> list[Outcome]:
    """Every mutant in turn, with a line and an estimate for each."""
    outcomes: list[Outcome] = []
    for number, mutant in enumerate(mutants, 1):
        found = try_out(mutant, copy)
        outcomes.append(found)
        left = sum(each.seconds for each in outcomes) / number * (len(mutants) - number)
        verdict = f"killed by {found.by}" if found.killed else "SURVIVED"
        say(f"{number}/{len(mutants)} {mutant.name}: {verdict}; about {left / 60:.0f} min left")
    return outcomes


def table(outcomes: Sequence[Outcome]) -> str:
    lines = ["| file | mutants | killed | survived |", "|---|---|---|---|"]
    for file in sorted({each.file for each in outcomes}):
        here = [each for each in outcomes if each.file == file]
        alive = "; ".join(each.name for each in here if not each.killed)
        lines.append(f"| {file} | {len(here)} | {sum(each.killed for each in here)} | {alive} |")
    killed = sum(each.killed for each in outcomes)
    return "\n".join([*lines, f"| all | {len(outcomes)} | {killed} | |"])


def main(arguments: Sequence[str], root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="mutants with this in their name")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--table", type=Path, default=TABLE)
    given = parser.parse_args(arguments)
    mutants = [each for each in read_table(given.table) if given.only in each.name]
    try:
        for mutant in mutants:
            mutant.applied(root)
        if not mutants:
            raise Stale(f"no mutant has {given.only!r} in its name")
    except Stale as error:
        say(f"error: {error}")
        return 2
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        copy = copied(root, Path(scratch))
        tests = sorted({name for each in mutants for name in each.tests})
        say(f"{len(mutants)} mutants; first {len(tests)} files of tests on the package as it is")
        passed, by = run_tests(copy, tests)
        if not passed:
            say(f"error: without any mutant this fails: {by}")
            return 2
        outcomes = try_all(mutants, copy)
    share = sum(each.killed for each in outcomes) / len(outcomes)
    if given.json:
        print(
            json.dumps({"share": share, "mutants": [asdict(each) for each in outcomes]}, indent=1)
        )
    else:
        print(table(outcomes))
    return 0 if share >= NEEDED else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
