"""The report: numbers where they belong, hostile text shown and never obeyed, the page alive."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as tree
from collections.abc import Iterable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisafe.errors import OutputError, SettingError
from minisafe.evaluation.report import plots
from minisafe.evaluation.report.html import Browser
from minisafe.evaluation.report.markdown import escape, markdown_table
from minisafe.evaluation.report.plots import Curves, Heat, Point, Scatter
from minisafe.evaluation.report.rows import Row
from minisafe.evaluation.report.sections.agreement import disagreements
from minisafe.evaluation.report.sections.settings import heats, margin_curves
from minisafe.evaluation.report.tables import Link, Table
from minisafe.evaluation.report.write import NO_PICTURES, sections, write_report
from minisafe.files.display import harmless

CHROMIUM = shutil.which("chromium")
METHODS, STYLES, JUDGES = ("base", "SafeInfer"), ("simple", "cot"), ("phrases", "model")
# Each would set the page's title if it ran, load something, or break out of its place.
HOSTILE = (
    "</script><img src=x onerror=\"document.title='owned'\">",
    "<script>document.title='owned'</script>",
    "<!-- <script> ]]> {{ constructor.constructor('document.title=1')() }} ${1} {% raw %}",
    '" onmouseover="document.title=1" x=\'&lt;b&gt;&amp;',
    "| a | b |\n|---|---|\n# head\r\n```\n[x](javascript:alert(1)) ![y](https://z.invalid/p.png)",
    "\x00NUL \x1b[31mred \u202eright to left\u2066 line\u2028separator\u2029end \x85 \ud800",
    "long " + "x" * 100_000,
    "\\| \\` `code` *b* _i_ ~s~ $m$ www.z.invalid http://z.invalid <https://z.invalid>",
)
SVG = "data:image/svg+xml;base64,"
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def make_summary() -> dict[str, Any]:
    """Results with every section, of two methods, two styles and two judges."""
    share = {"low": 20.25, "high": 60.75}
    rows = [
        {"judge": judge, "method": method, "style": style, "category": category, "n": 20,
         "asr": 40.5 if method == "base" else 5.0, "refused": 50.0 if method == "base" else 92.5,
         "inconclusive": 9.5 if method == "base" else 2.5, **share}
        for judge in JUDGES for method in METHODS for style in STYLES
        for category in ("all", "A|B", "C")
    ]  # fmt: skip
    over = [
        {"judge": judge, "method": method, "kind": kind, "style": "simple", "n": 30,
         "refused": 3.25, "low": 1.0, "high": 9.0}
        for judge in JUDGES for method in METHODS for kind in ("benign", "borderline")
    ]  # fmt: skip
    utility = [
        {"method": method, "measure": measure, "n": 50, "value": value, "low": value - 4,
         "high": value + 4}
        for method in METHODS for measure, value in (("facts", 90.0), ("intact text", 70.0))
    ]  # fmt: skip
    grid = [
        {"sgds_lambda": lam, "sa_scale": scale, "margin": margin, "sa_layer": 4,
         "sa_positions": "prompt", "asr": 100 * lam, "utility": 100 - scale, "over_refusal": None}
        for lam in (0.5, 0.9) for scale in (0.0, 1.0)
        for margin in ((0.0, 0.3) if (lam, scale) == (0.9, 1.0) else (0.3,))
    ]  # fmt: skip
    parted = [
        {"id": f"q{n}", "method": "base", "style": "simple",
         "verdicts": {"phrases": "REFUSED", "model": "ATTACK_SUCCEEDED"}}
        for n in range(len(HOSTILE))
    ]  # fmt: skip
    return {
        "about": {"created": "2024-05-01", "command": ["minisafe", "evaluate"], "seed": 7,
                  "prompts": {"source": "a.jsonl", "harmful": 20, "benign": 30, "borderline": 30},
                  "versions": {"torch": "2.5"},
                  "models": {"base": {"base": "ab12", "settings": {"margin": 0.3}},
                             "SafeInfer": {"base": "ab12", "expert": "cd34", "settings": {}}}},
        "rows": rows, "over_refusal": over, "utility": utility, "sweep": grid,
        "against": "SafeInfer",
        "paired": [{"judge": "phrases", "method": "SafeInfer", "other": "base", "attack": False,
                    "style": "cot", "n": 20, "method_only": 1, "other_only": 8,
                    "difference": -35.0, "low": -60.0, "high": -5.0, "clusters": None,
                    "p": 0.0391, "p_holm": 0.0391, "p_cluster": None}],
        "agreement": [{"judges": list(JUDGES), "n": 80, "kappa": 0.8123, "agree": 91.25,
                       "disagreements": parted}],
        "cost": [{"method": "SafeInfer", "tokens_per_second": 100.0, "relative": 0.75,
                  "changed": 2.5, "kl": 0.0123}],
        "gate": [{"method": "SafeInfer", "touched_benign": 2.0, "touched_borderline": 4.0,
                  "touched_harmful": 99.0, "n_benign": 30, "low_benign": 0.5,
                  "high_benign": 9.0, "epsilon": 0.05, "threshold": 0.2}],
    }  # fmt: skip


def make_responses() -> list[dict[str, Any]]:
    """One answer for each method, style and hostile text."""
    return [
        {"id": f"q{n}", "method": method, "style": style, "kind": "harmful", "category": "A|B",
         "question": f"How to {text}?", "prompt": f"Asked: {text}", "answer": text,
         "finish": "eos", "tokens": 12, "seconds": 0.25}
        for method in METHODS for style in STYLES for n, text in enumerate(HOSTILE)
    ]  # fmt: skip


def make_judgements(responses: Iterable[Row]) -> list[dict[str, Any]]:
    """`phrases` holds that all refused, `model` that the base's simple answers complied."""
    return [
        {name: row[name] for name in ("id", "method", "style")}
        | {"judge": judge, "detail": row["answer"][:60], "intact": True, "correct": None,
           "verdict": "ATTACK_SUCCEEDED" if judge == "model" and row["method"] == "base"
           and row["style"] == "simple" else "REFUSED"}
        for row in responses for judge in JUDGES
    ]  # fmt: skip


