"""Peaks of memory under `memory_limit`: what is chosen for a limit, and what a process then takes.

    python bench/bound.py weights/tiny --limits 350MB 450MB 600MB --json bench/results/bound.json

In a fresh process per limit: a prompt of the whole context, one short prompt, and a chat whose
first message is a quarter of the context. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import (
    Progress,
    Row,
    bench_parser,
    describe_run,
    kept_when_stopped,
    make_row,
    write_json,
)

from minisafe.files.sizes import parse_size, size_words

ROOT = Path(__file__).resolve().parent.parent
LINE = "How do I wash a table in a quiet town? "
STATUS = Path("/proc/self/status")


def answer_within(profile: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What is chosen, and the peak of this process after the answers."""
    import minisafe

    session = minisafe.load(profile, settings)
    chosen, limit = session.settings, session.limit
    ids = session.tokenizer.encode(LINE * (limit // 4))
    texts = [session.tokenizer.decode(ids[:n]) for n in (limit - 16, limit // 4)]
    session.generate([texts[0], "Hello"])
    "".join(session.chat().send(texts[1]))
    peak = STATUS.read_text().partition("VmHWM:")[2].split()[0]
    return {"weights": chosen.weights, "cache": chosen.cache_dtype, "context": limit,
            "peak": int(peak) * 1024}  # fmt: skip


def limit_rows(args: argparse.Namespace, text: str) -> list[Row]:
    """The rows of one limit; one row if it is refused."""
    limit = parse_size(text)
    settings = {"memory_limit": limit, "max_new_tokens": args.new, "threads": args.threads}
    settings |= json.loads(args.settings)
    command = [sys.executable, __file__, args.profile, "--within", json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    name = f"limit {size_words(limit)}"
    if done.returncode and "memory_limit is" in done.stderr:
        return [make_row(f"{name}: refused before loading", 1, "")]
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout)
    name += f", weights {found['weights']}, cache {found['cache']}"
    return [
        make_row(f"{name}: context", found["context"], "tokens"),
        make_row(f"{name}: peak over limit", found["peak"] / limit, "share", "<= 1"),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = bench_parser(__doc__, new=8)
    parser.add_argument("profile", help="a profile or its directory")
    parser.add_argument("--limits", nargs="+", metavar="SIZE", default=["350MB", "450MB", "600MB"])
    parser.add_argument("--settings", default="{}", help='more settings, as JSON: {"safe": false}')
    parser.add_argument("--within", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.within is not None:
        print(json.dumps(answer_within(args.profile, json.loads(args.within))))
        return
    if not STATUS.exists():
        raise SystemExit(f"{STATUS} does not exist; this needs Linux")
    rows: list[Row] = []
    progress = Progress("bound", len(args.limits))
    with kept_when_stopped(args.json, rows):
        for text in args.limits:
            rows += limit_rows(args, text)
            write_json(args.json, {"rows": rows} | describe_run(args))
            progress.say(text)


if __name__ == "__main__":
    main()
