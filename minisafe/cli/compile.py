"""`minisafe compile`: a decoding step as machine code, for machines without a compiler."""

from __future__ import annotations

import json
from pathlib import Path

import click

from minisafe.cli.options import (
    NEVER_COMPILED,
    PATH,
    ProgressLine,
    common_flags,
    model_options,
)
from minisafe.errors import SettingError
from minisafe.files.display import one_line
from minisafe.session.faster import compile_ahead
from minisafe.session.load import load_unprepared
from minisafe.session.named import find_profile


@click.command("compile")
@click.argument("source", metavar="[PROFILE]", type=PATH, required=False)
@click.option("--out", type=PATH, required=True, help="Directory to write; it must not exist.")
@click.option("--instructions", type=click.Choice(["native", "avx2"]), default="native",
              show_default=True, help="Of this processor, or of nearly every x86 one.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@model_options
def compile_command(source: Path | None, out: Path, instructions: str, as_json: bool) -> None:
    """Compile the decoding step of PROFILE, which is a file, its directory, or the name of a model
    of `minisafe get`, ahead of time.

    The package that --out names holds machine code and no weights: steps of the base alone, of base
    and expert, and of base, expert and anchor, for one prompt. `--compiled DIR` uses it, without a
    compiler, on machines with the same torch and a processor that has the same instructions.
    Compiling takes a C++ compiler and about half a minute for each step.

    \b
    Example:
      minisafe compile weights/tiny --out tiny-step
      minisafe chat --safe --compiled tiny-step
    """
    flags = common_flags()
    if source is not None and "profile" in flags:
        raise SettingError("PROFILE and --profile are the same; give one of them")
    given = find_profile(source) if source is not None else flags.pop("profile", None)
    if out.exists():
        raise SettingError(f"{out}: already exists; expected a new directory for --out")
    for name in ("compile", "compiled", "weights"):
        if name in flags and flags[name] not in (False, "plain"):
            raise SettingError(f"minisafe compile takes plain weights; leave out --{name}")
    session = load_unprepared(given, {**flags, **NEVER_COMPILED, "weights": "plain"})
    line = ProgressLine()
    try:
        made = compile_ahead(session.streams, out, instructions, line.show)
    finally:
        line.close()
    if as_json:
        click.echo(json.dumps({"out": str(out), **made}))
        return
    steps = sum(len(part["code"]) for part in made["parts"])
    said = f"{out}: {steps} steps for torch {made['torch']}, {made['parts'][0]['dtype']}"
    click.echo(one_line(said), err=True)
