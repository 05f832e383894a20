"""The parts of a report in any format: sections, tables, links, and numbers as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from minisafe.evaluation.report.plots import Plot
from minisafe.evaluation.report.rows import Row, number, widest
from minisafe.files.display import harmless

NOTHING = "–"  # shown where there is no value
EXCERPT = 300  # most characters of an answer or question in a table cell


@dataclass(frozen=True)
class Link:
    """Text that links to responses: `filters` are fields of the page's browser and their values."""

    text: str
    filters: tuple[tuple[str, str], ...]

    def fragment(self) -> str:
        """The filters as the fragment of an address, with the values of the page's browser."""
        return urlencode([(name, harmless(value)) for name, value in self.filters])


Cell = str | Link


@dataclass(frozen=True)
class Table:
    """Cells under a head; all of it is plain text, which the renderer escapes."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """One heading of a report: paragraphs, then pictures, then tables."""

    title: str
    notes: tuple[str, ...] = ()
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()


def decimals(value: float, places: int = 1) -> str:
    """A number with this many places, or the sign for no value."""
    return f"{value:.{places}f}" if math.isfinite(value) else NOTHING


def share(row: Row | None, name: str) -> str:
    """A share with its widest interval, as `12.3 (8.1 to 18.2)`; nothing where n is 0."""
    if row is None or not math.isfinite(number(row, name)) or number(row, "n") == 0:
        return NOTHING
    told = ends(*widest(row))
    return decimals(number(row, name)) + (f" ({told})" if told != NOTHING else "")


def ends(low: float, high: float) -> str:
    """An interval, as `8.1 to 18.2`, or the sign for no value."""
    known = math.isfinite(low) and math.isfinite(high)
    return f"{decimals(low)} to {decimals(high)}" if known else NOTHING


def plain(value: Any) -> str:
    """Any value of the summary as text: `a=1, b=2` for an object, commas between a list's."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={plain(each)}" for name, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(plain, value))
    return str(value)


def listing(rows: Sequence[Row], titles: Mapping[str, str], caption: str = "") -> Table:
    """A table of all fields that any row has: those with a title first, then the others."""
    seen = dict.fromkeys(name for row in rows for name in row)
    names = [name for name in titles if name in seen] + [n for n in seen if n not in titles]
    lines = (tuple(plain(row.get(name)) for name in names) for row in rows)
    return Table(tuple(titles.get(name, name) for name in names), tuple(lines), caption)


def excerpt(text: str) -> str:
    """The beginning of the text, with its full length if something is left out."""
    if len(text) <= EXCERPT:
        return text
    return f"{text[:EXCERPT]}… ({len(text):,} characters in total)"
