"""The output of a bench: rows with targets, a table, a JSON file, and a description of the run."""

from __future__ import annotations

import argparse
import json
import operator
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata, util
from pathlib import Path
from typing import Any

import minisafe
from minisafe.files import write_text

Row = dict[str, Any]  # name, value, unit, target (as "<= 1.3", or None), holds


def make_row(name: str, value: float, unit: str, target: str | None = None) -> Row:
    sign, bound = (target or "> 0").split()
    compare = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}[sign]
    holds = compare(value, float(bound)) if target else None
    return {"name": name, "value": value, "unit": unit, "target": target, "holds": holds}


def under(label: str, rows: Sequence[Row]) -> list[Row]:
    """The rows with `label: ` before their names."""
    return [row | {"name": f"{label}: {row['name']}"} for row in rows]


def print_table(rows: Sequence[Row]) -> None:
    width = max(len(row["name"]) for row in rows)
    print(f"| {'name':{width}} | {'value':>9} | {'unit':8} | {'target':8} | holds |")
    print(f"| {'-' * width} | {'-' * 8}: | {'-' * 8} | {'-' * 8} | ----- |")
    for row in rows:
        holds = {None: "", True: "yes", False: "NO"}[row["holds"]]
        cells = f"| {row['name']:{width}} | {row['value']:>9.4g} | {row['unit']:8}"
        print(f"{cells} | {row['target'] or '':8} | {holds:5} |")


def write_json(path: Path | None, result: Mapping[str, Any]) -> None:
    """Write the whole file or nothing; nothing without a path. A bench writes after every part, so
    that an interrupted run loses nothing."""
    if path is None:
        return
    write_text(path, json.dumps(result, indent=1) + "\n")


@contextmanager
def kept_when_stopped(path: Path | None, rows: Sequence[Row]) -> Iterator[None]:
    """Print the rows at the end, even after Ctrl-C, which gives one line and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        where = "in the table" if path is None else f"in {path}"
        print(f"stopped; the finished rows are {where}", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        if rows:
            print_table(rows)


class Progress:
    """Prints on standard error what is done, and an estimate of the remaining time."""

    def __init__(self, label: str, total: int):
        self.label, self.total, self.done = label, total, 0
        self.started = time.monotonic()

    def say(self, name: str) -> None:
        """Count one more of `total` as done."""
        self.done += 1
        each = (time.monotonic() - self.started) / self.done
        left = in_minutes(each * (self.total - self.done))
        line = f"{self.label}: {self.done} of {self.total}, {name}; {left} left here"
        print(line, file=sys.stderr, flush=True)


def in_minutes(seconds: float) -> str:
    return f"about {seconds:.0f} s" if seconds < 90 else f"about {seconds / 60:.0f} min"


def describe_run(args: argparse.Namespace) -> dict[str, Any]:
    """Date, hardware, versions, settings."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    model = text.partition("model name")[2].partition("\n")[0].lstrip("\t: ")
    names = {"torch": "torch", "transformers": "transformers", "llama_cpp": "llama-cpp-python"}
    packages = [package for name, package in names.items() if util.find_spec(name) is not None]
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "hardware": {
            "cpu": model or os.uname().machine,
            "bf16_instructions": [f for f in ("avx512_bf16", "amx_bf16") if f in text],
            "cores": os.cpu_count(),
            "load_at_start": os.getloadavg()[0],
        },
        "instructions": os.environ.get("ONEDNN_MAX_CPU_ISA", "own"),
        "versions": {"python": sys.version.split()[0], "minisafe": minisafe.__version__}
        | {name: metadata.version(name) for name in packages},
        "settings": {
            name: value.name if isinstance(value, Path) else value  # no directory of this machine
            for name, value in vars(args).items()
            if name != "json"
        },
    }


def json_path(text: str) -> Path:
    """The argument of `--json`; rejects a directory before minutes of measurement."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a directory; expected a file name")
    return path


def bench_parser(doc: str | None, new: int, threads: int = 2) -> argparse.ArgumentParser:
    """The parser with the flags of all benches; doc: the bench's docstring, whose first line is the
    description."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--runs", type=int, default=5, help="rounds")
    parser.add_argument("--new", type=int, default=new, help="tokens timed")
    parser.add_argument("--json", type=json_path, help="file for the rows")
    return parser
