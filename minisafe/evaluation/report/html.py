"""The report as one self-contained HTML page: no server, no network, no other file.

Tables are plain HTML. Only the browser of responses needs the page's script, which inserts text as
text alone. A Content-Security-Policy forbids every other script and every load, so unescaped markup
would have no effect (W3C, Content Security Policy Level 3).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from minisafe.evaluation.report.plots import Plot
from minisafe.evaluation.report.rows import Row, key_of, number, text_of
from minisafe.evaluation.report.tables import Cell, Link, Section, Table, decimals
from minisafe.files.display import harmless

HERE = Path(__file__).parent
FIELDS = ("id", "method", "style", "kind", "category", "question", "prompt", "answer")
FILTERS = ("method", "style", "kind", "category", "judge", "verdict")
# Characters that could end a script element or a line of script are written as JSON escapes.
UNSAFE = "<>&\u2028\u2029"
INTERVAL = re.compile(r"\(-?[\d.]+ to -?[\d.]+\)")  # stays on one line
KEPT = r"<span>\g<0></span>"
NO_SCRIPT = (
    "Browsing the responses needs scripts. The evaluation's files in the same directory hold the "
    "same rows."
)
Draw = Callable[[Plot], bytes]


@dataclass(frozen=True)
class Browser:
    """The responses in the page's browser, with the judges' verdicts."""

    responses: Sequence[Row]
    judgements: Sequence[Row]

    def data(self) -> str:
        """JSON for the script: each distinct text once, and rows as indices of texts.

        The same question and prompt occur under every method, so this is far smaller than rows.
        """
        pool: dict[str, int] = {}

        def number_of(text: str) -> int:
            return pool.setdefault(text, len(pool))

        rulings: dict[tuple[str, str, str], list[list[int]]] = {}
        for row in self.judgements:
            told = (text_of(row, "judge"), text_of(row, "verdict"), remark(row))
            rulings.setdefault(key_of(row), []).append(list(map(number_of, told)))
        rows = [
            [*(number_of(text_of(row, name)) for name in FIELDS), number_of(ending(row)),
             rulings.get(key_of(row), [])]
            for row in self.responses
        ]  # fmt: skip
        strings = [harmless(text) for text in pool]
        whole = {"fields": [*FIELDS, "ending", "rulings"], "strings": strings, "rows": rows}
        text = json.dumps(whole, ensure_ascii=False, separators=(",", ":"))
        for character in UNSAFE:
            text = text.replace(character, f"\\u{ord(character):04x}")
        return text


def remark(row: Row) -> str:
    """The basis of a verdict, and the judge's flags for the text."""
    flags = [
        name if row[name] else f"not {name}"
        for name in ("intact", "correct")
        if isinstance(row.get(name), bool)
    ]
    return "; ".join(filter(None, (text_of(row, "detail"), *flags)))


def ending(row: Row) -> str:
    """How an answer ended, its length and its time."""
    parts = [text_of(row, "finish")]
    parts += [f"{text_of(row, 'tokens')} tokens"] if text_of(row, "tokens") else []
    seconds = decimals(number(row, "seconds"), 2)
    return " · ".join(filter(None, (*parts, f"{seconds} s" if "seconds" in row else "")))


def page(
    title: str, made: Sequence[Section], notes: Iterable[str], browser: Browser, draw: Draw | None
) -> str:
    """The whole page; draw: makes a picture's SVG file, or None for no pictures."""
    style = (HERE / "report.css").read_text(encoding="utf-8")
    script = (HERE / "report.js").read_text(encoding="utf-8")
    body = [f"<h1>{shown(title)}</h1>", *map(paragraph, notes), contents(made)]
    body += [section_html(section, f"part-{n}", draw) for n, section in enumerate(made)]
    body.append(browser_html(len(browser.responses)))
    return "\n".join((
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy(style, script)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{shown(title)}</title>\n<style>{style}</style>\n</head>\n<body>",
        *body,
        f'<script type="application/json" id="data">{browser.data()}</script>',
        f"<script>{script}</script>\n</body>\n</html>\n",
    ))  # fmt: skip


def policy(style: str, script: str) -> str:
    """The page's policy: allow its own style, its own script and inline pictures, nothing else."""
    return (
        f"default-src 'none'; img-src data:; style-src {allowed(style)}; "
        f"script-src {allowed(script)}; base-uri 'none'; form-action 'none'; "
        "require-trusted-types-for 'script'"
    )


def allowed(text: str) -> str:
    """The source expression that allows exactly this inline text."""
    value = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(value).decode()}'"


def shown(text: str) -> str:
    """Any text, escaped for HTML."""
    return escape(harmless(text))


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{shown(text)}</p>"


def contents(made: Sequence[Section]) -> str:
    """Links to the sections."""
    links = [f'<a href="#part-{n}">{shown(each.title)}</a>' for n, each in enumerate(made)]
    return f"<nav>{' '.join(links)} <a href='#responses'>Responses</a></nav>"


def section_html(section: Section, anchor: str, draw: Draw | None) -> str:
    """A section with its notes, pictures and tables."""
    parts = [f'<section id="{anchor}">\n<h2>{shown(section.title)}</h2>']
    parts += map(paragraph, section.notes)
    parts += [picture(plot, draw) for plot in section.plots if draw is not None]
    parts += map(table_html, section.tables)
    return "\n".join((*parts, "</section>"))


def picture(plot: Plot, draw: Draw) -> str:
    """A picture as an image, which unlike an svg element cannot contain scripts or links."""
    data = base64.b64encode(draw(plot)).decode()
    source = f"data:image/svg+xml;base64,{data}"
    alt = f"{shown(plot.title)} (the numbers are in the tables)"
    return f'<div class="wide"><img src="{source}" alt="{alt}"></div>'


def table_html(table: Table) -> str:
    """A table that may be wider than the page."""
    caption = f"<caption>{shown(table.caption)}</caption>" if table.caption else ""
    head = "".join(f'<th scope="col">{shown(title)}</th>' for title in table.head)
    rows = "\n".join(f"<tr>{''.join(map(cell_html, row))}</tr>" for row in table.rows)
    return (
        f'<div class="wide"><table>{caption}\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def cell_html(cell: Cell) -> str:
    """A cell: text, or a link to one response."""
    if isinstance(cell, Link):
        return f'<td><a href="#{escape(cell.fragment())}">{shown(cell.text)}</a></td>'
    return f"<td>{INTERVAL.sub(KEPT, shown(cell))}</td>"


def browser_html(count: int) -> str:
    """The frame that the script fills: one selection per filter, a search, pages."""
    choices = "\n".join(
        f'<label>{name} <select id="{name}"><option value="">any</option></select></label>'
        for name in FILTERS
    )
    return f"""<section id="responses">
<h2>Responses</h2>
<p>{count:,} responses. The page shows texts of models and judges as plain text, with
symbols in place of control characters.</p>
<noscript><p>{NO_SCRIPT}</p></noscript>
<div id="controls" hidden>
{choices}
<label>id <input id="id" type="search" autocomplete="off"></label>
<label>text <input id="text" type="search" autocomplete="off"></label>
<button type="button" id="clear">clear</button>
<p><button type="button" id="previous">previous</button>
<button type="button" id="next">next</button> <output id="count"></output></p>
</div>
<div id="list"></div>
</section>"""
