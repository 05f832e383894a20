"""The report of an evaluation: one set of sections, written as Markdown and as an HTML page.

The Markdown is for reading in a repository; the page adds pictures and a browser of all answers.
Both escape text from models, prompts and judges, which is untrusted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minisafe.evaluation.report import plots
from minisafe.evaluation.report.html import Browser, page
from minisafe.evaluation.report.markdown import markdown
from minisafe.evaluation.report.rows import Row
from minisafe.evaluation.report.sections.about import HOW_TO_READ, what_was_run
from minisafe.evaluation.report.sections.agreement import agreement
from minisafe.evaluation.report.sections.attacks import attacks
from minisafe.evaluation.report.sections.categories import by_category
from minisafe.evaluation.report.sections.cost import cost
from minisafe.evaluation.report.sections.gate import gate
from minisafe.evaluation.report.sections.headline import headline
from minisafe.evaluation.report.sections.intervals import intervals
from minisafe.evaluation.report.sections.paired import paired
from minisafe.evaluation.report.sections.results import results
from minisafe.evaluation.report.sections.settings import sweep
from minisafe.evaluation.report.sections.trade_off import trade_off
from minisafe.evaluation.report.sections.verdicts import verdicts
from minisafe.evaluation.report.tables import Section
from minisafe.files import write_text

TITLE = "Evaluation report"
NO_PICTURES = f"Pictures are left out, because they need matplotlib: {plots.INSTALL}."
IN_THE_PAGE = "report.html in the same directory has the pictures and every response."


def write_report(
    directory: Path,
    summary: Mapping[str, Any],
    responses: Iterable[Mapping[str, Any]],
    judgements: Iterable[Mapping[str, Any]],
) -> None:
    """Write `report.md` and `report.html` into the directory, from an evaluation's results.

    summary: shares in per cent, in the lists that the sections name; without its list, a section
    is left out. responses, judgements: rows joined by id, method and style. Without matplotlib the
    pictures are left out, and the report says so. Raises `SettingError` for an invalid summary, and
    `OutputError` for a directory that cannot be written.
    """
    kept, ruled = list(responses), list(judgements)
    write_pages(directory, sections(summary, kept, ruled), Browser(kept, ruled))


def write_pages(directory: Path, made: Sequence[Section], browser: Browser) -> None:
    """Write sections as `report.md` and `report.html`."""
    drawn = plots.available()
    note = () if drawn or not any(each.plots for each in made) else (NO_PICTURES,)
    write_text(directory / "report.md", markdown(TITLE, made, (*note, IN_THE_PAGE)))
    draw = plots.svg if drawn else None
    write_text(directory / "report.html", page(TITLE, made, note, browser, draw))


def sections(
    summary: Row, responses: Sequence[Row], judgements: Sequence[Row]
) -> tuple[Section, ...]:
    """The report's sections in order, without those whose part of the summary is missing: what a
    reader came for first, what was run last.

    Raises `SettingError` if the summary's parts are not lists of objects.
    """
    made = (
        headline(summary),
        attacks(summary),
        results(summary),
        paired(summary),
        trade_off(summary),
        verdicts(summary),
        intervals(summary),
        by_category(summary),
        sweep(summary),
        agreement(summary, responses),
        cost(summary),
        gate(summary),
        Section("How to read this", HOW_TO_READ),
        what_was_run(summary, responses, judgements),
    )
    return tuple(each for each in made if each is not None)
