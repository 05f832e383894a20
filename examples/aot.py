"""A decoding step that is compiled once, for a program that starts at once and has no compiler.

    python examples/aot.py
    python examples/aot.py PROFILE DIRECTORY

The first run compiles the steps of the profile (the shipped one) into the directory (tiny-step),
which takes a C++ compiler and a minute. Later runs load it in milliseconds, also on another machine
with the same torch and a like processor.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import minisafe
from minisafe import Session

QUESTION = "How do I clean a shelf?"


def answer(session: Session) -> tuple[str, float]:
    """An answer, and how many of its tokens came per second."""
    started = time.perf_counter()
    (result,) = session.generate([QUESTION], chat=True)
    return result.text, len(result.tokens) / (time.perf_counter() - started)


def main() -> None:
    profile, package = sys.argv[1:] if len(sys.argv) == 3 else (None, "tiny-step")
    if not Path(package).exists():
        command = [sys.executable, "-m", "minisafe", "compile", *filter(None, [profile])]
        subprocess.run([*command, "--out", package], check=True)
    for way, settings in (("as it is", {}), ("compiled", {"compiled": package})):
        started = time.perf_counter()
        with minisafe.load(profile, settings) as session:
            loaded = time.perf_counter() - started
            answer(session)  # the first one warms up
            text, rate = answer(session)
        print(f"{way}: loaded in {loaded:.2f} s, {rate:.0f} tokens/s: {text!r}")


if __name__ == "__main__":
    main()
