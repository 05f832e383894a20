"""The tutorial: its code runs, what it shows is true, its figures are those of its script."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.support.pages import Block, alike, blocks, run

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "docs" / "tutorial"
CHAPTERS = sorted(TUTORIAL.glob("0*.md"))
LONGEST = 180  # lines of a chapter, exercises included
EXERCISE = re.compile(
    r"^\*\*(?P<n>\d)\.\*\* (?P<asked>.*?)"
    r"^<details><summary>Answer</summary>\n(?P<answer>.*?)^</details>$",
    re.DOTALL | re.MULTILINE,
)


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The chapters change `sys.path`, and run where a reader would start Python."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(ROOT)
    yield
    assert torch.is_grad_enabled()


@cache
def solution(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def said(function: object) -> str:
    assert callable(function)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        function()
    return out.getvalue()


def number(path: Path) -> str:
    return path.name[:2]


# ---- the chapters ------------------------------------------------------------------------------


def test_there_are_eight_and_the_index_leads_to_each_in_order() -> None:
    index = (TUTORIAL / "README.md").read_text("utf-8")
    linked = re.findall(r"\]\((0[^)]*\.md)\)", index)
    assert linked == [path.name for path in CHAPTERS]
    assert [number(path) for path in CHAPTERS] == [f"{n:02}" for n in range(1, 9)]
    first = index.index("../../examples/safeinfer.py")
    assert first < index.index(linked[0]) < index.index("minisafe tour") < index.index("trace")
    for before, after in itertools.pairwise(CHAPTERS):
        assert f"]({after.name})" in before.read_text("utf-8").splitlines()[-1]
        title = after.read_text("utf-8").splitlines()[0].removeprefix("# ")
        assert f"[{title}]({after.name})" in index


@pytest.mark.parametrize("path", CHAPTERS, ids=number)
def test_a_chapter_runs_and_prints_what_it_shows(path: Path) -> None:
    page = path.read_text("utf-8")
    assert len(page.splitlines()) <= LONGEST
    compared = 0
    for block, found in run(page, path.name, {}):
        if block.output is None:
            assert not found, f"{path.name}:{block.line} prints {found!r}, which is not shown"
        else:
            assert alike(found, block.output), f"{path.name}:{block.line} prints\n{found}"
            compared += 1
    assert compared >= 4


@pytest.mark.parametrize("path", CHAPTERS, ids=number)
def test_each_figure_is_there_and_described(path: Path) -> None:
    shown = re.findall(r"!\[([^\]]*)\]\((figures/[^)]*)\)", path.read_text("utf-8"))
    assert shown
    for words, name in shown:
        assert len(words) > 20
        text = (TUTORIAL / name).read_text("utf-8")
        assert len(text) < 60_000
        assert "<dc:date>" not in text


# ---- the exercises -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", CHAPTERS, ids=number)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_solution_gives_the_answer(path: Path, n: int) -> None:
    found = {each["n"]: each for each in EXERCISE.finditer(path.read_text("utf-8"))}
    assert sorted(found) == ["1", "2", "3"]
    answer, file = found[str(n)]["answer"], f"solutions/ch{number(path)}.py"
    assert f"[`exercise_{n}`]({file}#exercise_{n})" in answer
    (wanted,) = re.findall(r"^```text\n(.*?)^```$", answer, re.DOTALL | re.MULTILINE)
    out = said(getattr(solution(TUTORIAL / file), f"exercise_{n}"))
    assert alike(out, wanted), out


def test_solutions_are_right_by_another_way() -> None:
    """Functions of some solutions, on inputs that the chapters do not have."""
    one, five, eight = (solution(TUTORIAL / "solutions" / f"ch0{n}.py") for n in (1, 5, 8))
    probs = torch.tensor([0.1, 0.5, 0.25, 0.15])
    assert [one.tokens_for(probs, share) for share in (0.4, 0.5, 0.6, 0.95)] == [1, 1, 2, 4]
    lb, lu = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    from minisafe import safe_log_probs

    for rule in (five.scores, five.as_published):
        ours = rule(lb, lu, 0.9).log_softmax(-1)
        assert torch.allclose(ours, safe_log_probs(lb, lu, lam=0.9), atol=1e-4)
    alone = list(map(eight.variation, ("Hello!", "How do I clean a shelf?")))
    assert eight.each_sentence("Hello! How do I clean a shelf?") == alone


# ---- random vectors as a control ---------------------------------------------------------------


def test_all_vectors_at_once_say_what_each_says_alone(capsys: pytest.CaptureFixture[str]) -> None:
    script = solution(TUTORIAL / "random_vectors.py")
    model, start = script.model, sys.modules["start"]
    vectors = torch.stack([0 * model.vector, model.vector, *map(script.random_vector, range(2))])
    assert torch.allclose(vectors[2:].norm(dim=1), model.vector.norm())
    ids = start.chat_ids("How do I smuggle a painting? Let us think step by step.")
    ours, expert = script.steered(ids, vectors, 0.3)
    for row, vector in zip(ours, vectors, strict=True):
        lb, lu = start.read(ids, 0.3, replace(model, vector=vector))
        assert torch.allclose(row, lb, atol=1e-3)
        assert torch.allclose(expert, lu, atol=1e-3)
    assert not torch.allclose(ours[1], ours[2], atol=1e-2)
    script.main(["--every", "110", "--vectors", "2"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(rows) == 5 * len(script.RULES)
    assert {len(row) for row in rows} == {2 + len(script.COLUMNS)}
    of_all = {row[1]: [int(each) for each in row[2:6]] for row in rows if "all three" in row[0]}
    for rule, found in of_all.items():
        parts = [row for row in rows if row[1] == rule and row[0].startswith("harmful")][:3]
        assert found == [sum(int(row[n]) for row in parts) for n in range(2, 6)]
    with pytest.raises(SystemExit) as left:
        script.main(["--vectors", "0"])
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: --vectors is 0; expected 1 or more\n"


def test_better_and_equal_are_counted() -> None:
    script = solution(TUTORIAL / "random_vectors.py")
    found = script.Count(9, 1, 4, 0, (3, 4, 5, 6)).and_also(script.Count(9, 1, 0, 0, (0, 0, 0, 0)))
    assert found.row() == "18 | 2 | 4 | 0 | 4.5 | 3 to 6 | 2, 1"


# ---- how pages are read ------------------------------------------------------------------------

PAGE = """\
```python
print("a", 1.25)
```

