"""Every file that once failed, and a short run of every reader; `make fuzz` is the long one."""

from __future__ import annotations

from pathlib import Path

import harness
import pytest

BAD = """
import os
import time

from target import Target

from minisafe.errors import ConfigError


def read(path):
    number = int(path.read_bytes()[:1] or b"9")
    if number == 1:
        raise ConfigError("refused")
    if number == 2:
        raise ValueError("a defect")
    if number == 3:
        time.sleep(60)
    if number == 4:
        os.kill(os.getpid(), 9)
    if number == 5:
        held = b"x" * (300 << 20)
    if number == 6:
        raise BaseException("as a library in Rust panics")


TARGETS = (Target("bad", tuple(str(n).encode() for n in range(7)), ".x", read),)
"""


def test_every_reader_returns_or_refuses() -> None:
    """All seeds, all that once failed, and up to 200 inputs or half a second for each: no
    traceback, no hang, no memory beyond 4 x the file and 256 MB."""
    targets = harness.all_targets()
    names = list(targets)
    rows = harness.run(names, 200, most_s=0.5)
    assert [row.reader for row in rows] == names
    assert [(row.reader, finding) for row in rows for finding in row.findings] == []
    assert all(row.inputs >= harness.known_inputs(targets[row.reader]) for row in rows), (
        harness.table(rows)
    )
    assert all(row.refused + row.accepted == row.inputs for row in rows), harness.table(rows)
    assert all(row.slowest_s < harness.SECONDS for row in rows), harness.table(rows)


def test_the_corpus_belongs_to_readers() -> None:
    readers = {path.name for path in (harness.HERE / "corpus").iterdir()}
    assert readers <= set(harness.all_targets())


def test_inputs_are_made_again_from_their_numbers() -> None:
    target = harness.all_targets()["config.json"]
    first = [harness.input_of(target, 0, n) for n in range(60)]
    assert first == [harness.input_of(target, 0, n) for n in range(60)]
    assert first != [harness.input_of(target, 1, n) for n in range(60)]
    assert len(set(first)) > 50


def test_the_harness_sees_what_a_reader_must_not_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "SECONDS", 3.0)
    (tmp_path / "targets_bad.py").write_text(BAD)
    (row,) = harness.run(["bad"], 7, where=tmp_path)
    kinds = [(finding["index"], finding["kind"]) for finding in row.findings]
    assert sorted(kinds) == [
        (2, "traceback"), (3, "hang"), (4, "crash"), (6, "memory"), (6, "traceback")
    ]  # fmt: skip
    assert (row.inputs, row.refused, row.accepted, row.tracebacks) == (7, 1, 2, 4)
    assert "| bad | 7 | 1 | 2 | 4 |" in harness.table([row])
