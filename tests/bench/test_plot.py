"""The plot groups and joins what benches wrote, is drawn the same twice, and refuses the rest."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.tiny import load_bench


@pytest.fixture(scope="module")
def plot() -> ModuleType:
    return load_bench("plot")


def rows_of(**speeds: float) -> list[dict[str, Any]]:
    """Rows of shape `s`; underscores stand for ", "."""
    return [
        {"name": f"s: {name.replace('_', ', ')}", "value": value, "unit": "tokens/s"}
        for name, value in speeds.items()
    ]


def test_bars_are_grouped_and_measured_by_packed(plot: ModuleType) -> None:
    rows = rows_of(transformers_plain=5.0, plain=8.0, safe_packed=4.0, plain_packed=10.0)
    rows.append({"name": "s: plain, first token", "value": 3.0, "unit": "ms"})
    (panel,) = plot.panels_of(rows)
    assert (panel.label, panel.unit) == ("s", "plain, packed")
    found = [(bar.name, bar.ms, bar.over) for bar in panel.bars]
    assert found == [
        ("plain", 125.0, 1.25),
        ("plain, packed", 100.0, 1.0),
        ("safe, packed", 250.0, 2.5),
        ("transformers, plain", 200.0, 2.0),
    ]


def test_several_files_are_drawn_as_one(
    plot: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text(json.dumps({"rows": rows_of(plain=8.0, plain_packed=10.0)}), "utf-8")
    other = [row | {"name": f"t: {row['name'][3:]}"} for row in rows_of(plain=2.0)]
    again = rows_of(plain_packed=5.0, plain_compiled=20.0)
    two.write_text(json.dumps({"rows": again + other}), "utf-8")
    drawn: list[Any] = []
    monkeypatch.setattr(plot, "draw", lambda panels, out: drawn.extend(panels))
    assert plot.main([str(one), str(two), "--out", "x.svg"]) == 0
    assert [panel.label for panel in drawn] == ["s", "t"]
    found = {bar.name: bar.over for bar in drawn[0].bars}
    assert found == {"plain": 0.625, "plain, packed": 1.0, "plain, compiled": 0.25}


def test_a_plot_is_drawn_the_same_twice(plot: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    source = tmp_path / "rows.json"
    source.write_text(json.dumps({"rows": rows_of(plain=8.0, safe_int8=4.0)}), "utf-8")
    for name in ("one.svg", "two.svg"):
        assert plot.main([str(source), "--out", str(tmp_path / name)]) == 0
    drawn = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert drawn == (tmp_path / "two.svg").read_text(encoding="utf-8")
    assert "safe, int8" in drawn
    assert "2.00 x" in drawn
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.svg", "rows.json", "two.svg"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "no rows"),
        (json.dumps({"rows": [{"name": 1}]}), "no rows"),
        (json.dumps({"rows": []}), "no tokens/s"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_result_is_refused(
    plot: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    text: str | None, words: str,
) -> None:  # fmt: skip
    source = tmp_path / "rows.json"
    if text is not None:
        source.write_text(text, "utf-8")
    assert plot.main([str(source), "--out", str(tmp_path / "x.svg")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(source) in said
    assert words in said


def test_without_matplotlib_the_plot_names_the_extra(
    plot: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    source = tmp_path / "rows.json"
    source.write_text(json.dumps({"rows": rows_of(plain=8.0)}), "utf-8")
    assert plot.main([str(source), "--out", str(tmp_path / "x.svg")]) == 2
    assert "pip install 'minisafe[report]'" in capsys.readouterr().err
    assert plot.main([str(source), "--out", "x.pdf"]) == 2
    assert ".svg or .png" in capsys.readouterr().err