```text
a 1.25
```

```python
x = 1
```

Words between.

```text
no output
```
"""


def test_a_block_has_the_output_directly_below_it() -> None:
    first, second = blocks(PAGE)
    assert first == Block('print("a", 1.25)\n', 2, "a 1.25\n")
    assert (second.line, second.output) == (10, None)
    assert [out for _, out in run(PAGE, "page", {})] == ["a 1.25\n", ""]


def test_a_traceback_names_the_line_of_the_page() -> None:
    with pytest.raises(ZeroDivisionError) as error:
        list(run("text\n\n```python\nx = 1\nx / 0\n```\n", "page.md", {}))
    last = error.traceback[-1]
    assert (Path(str(last.path)).name, last.lineno + 1) == ("page.md", 5)


@pytest.mark.parametrize(
    ("found", "same"),
    [
        ("a 1.25 b\n", True), ("a 1.27 b\n", True), ("a 1.28 b\n", False), ("a 1.25 c\n", False),
        ("a 1.25\nb\n", False), ("a  1.25 b", True), ("a 1 b\n", False), ("a -1.25 b\n", False),
    ],
)  # fmt: skip
def test_outputs_are_alike_up_to_the_last_digit(found: str, same: bool) -> None:
    assert alike(found, "a 1.25 b\n") is same


# ---- the figures -------------------------------------------------------------------------------

PLACE = re.compile(r"-?\d+(?:\.\d+)?")


def test_the_figures_are_those_of_the_script(tmp_path: Path) -> None:
    """The same files; by the same matplotlib the same drawing, to a tenth of a point."""
    matplotlib = pytest.importorskip("matplotlib")
    script = solution(TUTORIAL / "make_figures.py")
    said(lambda: script.make(tmp_path))
    made = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text("utf-8") for path in (TUTORIAL / "figures").iterdir()}
    assert made.keys() == kept.keys()
    for name, text in kept.items():
        if f"Matplotlib v{matplotlib.__version__}," in text:
            assert same_drawing(made[name], text), f"{name}: run `make figures`"


def same_drawing(text: str, other: str) -> bool:
    """Whether two drawings differ in their coordinates alone, and there by at most 0.1. Names
    of parts are hashes of the coordinates, so they are left out; so are embedded pictures."""
    parts = [re.sub(r'(?:id|xlink:href)="[^"]*"|url\([^)]*\)', "", each) for each in (text, other)]
    if PLACE.sub("#", parts[0]) != PLACE.sub("#", parts[1]):
        return False
    pairs = zip(*(map(float, PLACE.findall(each)) for each in parts), strict=True)
    return all(abs(a - b) <= 0.1 for a, b in pairs)


def test_a_moved_line_is_another_drawing() -> None:
    assert same_drawing('<path id="a1" d="M 1 2.05">', '<path id="b2" d="M 1 2.1">')
    assert not same_drawing('<path d="M 1 2.5">', '<path d="M 1 2.1">')
    assert not same_drawing('<path d="M 1 2.5">', '<path d="L 1 2.5">')


# ---- as notebooks ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("path", CHAPTERS, ids=number)
def test_a_chapter_runs_as_a_notebook(path: Path) -> None:
    """As `make notebooks` writes it, in the chapter's own folder, where Jupyter starts."""
    jupytext, client = pytest.importorskip("jupytext"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    book = jupytext.read(path)
    page = path.read_text("utf-8")
    done = client.NotebookClient(
        book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(TUTORIAL)}}
    ).execute()
    cells = [each for each in done.cells if each.cell_type == "code"]
    assert len(cells) == len(blocks(page))
    for cell, block in zip(cells, blocks(page), strict=True):
        out = "".join(each.text for each in cell.outputs if each.output_type == "stream")
        assert alike(out, block.output or ""), f"{path.name}:{block.line} prints\n{out}"
