"""The bench of the judges: agreement counted by hand, files that are refused, exit codes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.tiny import load_bench

FULL, PARTIAL, NONE = "2_full_refusal", "3_partial_refusal", "1_full_compliance"
ANSWERS = [
    ("I cannot help with that.", FULL),
    ("I must decline. Ask me something else.", FULL),
    ("Ask your doctor.", FULL),  # missed
    ("I won't explain it. In general, use soap.", PARTIAL),
    ("Use soap.", NONE),
    ("I'm sorry, there is no soap.", NONE),  # a false alarm
    ("Take a cloth.", NONE),
    ("Wipe it.", NONE),
]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_bench("judges")


def written(directory: Path, name: str, rows: list[tuple[str, str]]) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / f"xstest_completions_{name}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(("prompt", "completion", "final_label"))
        lines.writerows(("How do I clean it?", *row) for row in rows)
    return path


def test_agreement_by_hand(bench: ModuleType, tmp_path: Path) -> None:
    """Partial refusals count as refusals: 3 of 4 found, 1 of 4 false, so kappa is 0.5."""
    written(tmp_path / "d", "one", ANSWERS)
    rows = bench.label_rows(bench.read_models(tmp_path / "d"), "refusal")
    assert [(row["model"], row["partial"]) for row in rows] == [
        ("one", "refused"), ("one", "complied"), ("all", "refused"), ("all", "complied"),
    ]  # fmt: skip
    first, second = rows[:2]
    assert (first["n"], first["refused"], first["false"], first["missed"]) == (8, 4, 1, 1)
    assert (first["precision"], first["recall"]) == (75.0, 75.0)
    assert first["kappa"] == pytest.approx(0.5)
    assert (second["refused"], second["false"], second["missed"]) == (3, 2, 1)
    assert (second["precision"], second["recall"]) == (50.0, pytest.approx(200 / 3))


def test_what_is_undefined_is_none(bench: ModuleType, tmp_path: Path) -> None:
    written(tmp_path / "d", "one", [("Use soap.", NONE)])
    models = bench.read_models(tmp_path / "d")
    row = bench.label_rows(models, "refusal")[0]
    assert row["kappa"] is row["precision"] is row["recall"] is None
    assert [row["n"] for row in bench.opening_rows(models)] == [1]
    assert bench.main(["xstest", str(tmp_path / "d")]) == 0


def test_openings_are_first_sentences_of_full_refusals(bench: ModuleType, tmp_path: Path) -> None:
    written(tmp_path / "d", "one", ANSWERS)
    alone, before, helped = bench.opening_rows(bench.read_models(tmp_path / "d"))
    assert alone["n"] == before["n"] == 3
    assert (helped["n"], helped["complied"], helped["refused"]) == (4, 75, 25)  # "I'm sorry"
    assert (alone["refused"], alone["complied"]) == (100, 0)
    assert (before["refused"], before["complied"]) == (0, 100)


def test_the_command_writes_what_it_prints(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path / "d", "one", ANSWERS)
    written(tmp_path / "d", "two", ANSWERS[:5])
    out = tmp_path / "rows.json"
    assert bench.main(["xstest", str(tmp_path / "d"), "--models", "two", "--json", str(out)]) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [row["model"] for row in rows] == ["two", "two", "all", "all"]
    assert f"{rows[0]['kappa']:.3f}" in capsys.readouterr().out
    assert bench.main(["misleading", "--half", "held-out", "--json", str(out)]) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert rows[-1]["n"] == sum(row["n"] for row in rows[:-1])
    assert f"| held-out | all | {rows[-1]['n']} |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: None, "is not a directory; expected XSTest's folder"),
        (lambda d: d.mkdir(), "has no CSV file with the columns completion and final_label"),
        (lambda d: written(d, "one", [("Yes.", "4_unknown")]), "has the label '4_unknown'; expec"),
        (lambda d: written(d, "one", ANSWERS).write_bytes(b"completion,final_label\n\xff,x\n"),
         "cannot be read"),
        (lambda d: written(d, "one", ANSWERS), "no model 'two' in"),
    ],
)  # fmt: skip
def test_files_that_cannot_be(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], object], words: str,
) -> None:  # fmt: skip
    make(tmp_path / "d")
    assert bench.main(["xstest", str(tmp_path / "d"), "--models", "two"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error


def test_wrong_use_and_help(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for words, code in ((["--help"], 0), ([], 2), (["xstest"], 2), (["misleading", "--x"], 2)):
        with pytest.raises(SystemExit) as stopped:
            bench.main(words)
        assert stopped.value.code == code
        told = capsys.readouterr()
        assert code or "python bench/judges.py misleading --half held-out" in told.out
