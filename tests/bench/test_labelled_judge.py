"""The bench of the judge `labelled`: who is left out, what is counted, and the file it writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import ModuleType

import pytest

from minisafe.evaluation.judges.labelled import LabelledJudge
from tests.support.tiny import load_bench

FULL, PARTIAL, NONE = "2_full_refusal", "3_partial_refusal", "1_full_compliance"
REFUSED = [("I cannot say.", FULL), ("I cannot say it all.", PARTIAL)]
HELPED = [("Use soap.", NONE), ("Use a cloth.", NONE)]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_bench("labelled_judge")


def written(directory: Path, **models: list[tuple[str, str]]) -> Path:
    directory.mkdir()
    for name, rows in models.items():
        path = directory / f"xstest_completions_{name}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("completion", "final_label"), *rows])
    return directory


def test_a_model_is_judged_by_what_the_others_taught(bench: ModuleType, tmp_path: Path) -> None:
    """Model `odd` refuses by the others' word for help, and so is always judged wrongly."""
    odd = [("Use soap.", FULL), ("I cannot say.", NONE)]
    usual = (REFUSED + HELPED) * 8
    models = bench.read_models(written(tmp_path / "d", odd=odd, one=usual, two=usual))
    rows = {(row["judge"], row["model"]): row for row in bench.rows_of(models, 25)}
    assert list(rows) == [
        (judge, model)
        for model in ("odd", "one", "two", "all")
        for judge in ("labelled", "refusal")
    ]
    first, mine = rows["labelled", "odd"], rows["labelled", "one"]
    assert (first["accuracy"], first["precision"], first["recall"]) == (0, 0, 0)
    assert first["partial"] is None
    assert (mine["n"], mine["refused"], mine["accuracy"], mine["kappa"]) == (32, 16, 100, 1)
    assert mine["partial"] == 100
    assert rows["labelled", "all"]["accuracy"] == pytest.approx(100 * 64 / 66)


def test_only_beginnings_are_read(bench: ModuleType, tmp_path: Path) -> None:
    late = [("Use soap. " * 2 + "I cannot help you.", FULL)]
    usual = (REFUSED + HELPED) * 8
    models = bench.read_models(written(tmp_path / "d", late=late, one=usual, two=usual))
    for words, found in ((4, 0), (7, 100)):
        rows = {(row["judge"], row["model"]): row for row in bench.rows_of(models, words)}
        assert rows["refusal", "late"]["accuracy"] == found
    assert rows["labelled", "late"]["n"] == 1


def test_the_file_is_a_judge(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, out = written(tmp_path / "d", one=(REFUSED + HELPED) * 8), tmp_path / "j.json"
    assert bench.main(["fit", str(directory), "--out", str(out), "--words", "9"]) == 0
    assert str(out) in capsys.readouterr().out
    judge = LabelledJudge(out)
    assert judge.learned.words == 9
    assert judge.learned.made_of["answers"] == {"one": 32}
    assert list(judge.learned.made_of["files"]) == ["xstest_completions_one.csv"]
    assert judge.rule("I cannot say.").verdict == "REFUSED"


def test_the_command_writes_what_it_prints(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = (REFUSED + HELPED) * 8
    directory, out = written(tmp_path / "d", one=usual, two=usual), tmp_path / "r.json"
    assert bench.main(["agreement", str(directory), "--json", str(out)]) == 0
    told = json.loads(out.read_text(encoding="utf-8"))
    assert [row["model"] for row in told["rows"][::2]] == ["one", "two", "all"]
    assert told["broken"] == {"n": 64, "broken": {"short": 48}}
    assert "called broken: {'short': 48} of 64" in capsys.readouterr().out


def test_errors_are_one_line(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = str(written(tmp_path / "d", one=REFUSED))
    for words, message in (
        (["agreement", str(tmp_path / "none")], "is not a directory"),
        (["agreement", alone], "has answers of one model; expected two or more"),
        (["fit", alone, "--out", str(tmp_path / "j")], "2 of 2 answers are refusals"),
    ):
        assert bench.main(words) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert message in error
    for words in ([], ["fit", alone], ["agreement", alone, "--words", "0"]):
        with pytest.raises(SystemExit) as stopped:
            bench.main(words)
        assert stopped.value.code == 2
