"""The report of an evaluation: one set of sections, written as Markdown and as an HTML page.

The Markdown is for reading in a repository; the page adds pictures and a browser of every answer.
Text from models, prompts and judges is hostile in both: it is shown, never obeyed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minisafe.display import harmless
from minisafe.evaluation import plots
from minisafe.evaluation.comparisons import (
    against_base,
    agreement,
    by_category,
    cost,
    gate,
    sweep,
)
from minisafe.evaluation.html import Browser, page
from minisafe.evaluation.sections import HOW_TO_READ, results, trade_off, verdicts, what_was_run
from minisafe.evaluation.tables import Cell, Link, Row, Section, Table
from minisafe.files import write_text

TITLE = "Evaluation report"
NO_PICTURES = f"Pictures are left out: they need matplotlib, {plots.INSTALL}."
IN_THE_PAGE = "report.html, beside this file, has the pictures and every response."

# What Markdown would read as markup. Entities hold everywhere, even where a table's cells are
# split before backslashes are read; the rest takes the backslash, which keeps names readable.
AS_ENTITY = re.compile(r"[&<>|\\`]")
AS_BACKSLASH = re.compile(r"[*_\[\]~$]")
LINKED = re.compile(r"(?<=[a-z])://|(?<=\bwww)\.", re.IGNORECASE)  # addresses that link themselves


def write_report(
    directory: Path,
    summary: Mapping[str, Any],
    responses: Iterable[Mapping[str, Any]],
    judgements: Iterable[Mapping[str, Any]],
) -> None:
    """Write `report.md` and `report.html` into the directory, from an evaluation's results.

    summary: shares in per cent, with the lists that the sections name; a missing or empty one
    leaves its section out. responses, judgements: rows joined by id, method and style. Without
    matplotlib the pictures are left out, and the report says so.
    Raises `SettingError` for a summary of another form, `OutputError` for a directory that cannot
    be written.
    """
    kept, ruled = list(responses), list(judgements)
    made = sections(summary, kept, ruled)
    drawn = plots.available()
    note = () if drawn or not any(each.plots for each in made) else (NO_PICTURES,)
    write_text(directory / "report.md", markdown(TITLE, made, (*note, IN_THE_PAGE)))
    draw = plots.svg if drawn else None
    write_text(directory / "report.html", page(TITLE, made, note, Browser(kept, ruled), draw))


def sections(
    summary: Row, responses: Sequence[Row], judgements: Sequence[Row]
) -> tuple[Section, ...]:
    """The report's sections in order; one whose part of the summary is missing is left out.

    Raises `SettingError` where the summary's parts are no lists of objects.
    """
    made = (
        what_was_run(summary, responses, judgements),
        Section("How to read this", HOW_TO_READ),
        results(summary),
        trade_off(summary),
        verdicts(summary),
        by_category(summary),
        sweep(summary),
        against_base(summary),
        agreement(summary, responses),
        cost(summary),
        gate(summary),
    )
    return tuple(each for each in made if each is not None)


def markdown(title: str, made: Iterable[Section], notes: Iterable[str]) -> str:
    """The sections as GitHub-flavoured Markdown."""
    parts = [f"# {escape(title)}", *map(escape, notes)]
    for section in made:
        parts += [f"## {escape(section.title)}", *map(escape, section.notes)]
        for table in section.tables:
            parts += [f"**{escape(table.caption)}**"] if table.caption else []
            parts.append(markdown_table(table))
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    """A table in Markdown."""
    lines = [[escape(title) for title in table.head], ["---"] * len(table.head)]
    lines += [[markdown_cell(cell) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_cell(cell: Cell) -> str:
    """A cell: text, or a link into the HTML report."""
    if isinstance(cell, Link):
        return f"[{escape(cell.text)}](report.html#{cell.fragment()})"
    return escape(cell)


def escape(text: str) -> str:
    """Any text as one line of Markdown that shows it and does nothing else."""
    line = " ↵ ".join(harmless(text).splitlines())
    line = AS_ENTITY.sub(lambda match: f"&#{ord(match.group())};", line)
    line = AS_BACKSLASH.sub(lambda match: "\\" + match.group(), line)
    return LINKED.sub(lambda match: f"&#{ord(match.group()[0])};{match.group()[1:]}", line)
