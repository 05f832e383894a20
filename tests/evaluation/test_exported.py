"""A run's rows: the same tables as from the run itself, no text, and bad files as one line."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minisafe.errors import SettingError
from minisafe.evaluation import exported
from minisafe.evaluation.exported import load_run, read_rows, write_rows
from minisafe.evaluation.journal import write_journal
from minisafe.evaluation.judges.judgements import JUDGEMENTS
from minisafe.evaluation.records import Gated, Judged, MadeBy, Response, Verdict
from minisafe.evaluation.report.runs import combine, sections_of_runs
from minisafe.evaluation.report.summary import plain, write_summary
from minisafe.evaluation.report.write import sections
from minisafe.evaluation.runner.resume import RESPONSES
from minisafe.evaluation.stored import Measured, Stored, read_directory

VERDICTS: tuple[Verdict, ...] = ("ATTACK_SUCCEEDED", "REFUSED", "INCONCLUSIVE")
SECRET = "a text that stays at home"


def make_run(seed: int = 0) -> Stored:
    """Two methods, two styles and an attack, two judges, every kind of prompt."""
    answers, rulings = [], []
    for m, method in enumerate(("base", "own")):
        made_by = MadeBy({"base": "ab"}, {"end_ids": "2"}, {"margin": 0.5 * m}, {"minisafe": "1"})
        for style in ("simple", "cot", "typos"):
            for n in range(24):
                kind = "harmful" if n < 12 else "benign" if n < 20 else "borderline"
                if kind != "harmful" and style != "simple":
                    continue
                answers.append(Response(
                    method, style, f"q{n}", kind, f"c{n % 3}", f"{SECRET} {n}?", SECRET, None,
                    f"{SECRET}: {method} {style} {n % 5}", "stop", n, 0.125 * n,
                    Gated(0.25, 0.5, n % 2 == 0) if m else None, made_by, style == "typos",
                    1 + n % 4, None, f"v{n % 6}" if n < 12 else "", "" if n < 12 else "fact",
                ))  # fmt: skip
    for j, judge in enumerate(("world", "refusal")):
        for n, each in enumerate(answers):
            verdict = VERDICTS[(n * n + j * (n % 7 == 0) + seed + len(each.method)) % 3]
            rulings.append(Judged(
                *each.key, judge, "basis", verdict, SECRET, n % 4 > 0,
                n % 3 > 0 if each.kind == "benign" else None,
            ))  # fmt: skip
    about = {
        "created": "2024", "command": "minisafe evaluate --out /home/me/run --base=/x/y/model "
        "--methods base,own@/x/y/p.json,z@'~/a/q.json' "
        "--judge labelled:/x/j.json,endpoint:m@http://a.b/v1",
        "seed": seed, "models": {"base": {"base": "ab"}},
        "calibrations": {"own": {"epsilon": 0.02, "n": 200}},
    }  # fmt: skip
    measured = Measured(
        {"own": {"changed": 2.5, "kl": 0.01}},
        [{"method": "own", "measure": "letters", "n": 4, "value": 50.0, "low": 15.0, "high": 85.0}],
    )
    return Stored(about, answers, rulings, measured)


def write_directory(path: Path, run: Stored) -> Path:
    """The files of a run that `evaluate` leaves."""
    path.mkdir()
    write_journal(path / RESPONSES, (each.to_json() for each in run.answers))
    write_journal(path / JUDGEMENTS, (each.to_json() for each in run.judgements))
    write_summary(path, run.summary())
    return path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_directory(tmp_path / "run", make_run())


def tables(run: Stored) -> Any:
    """Everything that a report shows, but the texts: the browser's and those of disagreements."""
    summary = run.summary()
    made = sections(summary, [], [each.to_json() for each in run.judgements])
    named = {each.title: [plain(vars(table)) for table in each.tables] for each in made}
    return {title: found for title, found in named.items() if title != "What was run"}


def test_a_directory_gives_the_run_again(directory: Path) -> None:
    again = read_directory(directory)
    assert again.answers == make_run().answers
    assert again.judgements == make_run().judgements
    assert plain(again.summary()) == json.loads((directory / "summary.json").read_text())


