"""The bench of answers in two dtypes: what counts as equal, and a run on the shipped model."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from minisafe.session.named import shipped
from tests.support.tiny import load_bench


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_bench("answers")


@pytest.mark.parametrize(
    ("one", "other", "place"),
    [
        ((1, 2, 3), (1, 2, 3), None),
        ((1, 2, 3), (4, 2, 3), 1),
        ((1, 2, 3), (1, 2, 4), 3),
        ((1, 2), (1, 2, 3), 3),
        ((), (1,), 1),
        ((), (), None),
    ],
)
def test_the_first_difference(
    bench: ModuleType, one: tuple[int, ...], other: tuple[int, ...], place: int | None
) -> None:
    assert bench.first_difference(one, other) == place


def test_rows_of_answers(bench: ModuleType) -> None:
    wide = [(1, 2), (3, 4), (5, 6), (7, 8)]
    found = bench.answer_rows(wide, [(1, 2), (9, 4), (5, 6), (7, 9)])
    rows = {row["name"]: row["value"] for row in found}
    assert rows["equal answers"] == 50
    assert rows["equal answers, from"] == pytest.approx(15.0, abs=0.1)  # Wilson, by hand
    assert rows["first token that differs, median"] == 1.5
    assert rows["answers that differ from their first token on"] == 1
    assert len(bench.answer_rows(wide, wide)) == 4  # no median of nothing


def test_rows_of_likelihoods(bench: ModuleType) -> None:
    found = {"float32": ([1.0, 2.0], [1.5, 2.5]), "bfloat16": ([1.25, 2.25], [1.0, 2.0])}
    rows = {row["name"]: row["value"] for row in bench.likelihood_rows(found)}
    assert rows["float32's answers: NLL by bfloat16 minus by float32"] == 0.25
    assert rows["by float32: NLL of bfloat16's answers minus of its own"] == 0.5
    assert rows["NLL of bfloat16's answers by float32"] == 2.0


def test_a_run_on_the_shipped_model(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = shipped("tiny")
    if tiny is None:
        pytest.skip("the shipped model is not here")
    monkeypatch.setattr(bench.torch, "set_num_threads", lambda n: None)
    prompts, path = tmp_path / "prompts.jsonl", tmp_path / "rows.json"
    asked = ("How do I clean a shelf?", "What is the capital of Teku?", "Hello!")
    prompts.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in asked))
    bench.main([str(tiny), "--prompts", str(prompts), "--column", "prompt", "--limit", "2",
                "--new", "6", "--json", str(path)])  # fmt: skip
    text = path.read_text(encoding="utf-8")
    rows = {row["name"]: row["value"] for row in json.loads(text)["rows"]}
    assert rows["prompts"] == 2
    assert rows["NLL of float32's answers by float32"] >= 0
    assert abs(rows["float32's answers: NLL by bfloat16 minus by float32"]) < 0.2
    assert "shelf" not in text
    assert str(tmp_path) not in text


def test_prompts_that_are_not_there(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.main(["p", "--prompts", str(tmp_path / "nowhere.jsonl")])
    assert stopped.value.code == 2
    assert "nowhere.jsonl" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        bench.main(["p", "--prompts", "x", "--limit", "0"])
    assert stopped.value.code == 2
