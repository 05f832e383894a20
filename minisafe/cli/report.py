"""`minisafe report`: a run's tables and page again, its rows to commit, or several runs as one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from minisafe.cli.evaluate import show
from minisafe.cli.options import PATH
from minisafe.errors import SettingError
from minisafe.evaluation.evaluate import write_run
from minisafe.evaluation.exported import load_run, write_rows
from minisafe.evaluation.report.html import Browser
from minisafe.evaluation.report.runs import combine, sections_of_runs, unnamed
from minisafe.evaluation.report.summary import plain, write_summary
from minisafe.evaluation.report.write import write_pages
from minisafe.evaluation.stored import Stored
from minisafe.files.display import harmless


@click.command()
@click.argument("runs", type=PATH, nargs=-1, required=True)
@click.option("--out", type=PATH, help="Directory for summary.json, report.md and report.html.")
@click.option("--export", type=PATH, help="Write the run's rows to this file (.jsonl.gz).")
@click.option("--against", help="Method to test the others against; default: the first after base.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def report(
    runs: tuple[Path, ...], out: Path | None, export: Path | None, against: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Make the tables and the page of a run again, without any model.

    RUNS are directories of `minisafe evaluate`, or files of --export. One run: its summary and
    report are written to --out (default: its own directory; a file's are then only printed).
    --export writes its rows for a repository: verdicts, costs and a short hash of each answer,
    never a text; the same tables can be made from them. Several runs, such as training seeds: the
    mean of each share, its range and an interval over runs.

    \b
    Examples:
      minisafe report run
      minisafe report run --export rows.jsonl.gz
      minisafe report rows.jsonl.gz --out again
      minisafe report seed-0.jsonl.gz seed-1.jsonl.gz seed-2.jsonl.gz
    """
    if len(runs) > 1:
        for flag, value in (("--export", export), ("--against", against)):
            if value is not None:
                raise SettingError(f"{flag} with {len(runs)} runs; expected one run")
        several(runs, out, as_json)
        return
    (path,) = runs
    run = load_run(path)
    summary = run.summary(against)
    if export is not None:
        size = write_rows(export, run)
        click.echo(f"{export}: {len(run.answers):,} answers, {size:,} bytes", err=True)
    out = path if out is None and path.is_dir() else out
    if out is not None:
        write_run(out, run, against)
    tell(summary, out, as_json)


def several(paths: Sequence[Path], out: Path | None, as_json: bool) -> None:
    """Combine runs, print the means, and write them if there is a directory."""
    if len({path.resolve() for path in paths}) < len(paths):
        raise SettingError("a run is given twice; expected each once")
    names = unnamed([path.name for path in paths])
    loaded: dict[str, Stored] = {
        name: load_run(path) for name, path in zip(names, paths, strict=True)
    }
    combined = combine({name: run.summary() for name, run in loaded.items()})
    if out is not None:
        write_summary(out, combined)
        write_pages(out, sections_of_runs(combined), Browser((), ()))
    if as_json:
        click.echo(json.dumps(plain(combined)))
        return
    for row in combined["over_runs"]:
        told = f"{row['mean']:6.1f}  ({row['least']:.1f} to {row['most']:.1f})"
        name = harmless(f"{row['judge']}  {row['method']}  {row['share']}")
        click.echo(f"{name:72}{told}, {row['n_runs']} runs")
    if out is not None:
        click.echo(str(out / "report.html"))


def tell(summary: Mapping[str, Any], out: Path | None, as_json: bool) -> None:
    """Print the summary, or its main numbers and the report's path."""
    if as_json:
        click.echo(json.dumps(plain(summary), indent=1))
    else:
        show(summary)
        if out is not None:
            click.echo(str(out / "report.html"))