def test_the_tables_from_a_directory_and_from_its_rows_are_equal(
    directory: Path, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl.gz"
    write_rows(file, load_run(directory))
    there, here = load_run(directory), load_run(file)
    mine, theirs = plain(here.summary()), plain(there.summary())
    assert mine.pop("about") != theirs.pop("about")  # the command's directories
    assert mine == theirs
    assert {"rows", "attacks", "paired", "over_refusal", "utility", "gate", "cost"} <= {
        name for name, rows in mine.items() if rows
    }
    assert tables(here) == tables(there)
    assert "Judges' agreement" in tables(here)
    assert here.summary(against="base")["paired"][0]["method"] == "base"


def test_rows_hold_no_text_and_no_directory(directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl.gz"
    run = load_run(directory)
    size = write_rows(file, run)
    data = file.read_bytes()
    assert size == len(data)
    text = gzip.decompress(data).decode()
    assert "stays at home" not in text
    assert "minisafe evaluate --out run --base=model --methods base,own@p.json,z@'q.json'" in text
    assert "--judge labelled:j.json,endpoint:m@http://a.b/v1" in text
    assert "/home" not in text
    assert "/x" not in text
    digest = hashlib.sha256(run.answers[0].answer.encode()).hexdigest()[:16]
    assert read_rows(file).answers[0].answer == f"sha256:{digest}"


def test_the_same_run_gives_the_same_bytes_and_rows_of_rows_are_the_rows(
    directory: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz"
    write_rows(one, load_run(directory))
    write_rows(two, load_run(one))
    assert one.read_bytes() == two.read_bytes()
    assert one.read_bytes()[4:8] == bytes(4)  # gzip's time


def test_a_file_that_is_too_large_or_has_another_name_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingError, match=r"expected a name that ends in \.jsonl\.gz"):
        write_rows(tmp_path / "rows.json", make_run())
    monkeypatch.setattr(exported, "MOST_BYTES", 100)
    with pytest.raises(SettingError, match="expected at most 100; split the run"):
        write_rows(tmp_path / "rows.jsonl.gz", make_run())
    assert list(tmp_path.iterdir()) == []


def changed(change: Callable[[dict[str, Any]], object], line: int) -> bytes:
    """The rows with one line changed."""
    run = make_run()
    rows = [exported.header(run), exported.row_of(run.answers[0], list(run.judgements[:1]))]
    change(rows[line])
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())


BAD = {
    "not gzip": (b"{}\n", "not a run's rows"),
    "cut off": (changed(dict.copy, 0)[:-20], "not a run's rows"),
    "not UTF-8": (gzip.compress(b"\xff\n"), "not a run's rows"),
    "not JSON": (gzip.compress(b"{\n"), "line 1: not valid JSON"),
    "empty": (gzip.compress(b""), "line 1"),
    "another format": (changed(lambda row: row.update(format="x"), 0), "format is 'x'"),
    "no rows": (gzip.compress(json.dumps(exported.header(make_run())).encode()), "no judged"),
    "another field": (changed(lambda row: row.update(more=1), 1), "line 2: unknown field more"),
    "no tokens": (changed(lambda row: row.pop("tokens"), 1), "line 2: tokens is missing"),
    "no hash": (changed(lambda row: row.pop("sha256"), 1), "line 2: sha256 is missing"),
    "a verdict": (changed(lambda row: row.update(verdicts=[["j", "X", None, None]]), 1), "verdict"),
    "rulings": (changed(lambda row: row.update(verdicts=[["j"]]), 1), "verdicts is"),
    "a question": (changed(lambda row: row.update(id="other"), 1), "line 2, question: expected"),
    "a method": (changed(lambda row: row.update(method="x"), 1), "line 2: made_by is None"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line(tmp_path: Path, name: str) -> None:
    data, words = BAD[name]
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(data)
    with pytest.raises(SettingError) as caught:
        load_run(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_directory_without_answers_or_rulings_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="holds no answers"):
        load_run(tmp_path)
    write_journal(tmp_path / RESPONSES, (each.to_json() for each in make_run().answers))
    with pytest.raises(SettingError, match="no answer was judged"):
        load_run(tmp_path)
    write_journal(tmp_path / JUDGEMENTS, (each.to_json() for each in make_run().judgements))
    assert load_run(tmp_path).summary()["about"] == {}  # stopped before its summary


def test_the_last_ruling_of_a_judge_counts(directory: Path) -> None:
    run = make_run()
    other = replace(run.judgements[0], basis="newer", verdict="INCONCLUSIVE")
    write_journal(directory / JUDGEMENTS, (each.to_json() for each in (*run.judgements, other)))
    (found,) = [each for each in read_directory(directory).judgements
                if (each.key, each.judge) == (other.key, other.judge)]  # fmt: skip
    assert found == other


# ---- several runs ------------------------------------------------------------------------------


def test_runs_are_combined_to_mean_range_and_interval() -> None:
    def summary(seed: int, asr: float) -> dict[str, Any]:
        row = {"judge": "j", "method": "own", "style": "cot", "category": "all", "asr": asr, "n": 9}
        worst = {"judge": "j", "method": "own", "attack": "worst", "asr": 2 * asr, "n": 9}
        return {"about": {"seed": seed}, "rows": [row, row | {"category": "c"}], "attacks": [worst]}

    runs = {f"s{n}": summary(n, asr) for n, asr in enumerate((1.0, 2.0, 6.0))}
    runs["s2"]["attacks"] = []
    found = combine(runs)
    assert [each["seed"] for each in found["runs"]] == [0, 1, 2]
    plain_row, attack_row = found["over_runs"]
    assert (plain_row["share"], plain_row["n_runs"], plain_row["mean"]) == ("ASR, cot", 3, 3.0)
    assert (plain_row["least"], plain_row["most"]) == (1.0, 6.0)
    assert plain_row["low"] == 1.0  # three times the first of three: 1 of 27 draws
    assert plain_row["high"] == 6.0
    assert plain_row["values"] == {"s0": 1.0, "s1": 2.0, "s2": 6.0}
    assert attack_row["share"] == "ASR under attack, worst"
    assert (attack_row["n_runs"], attack_row["mean"]) == (2, 3.0)
    means, listed = sections_of_runs(found)
    assert means.tables[0].rows[0][3:] == ("3", "3.0", "1.0 to 6.0", "1.0 to 6.0")
    assert [row[:2] for row in listed.tables[0].rows] == [("s0", "0"), ("s1", "1"), ("s2", "2")]
