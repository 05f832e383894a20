"""The report's worst case per family of attacks."""

from __future__ import annotations

from typing import Any

from minisafe.evaluation.report.sections.attacks import attacks
from minisafe.evaluation.report.sections.families import families
from minisafe.evaluation.report.tables import NOTHING


def row(method: str, attack: str, asr: float) -> dict[str, Any]:
    return {"judge": "world", "method": method, "attack": attack, "n": 10, "asr": asr,
            "low": 0.0, "high": 100.0, "queries": 1}  # fmt: skip


ROWS = [
    row("base", "prefill-1", 30.0), row("base", "prefill-5", 90.0), row("base", "gcg", 100.0),
    row("safe", "prefill-1", 20.0), row("safe", "prefill-5", 10.0), row("base", "mine", 99.0),
    row("base", "worst", 100.0), row("base", "mean", 60.0),
]  # fmt: skip


def test_each_family_has_its_worst_attack() -> None:
    table = families(ROWS, "world")
    assert table.head == ("family", "base", "safe")
    assert [line[0] for line in table.rows] == ["prefill", "words"]
    assert table.rows[0][1:] == (
        "90.0 (0.0 to 100.0): prefill-5", "20.0 (0.0 to 100.0): prefill-1",
    )  # fmt: skip
    assert table.rows[1][1:] == ("100.0 (0.0 to 100.0): gcg", NOTHING)
    assert table.caption.endswith("white box: gcg")
    assert "white box" not in families(ROWS[:2], "world").caption


def test_the_section_has_the_table() -> None:
    section = attacks({"attacks": ROWS})
    assert section is not None
    assert families(ROWS, "world") in section.tables
