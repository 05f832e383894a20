"""The report as GitHub-flavoured Markdown, with all text escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable

from minisafe.evaluation.report.tables import Cell, Link, Section, Table
from minisafe.files.display import harmless

# Characters that Markdown reads as markup. Entities work everywhere, even where a table's cells are
# split before backslashes are read; the others get a backslash, which keeps names readable.
AS_ENTITY = re.compile(r"[&<>|\\`]")
AS_BACKSLASH = re.compile(r"[*_\[\]~$]")
LINKED = re.compile(r"(?<=[a-z])://|(?<=\bwww)\.", re.IGNORECASE)  # addresses that become links


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
    """Any text as one line of Markdown without markup."""
    line = " ↵ ".join(harmless(text).splitlines())
    line = AS_ENTITY.sub(lambda match: f"&#{ord(match.group())};", line)
    line = AS_BACKSLASH.sub(lambda match: "\\" + match.group(), line)
    return LINKED.sub(lambda match: f"&#{ord(match.group()[0])};{match.group()[1:]}", line)