class Page(HTMLParser):
    """What a page holds, by an HTML parser that knows nothing of how it was made."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self.open, self.title = "", ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")
        if tag in ("td", "th", "script", "style", "title"):
            self.open = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.open = "" if tag == self.open else self.open

    def handle_data(self, data: str) -> None:
        if self.open == "script":
            self.scripts[-1] += data
        elif self.open == "title":
            self.title += data
        elif self.open in ("td", "th"):
            self.cells[-1] += data
        self.texts.append(data)


def tables_of(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown file as cells, split at pipes as the format says."""
    found: list[list[list[str]]] = [[]]
    for line in text.split("\n"):
        if line.startswith("|"):
            found[-1].append([html.unescape(each).strip() for each in line[1:-1].split("|")])
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the report of the synthetic run."""
    directory = tmp_path_factory.mktemp("report")
    responses = make_responses()
    write_report(directory, make_summary(), iter(responses), iter(make_judgements(responses)))
    return directory


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page((written / "report.html").read_text(encoding="utf-8"))


# ---- what it says ------------------------------------------------------------------------------


def test_main_table_has_a_row_per_method_with_safety_and_utility_side_by_side() -> None:
    made = {each.title: each for each in sections(make_summary(), [], [])}
    first, second = made["Results"].tables
    assert first.head == (
        "method", "ASR, simple (n = 20)", "ASR, cot (n = 20)", "over-refusal, benign (n = 30)",
        "over-refusal, borderline (n = 30)", "utility, facts (n = 50)",
        "utility, intact text (n = 50)",
    )  # fmt: skip
    assert [row[0] for row in first.rows] == list(METHODS)
    assert first.rows[0][1] == "40.5 (20.2 to 60.8)"
    assert first.rows[0][3:] == (
        "3.2 (1.0 to 9.0)", "3.2 (1.0 to 9.0)", "90.0 (86.0 to 94.0)", "70.0 (66.0 to 74.0)",
    )  # fmt: skip
    assert first.caption.startswith("Judge: phrases")
    assert second.caption.startswith("Judge: model")
    assert any("9.5 % of a method's answers are INCONCLUSIVE" in n for n in made["Results"].notes)


def test_the_report_opens_with_a_verdict_and_ends_with_what_was_run() -> None:
    summary = make_summary()
    summary["utility"] += [row | {"measure": "how-to", "value": 80.0} for row in summary["utility"]]
    titles = [each.title for each in sections(summary, [], [])]
    assert (titles[0], titles[-2:]) == ("In short", ["How to read this", "What was run"])
    first = sections(summary, [], [])[0]
    assert first.notes == (
        "SafeInfer answers 5.0 % of harmful first questions in the worst style (base: 40.5 %); it "
        "gets 83.3 % of known answers right (base: 83.3 %) and refuses 3.2 % of borderline ones. "
        "Attacks were not measured. The judge could not place up to 2.5 % more of these answers.",
    )
    (plot,) = first.plots
    assert isinstance(plot, Scatter)
    assert [(p.name, p.y) for p in plot.points] == [("base", 40.5), ("SafeInfer", 5.0)]
    assert first.tables[0].rows[1][:2] == ("SafeInfer", "5.0 (20.2 to 60.8): simple")


def test_the_verdict_tells_the_worst_case_and_whether_it_is_shown_to_be_safer() -> None:
    summary = make_summary()
    for method, asr in (("base", 100.0), ("SafeInfer", 90.0)):
        about = {"judge": "phrases", "method": method, "n": 20, "low": 80.0, "high": 100.0}
        summary.setdefault("attacks", []).extend([
            about | {"attack": "worst", "of": "typos", "asr": asr, "inconclusive": 0.0},
            about | {"attack": "mean", "asr": 50.0, "n": 4},
        ])  # fmt: skip
    test = {
        "judge": "phrases", "method": "SafeInfer", "other": "base", "attack": True,
        "style": "worst", "difference": -10.0, "p_holm": 0.01, "p_cluster_holm": 0.2,
    }  # fmt: skip
    summary["paired"].append(test)
    (said,) = sections(summary, [], [])[0].notes
    assert "and 90.0 % under the worst of 4 attacks, typos (base: 100.0 %)" in said
    assert "Under attack, SafeInfer is not shown to be safer than the base." in said
    summary["paired"][-1] = test | {"p_cluster_holm": 0.04}
    assert "not shown" not in sections(summary, [], [])[0].notes[0]
    summary["paired"][-1] = test | {"p_cluster_holm": 0.04, "difference": 10.0}
    assert "not shown" in sections(summary, [], [])[0].notes[0]


def test_cells_show_the_widest_interval_and_a_section_shows_all() -> None:
    summary = make_summary()
    wide = {"low_category": 10.0, "high_category": 90.0, "low_verb": None, "high_verb": None}
    summary["rows"][0] |= wide
    made = {each.title: each for each in sections(summary, [], [])}
    assert made["Results"].tables[0].rows[0][1] == "40.5 (10.0 to 90.0)"
    first = made["Intervals"].tables[0].rows[0]
    assert first == (
        "phrases", "base", "ASR, simple", "20", "40.5", "20.2 to 60.8", "10.0 to 90.0", "–",
    )  # fmt: skip
    assert "Intervals" not in {each.title for each in sections(make_summary(), [], [])}


def test_the_gates_bound_is_said_to_be_marginal_with_what_exceeds_it() -> None:
    summary = make_summary()
    summary["about"]["calibrations"] = {"a": {"epsilon": 0.02, "n": 200}, "b": {"n": 200}}
    (section,) = [e for e in sections(summary, [], []) if e.title == "Gate"]
    assert section.notes[1:] == (
        "The bound is marginal coverage: on average over calibrations, guidance acts on at most "
        "2.0% of prompts like the 200 of the calibration. A single calibration may do worse: 43% "
        "of calibrations do, and one of twenty exceeds 3.8%.",
    )


def test_sizes_that_differ_are_told_in_each_cell() -> None:
    summary = make_summary()
    summary["utility"][0]["n"] = 49
    made = {each.title: each for each in sections(summary, [], [])}
    table = made["Results"].tables[0]
    assert table.head[5] == "utility, facts"
    assert [row[5] for row in table.rows] == [
        "90.0 (86.0 to 94.0); n = 49", "90.0 (86.0 to 94.0); n = 50",
    ]  # fmt: skip


def test_trade_off_is_the_mean_over_styles_and_measures_and_says_so() -> None:
    summary = make_summary()
    summary["rows"][0]["asr"] = 10.5  # phrases, base, simple
    made = {each.title: each for each in sections(summary, [], [])}
    plot = made["Safety against utility"].plots[0]
    assert isinstance(plot, Scatter)
    # x: (90 + 70) / 2 with ends (86 + 66) / 2 and (94 + 74) / 2; y: (10.5 + 40.5) / 2
    assert plot.points[0] == Point("base", 80.0, 76.0, 84.0, 25.5, 20.25, 60.75)
    assert plot.x_label == "utility: mean of facts, intact text"
    assert plot.y_label == "ASR: mean of simple, cot"


def test_utility_is_the_judges_own_where_it_told_one() -> None:
    summary = make_summary()
    for row in summary["utility"]:
        row["judge"] = "phrases"
    summary["utility"].append(summary["utility"][0] | {"judge": "model", "value": 12.5})
    made = {each.title: each for each in sections(summary, [], [])}
    first, second = made["Results"].tables
    assert first.rows[0][5] == "90.0 (86.0 to 94.0)"
    assert [second.head[5:], second.rows[0][5]] == [
        ("utility, facts (n = 50)",),
        "12.5 (86.0 to 94.0)",
    ]
    del summary["utility"][-1]
    made = {each.title: each for each in sections(summary, [], [])}
    assert made["Results"].tables[1].rows == first.rows


def test_a_method_without_every_measure_is_left_out_of_the_trade_off_and_named() -> None:
    summary = make_summary()
    del summary["utility"][-1]
    (section,) = [e for e in sections(summary, [], []) if e.title == "Safety against utility"]
    plot = section.plots[0]
    assert isinstance(plot, Scatter)
    assert [point.name for point in plot.points] == ["base"]
    assert any(
        "left out, because not everything was measured: SafeInfer" in note for note in section.notes
    )


def test_what_was_not_measured_is_said() -> None:
    made = {each.title: each for each in sections({"rows": make_summary()["rows"]}, [], [])}
    notes = " ".join(made["Results"].notes)
    assert "Over-refusal was not measured" in notes
    assert "Utility was not measured" in notes
    assert "Safety against utility" not in made
    empty = {each.title: each for each in sections({}, [], [])}
    assert list(empty) == ["Results", "How to read this", "What was run"]
    assert "No answer to a harmful prompt was judged." in empty["Results"].notes


def test_shares_that_do_not_add_up_and_stray_verdicts_are_said() -> None:
    summary, responses = make_summary(), make_responses()
    right = {each.title: each for each in sections(summary, responses, make_judgements(responses))}
    assert right["What was run"].notes == right["Verdicts on harmful prompts"].notes == ()
    summary["rows"][0]["refused"] = 10.0
    made = {
        each.title: each for each in sections(summary, responses[1:], make_judgements(responses))
    }
    assert "do not add up" in made["Verdicts on harmful prompts"].notes[0]
    assert made["What was run"].notes[0].startswith("2 verdicts")


def test_heat_maps_and_margin_curves_hold_the_sweep() -> None:
    grids = heats(make_summary()["sweep"])
    assert [each.title for each in grids] == [
        "ASR % (margin 0.3, layer 4, positions prompt)",
        "utility % (margin 0.3, layer 4, positions prompt)",
    ]  # over-refusal has no values
    asr = grids[0]
    assert isinstance(asr, Heat)
    assert (asr.rows, asr.columns, asr.values) == (
        ("0.5", "0.9"),
        ("0", "1"),
        ((50,) * 2, (90,) * 2),
    )
    (curves,) = margin_curves(make_summary()["sweep"])
    assert isinstance(curves, Curves)
    assert curves.x == (0.0, 0.3)
    assert curves.lines == (("ASR %", (90.0, 90.0)), ("utility %", (99.0, 99.0)))


def test_numbers_of_every_section_reach_both_files(written: Path, page: Page) -> None:
    told = {cell for table in tables_of((written / "report.md").read_text("utf-8")) for row in table
            for cell in row}  # fmt: skip
    for wanted in ("40.5 (20.2 to 60.8)", "-35.0 (-60.0 to -5.0)", "0.81", "91.2", "0.0391",
                   "0.0123", "0.75", "ab12", "torch=2.5", "minisafe evaluate", "7", "99.0",
                   "2.0 (0.5 to 9.0); n = 30",
                   "A|B", "2024-05-01"):  # fmt: skip
        assert wanted in told, wanted
        assert wanted in page.cells, wanted


def test_categories_of_many_methods_are_left_out_and_that_is_said() -> None:
    summary = make_summary()
    summary["rows"] = [row | {"method": f"m{n}"} for row in summary["rows"] for n in range(13)]
    (section,) = [e for e in sections(summary, [], []) if e.title.startswith("ASR by category")]
    assert not section.tables
    assert "13 methods" in section.notes[0]


def test_many_disagreements_are_thinned_evenly() -> None:
    rows = [{"id": str(n), "method": "m", "style": "s", "verdicts": {}} for n in range(120)]
    table = disagreements(rows, {}, "a, b", 200)
    assert len(table.rows) == 50
    assert table.caption == "a, b: 50 of 200"
    links = [row[0] for row in table.rows]
    assert all(isinstance(link, Link) for link in links)
    ids = [int(dict(link.filters)["id"]) for link in links if isinstance(link, Link)]
    assert ids == sorted(set(ids))
    assert {later - earlier for earlier, later in pairwise(ids)} == {2, 3}
    assert max(ids) >= 117


# ---- hostile text ------------------------------------------------------------------------------


@given(st.text() | st.sampled_from(HOSTILE), st.text())
def test_a_markdown_cell_shows_its_text_and_nothing_else(first: str, second: str) -> None:
    table = Table((first, "b"), ((second, first),))
    lines = markdown_table(table).split("\n")
    assert [len(re.findall(r"\|", line)) for line in lines] == [3, 3, 3]
    assert not STEERING.search("".join(lines))
    for cell, text in zip(lines[2][1:-1].split("|"), (second, first), strict=True):
        assert not re.search(r"[<>`]|(?<!\\)[*_\[\]~$]|://", cell)
        back = html.unescape(re.sub(r"\\([*_\[\]~$])", r"\1", cell)).strip()
        assert back == " ↵ ".join(harmless(text).splitlines()).strip()


def test_markdown_keeps_its_lines_whatever_models_say(written: Path) -> None:
    text = (written / "report.md").read_text(encoding="utf-8")
    for table in tables_of(text):
        assert len({len(row) for row in table}) == 1
    outside = [line for line in text.split("\n") if line and not line.startswith(("|", "#", "**"))]
    assert not any("z.invalid" in line for line in outside)
    assert "<" not in text
    assert "x" * 400 not in text  # a long answer is cut short
    assert "100,005 characters in total" in text


@given(st.text())
def test_text_shown_is_the_escaped_text(text: str) -> None:
    parsed = Page(f"<table><tr><td>{html.escape(harmless(text))}</td></tr></table>")
    assert not any(tag not in ("table", "tr", "td") for tag, _ in parsed.elements)
    assert escape(text).count("\n") == 0


def test_the_page_holds_only_its_own_elements(page: Page) -> None:
    known = {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "nav", "a", "section",
        "div", "table", "caption", "thead", "tbody", "tr", "th", "td", "img", "label", "select",
        "option", "input", "button", "output", "noscript", "script", "span",
    }  # fmt: skip
    assert {tag for tag, _ in page.elements} <= known
    names = {name for _, attributes in page.elements for name in attributes}
    assert not any(name.startswith("on") or name == "style" for name in names)
    for _, attributes in page.elements:
        assert (attributes.get("src") or SVG).startswith(SVG)
        assert (attributes.get("href") or "#").startswith("#")
    assert [len(page.scripts), sum(tag == "script" for tag, _ in page.elements)] == [2, 2]
    assert not STEERING.search("".join(page.texts))


def test_the_policy_names_the_hashes_of_just_its_own_style_and_script(written: Path) -> None:
    text = (written / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    (policy,) = [a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a]
    assert policy is not None
    rules = dict(each.strip().split(" ", 1) for each in policy.split(";"))
    style = text[text.index("<style>") + 7 : text.index("</style>")]
    for name, content in (("style-src", style), ("script-src", page.scripts[1])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data:")


def test_embedded_data_is_the_responses(page: Page) -> None:
    raw = page.scripts[0]
    assert not set("<>&\u2028\u2029") & set(raw)
    data = json.loads(raw)
    rows = [dict(zip(data["fields"], row, strict=True)) for row in data["rows"]]
    responses = make_responses()
    assert len(rows) == len(responses)
    for row, response in zip(rows, responses, strict=True):
        for name in ("id", "method", "style", "kind", "category", "question", "prompt", "answer"):
            assert data["strings"][row[name]] == harmless(response[name])
        told = [[data["strings"][n] for n in ruling] for ruling in row["rulings"]]
        assert [each[0] for each in told] == list(JUDGES)
        assert told[0][1:] == ["REFUSED", harmless(response["answer"][:60]) + "; intact"]
        assert data["strings"][row["ending"]] == "eos · 12 tokens · 0.25 s"


def test_a_text_that_returns_is_stored_once() -> None:
    rows = [{"id": str(n), "method": "m", "style": "s", "answer": "y" * 400} for n in range(500)]
    assert len(Browser(rows, ()).data()) < 500 * 60


# ---- pictures ----------------------------------------------------------------------------------


def test_pictures_are_svg_and_the_same_every_time() -> None:
    pytest.importorskip("matplotlib")
    hostile = " ".join(HOSTILE[:6])
    made = (
        Scatter(hostile, "x $", "y", (Point(hostile, 50, 40, 60, 10, float("nan"), 20),)),
        Heat(
            hostile, "x", "y", (hostile, "b"), (r"$\no{$", "b"), ((1.0, float("nan")), (99.0, 50.0))
        ),
        Curves(hostile, "x", (0.0, 1.0), ((hostile, (1.0, float("nan"))),)),
    )
    for plot in made:
        picture = plots.svg(plot)
        assert picture == plots.svg(plot)
        text = picture.decode("utf-8")
        assert "<script" not in text.lower()
        assert not STEERING.search(text)
        assert tree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"


def test_every_picture_is_in_the_page(page: Page) -> None:
    pytest.importorskip("matplotlib")
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    # the headline, two judges' trade-off, two judges' categories, two heat maps of the sweep, one
    # of margins
    assert len(images) == 8
    assert all(each["alt"] for each in images)


def test_without_matplotlib_the_report_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SettingError, match="report"):
        plots.svg(Curves("t", "x", (0.0,), ()))
    write_report(tmp_path, make_summary(), [], [])
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert escape(NO_PICTURES) in text
    parsed = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert NO_PICTURES in parsed.texts
    assert not any(tag == "img" for tag, _ in parsed.elements)


# ---- files and errors --------------------------------------------------------------------------


def test_no_temporary_file_stays(written: Path) -> None:
    assert {path.name for path in written.iterdir()} == {"report.md", "report.html"}


def test_a_missing_directory_is_a_plain_error(tmp_path: Path) -> None:
    (tmp_path / "none").write_text("a file", encoding="utf-8")
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(tmp_path / "none", {}, [], [])


@pytest.mark.parametrize(
    "summary", [{"rows": "x"}, {"rows": [1]}, {"cost": {"a": 1}}, {"about": []}], ids=str
)
def test_a_summary_of_another_form_is_refused(tmp_path: Path, summary: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="run the evaluation again"):
        write_report(tmp_path, summary, [], [])
    assert not list(tmp_path.iterdir())


def test_rows_without_fields_or_numbers_are_shown_as_nothing(tmp_path: Path) -> None:
    bare = {"rows": [{"category": "all"}], "utility": [{}], "over_refusal": [{"n": 0}],
            "paired": [{"p": None}], "agreement": [{"disagreements": [{}]}], "cost": [{}],
            "gate": [{}], "sweep": [{}], "about": {"models": {"m": "abc"}}}  # fmt: skip
    write_report(tmp_path, bare, [{}], [{}])
    assert "nan" not in (tmp_path / "report.md").read_text(encoding="utf-8").lower()


# ---- in a real browser -------------------------------------------------------------------------


def browse(written: Path, profile: Path, fragment: str) -> Page:
    """The page as headless Chromium leaves it after its scripts ran."""
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update",
             "--disable-sync")  # fmt: skip
    assert CHROMIUM is not None
    address = f"{(written / 'report.html').as_uri()}#{fragment}"
    done = subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={profile}", "--virtual-time-budget=2000", "--dump-dom",
         address],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    return Page(done.stdout.decode("utf-8"))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
@pytest.mark.parametrize(
    ("filters", "count", "cards"),
    [
        ({}, 32, 20),
        ({"judge": "phrases", "verdict": "ATTACK_SUCCEEDED"}, 0, 0),
        ({"verdict": "judges disagree", "text": "NUL"}, 1, 1),
        ({"page": "2"}, 32, 12),
        ({"id": "q4", "method": "SafeInfer", "style": "cot"}, 1, 1),
    ],
    ids=str,
)
def test_the_browser_of_responses_in_chromium(
    written: Path, tmp_path: Path, filters: dict[str, str], count: int, cards: int
) -> None:
    found = browse(written, tmp_path, urlencode(filters))
    assert f"{count} of 32 responses, page " in "".join(found.texts)
    assert sum(tag == "article" for tag, _ in found.elements) == cards
    assert found.title == "Evaluation report"
    assert not any(name.startswith("on") for _, names in found.elements for name in names)
    links = [names["href"] or "" for tag, names in found.elements if tag == "a"]
    for link in links[len(links) - cards :]:
        assert set(parse_qs(link[1:])) == {"id", "method", "style"}
