"""The mutants: every one still applies, and a survivor is named. `make mutants` runs them."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support import mutants
from tests.support.mutants import ROOT, TABLE, Mutant, main, read_table

MUTANTS = read_table(TABLE)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_still_applies(mutant: Mutant) -> None:
    text = mutant.applied(ROOT)
    before = ast.dump(ast.parse((ROOT / mutant.file).read_text(encoding="utf-8")))
    assert ast.dump(ast.parse(text)) != before


def test_names_tell_the_mutants_apart() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 40


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A package of one file, and tests that look at one of its two lines."""
    (tmp_path / "minisafe").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "minisafe" / "__init__.py").write_text("seen = 1\nunseen = 1\n")
    (tmp_path / "tests" / "test_it.py").write_text(
        "import minisafe\n\n\ndef test_seen():\n    assert minisafe.seen == 1\n"
    )
    return tmp_path


def table(root: Path, *olds: str) -> list[str]:
    """The arguments that name a table of mutants, which put 2 for 1."""
    file, tests = "minisafe/__init__.py", ["test_it.py"]
    records = [
        {"name": old, "file": file, "old": old, "new": old.replace("1", "2"), "tests": tests}
        for old in olds
    ]
    (root / "table.json").write_text(json.dumps(records))
    return ["--table", str(root / "table.json")]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests of `small` would say, without starting Python for it."""

    def look(root: Path, tests: Sequence[str]) -> tuple[bool, str]:
        good = "\nseen = 1\n" in "\n" + (root / "minisafe" / "__init__.py").read_text()
        return good, "" if good else f"{tests[0]}::test_seen"

    monkeypatch.setattr(mutants, "run_tests", look)


def test_a_survivor_is_named(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*table(small, "seen = 1", "unseen = 1"), "--json"], small) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["share"] == 0.5
    verdicts = {each["name"]: each["killed"] for each in json.loads(out)["mutants"]}
    assert verdicts == {"seen = 1": True, "unseen = 1": False}
    assert "seen = 1: killed by test_it.py::test_seen" in err
    assert (small / "minisafe" / "__init__.py").read_text() == "seen = 1\nunseen = 1\n"


@pytest.mark.usefixtures("quick")
def test_the_table_and_the_share_that_is_needed(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(table(small, *["seen = 1"] * 19, "unseen = 1"), small) == 0
    assert "| minisafe/__init__.py | 20 | 19 | unseen = 1 |" in capsys.readouterr().out
    assert main(table(small, *["seen = 1"] * 18, "unseen = 1"), small) == 1
    assert main([*table(small, "seen = 1", "unseen = 1"), "--only", "unseen"], small) == 1


@pytest.mark.usefixtures("quick")
def test_what_cannot_be_tried(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(table(small, "gone = 1"), small) == 2
    assert "has this line 0 times, expected once" in capsys.readouterr().err
    assert main([*table(small, "seen = 1"), "--only", "nothing"], small) == 2
    assert "no mutant has 'nothing'" in capsys.readouterr().err
    (small / "minisafe" / "__init__.py").write_text("seen = 1\nseen = 1\n")
    assert main(table(small, "seen = 1"), small) == 2
    assert "has this line 2 times" in capsys.readouterr().err
    (small / "minisafe" / "__init__.py").write_text("seen = 0\nunseen = 1\n")
    assert main(table(small, "unseen = 1"), small) == 2
    assert "without any mutant this fails: test_it.py::test_seen" in capsys.readouterr().err
