"""`minisafe report`: from a directory, from rows, from several runs; wrong use as one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minisafe.evaluation.report import plots
from tests.cli.test_cli import Run, run  # noqa: F401
from tests.evaluation.test_exported import make_run, write_directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_directory(tmp_path / "run", make_run())


def test_a_directorys_report_is_made_again(run: Run, directory: Path) -> None:  # noqa: F811
    before = json.loads((directory / "summary.json").read_text())
    done = run("report", directory)
    assert done.code == 0
    assert "judge world" in done.out
    assert str(directory / "report.html") in done.out
    assert json.loads((directory / "summary.json").read_text()) == before
    page = (directory / "report.md").read_text(encoding="utf-8")
    assert page.index("## In short") < page.index("## Results") < page.index("## What was run")


def test_rows_make_the_same_report(run: Run, directory: Path, tmp_path: Path) -> None:  # noqa: F811
    rows, again = tmp_path / "rows.jsonl.gz", tmp_path / "again"
    done = run("report", directory, "--export", rows)
    assert done.code == 0
    assert f"{rows}: 96 answers" in done.err
    assert run("report", rows).out == done.out.replace(f"{directory / 'report.html'}\n", "")
    assert not again.exists()
    assert run("report", rows, "--out", again).code == 0
    mine, theirs = (json.loads((each / "summary.json").read_text()) for each in (again, directory))
    assert mine.pop("about") != theirs.pop("about")
    assert mine == theirs
    assert "stays at home" not in (again / "report.html").read_text(encoding="utf-8")
    assert "stays at home" in (directory / "report.html").read_text(encoding="utf-8")


def test_json_and_against(run: Run, directory: Path) -> None:  # noqa: F811
    told = json.loads(run("report", directory, "--json", "--against", "base").out)
    assert told["against"] == "base"
    assert {row["method"] for row in told["paired"]} == {"base"}
    done = run("report", directory, "--against", "magic")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "no method 'magic' to test against; expected one of base, own" in done.err


def test_several_runs_are_one_table(run: Run, tmp_path: Path) -> None:  # noqa: F811
    paths = [write_directory(tmp_path / f"seed-{n}", make_run(n)) for n in range(2)]
    done = run("report", *paths, "--out", tmp_path / "all")
    assert done.code == 0
    assert "own  ASR under attack, worst" in done.out
    assert ", 2 runs" in done.out
    assert "## Means over runs" in (tmp_path / "all" / "report.md").read_text(encoding="utf-8")
    told = json.loads(run("report", *paths, "--json").out)
    assert [each["run"] for each in told["runs"]] == ["seed-0", "seed-1"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--export", "x.jsonl.gz"), "--export with 2 runs; expected one run"),
        (("--against", "base"), "--against with 2 runs; expected one run"),
        ((), "a run is given twice"),
    ],
)
def test_wrong_use_is_one_line(
    run: Run, directory: Path, more: tuple[str, ...], words: str  # noqa: F811
) -> None:  # fmt: skip
    done = run("report", directory, directory, *more)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert words in done.err


def test_what_is_no_run_is_one_line(run: Run, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "x.gz").write_bytes(b"x")
    for path, words in ((tmp_path, "holds no answers"), (tmp_path / "x.gz", "not a run's rows"),
                        (tmp_path / "none", "cannot be read")):  # fmt: skip
        done = run("report", path)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert words in done.err


def test_that_pictures_will_be_missing_is_said_before_the_first_answer(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    flags = ("evaluate", "--out", tmp_path / "run", "--split", "dev", "--limit", "1", "--styles",
             "simple", "--methods", "base", "--judge", "world", "--sample", "0")  # fmt: skip
    monkeypatch.setattr(plots, "available", lambda: False)
    done = run(*flags)
    assert done.code == 0
    assert done.err.startswith("the report will have no pictures")
    assert plots.INSTALL in done.err
    monkeypatch.setattr(plots, "available", lambda: True)
    assert "pictures" not in run(*flags, "--resume").err
