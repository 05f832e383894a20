"""Peaks of memory under `memory_limit`: what is chosen for a limit, and what a process then takes.

    python bench/bound.py weights/tiny --limits 350MB 450MB 600MB --json bench/results/bound.json

In a fresh process per limit: a prompt of the whole context and a short one; a chat whose message is
nearly the whole context; and, after a reset, one with messages of a quarter and half of it. Linux
only.
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

from minisafe.errors import MinisafeError
from minisafe.files.sizes import parse_size, size_refused, size_words

LINE = "How do I wash a table in a quiet town? "
STATUS = Path("/proc/self/status")


def size(text: str) -> int:
    """Bytes, for argparse."""
    if refused := size_refused(text):
        raise argparse.ArgumentTypeError(refused)
    return parse_size(text)


def settings_object(text: str) -> dict[str, Any]:
    """A JSON object, for argparse."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is no JSON ({error})") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"is {text}; expected an object of settings")
    return found


def answer_within(profile: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What is chosen, and the peak of this process after the answers."""
    import minisafe

    session = minisafe.load(profile, settings)
    chosen, limit = session.settings, session.limit
    ids = session.tokenizer.encode(LINE * (limit // 4))
    whole, most, quarter, half = (
        session.tokenizer.decode(ids[:n]) for n in (limit - 16, limit - 80, limit // 4, limit // 2)
    )
    session.generate([whole, "Hello"])
    chat = session.chat()
    for message in (most, None, quarter, half):
        if message is None:
            chat.reset()
        else:
            "".join(chat.send(message))
    peak = STATUS.read_text().partition("VmHWM:")[2].split()[0]
    return {"weights": chosen.weights, "cache": chosen.cache_dtype, "context": limit,
            "peak": int(peak) * 1024}  # fmt: skip


def limit_rows(args: argparse.Namespace, limit: int) -> list[Row]:
    """The rows of one limit; one row if it is refused."""
    settings = {"max_new_tokens": args.new, "threads": args.threads} | args.settings
    settings["memory_limit"] = limit
    command = [sys.executable, __file__, str(args.profile), "--within", json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    name = f"limit {size_words(limit)}"
    if done.returncode and done.stderr.startswith("memory_limit is"):
        return [make_row(f"{name}: refused before loading", 1, "")]
    if done.returncode:
        print(done.stderr.strip(), file=sys.stderr)
        raise SystemExit(done.returncode)
    found = json.loads(done.stdout)
    name += f", weights {found['weights']}, cache {found['cache']}"
    return [
        make_row(f"{name}: context", found["context"], "tokens"),
        make_row(f"{name}: peak over limit", found["peak"] / limit, "share", "<= 1"),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = bench_parser(__doc__, new=8)
    parser.add_argument("profile", type=Path, help="a profile or its directory")
    parser.add_argument("--limits", nargs="+", metavar="SIZE", type=size,
                        default=[size(each) for each in ("350MB", "450MB", "600MB")])  # fmt: skip
    parser.add_argument("--settings", type=settings_object, default={},
                        help='more settings, as JSON: {"safe": false}')  # fmt: skip
    parser.add_argument("--within", type=settings_object, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.within is not None:
        try:
            print(json.dumps(answer_within(args.profile, args.within)))
        except MinisafeError as error:
            print(error, file=sys.stderr)
            raise SystemExit(2) from None
        return
    if not STATUS.exists():
        raise SystemExit(f"{STATUS} does not exist; this needs Linux")
    rows: list[Row] = []
    progress = Progress("bound", len(args.limits))
    with kept_when_stopped(args.json, rows):
        for limit in args.limits:
            rows += limit_rows(args, limit)
            write_json(args.json, {"rows": rows} | describe_run(args))
            progress.say(size_words(limit))


if __name__ == "__main__":
    main()
