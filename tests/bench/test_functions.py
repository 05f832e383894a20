"""How long the way of a message is, from the chat to its answer's first token."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# functions and files of today; lower them where the way becomes shorter
LIMITS = {False: (112, 25), True: (150, 32)}  # by whether parts are read alone first


@pytest.mark.parametrize("read_alone", LIMITS)
def test_a_plain_safe_turn_takes_the_short_way(read_alone: bool) -> None:
    spec = importlib.util.spec_from_file_location("functions", ROOT / "bench" / "functions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.first_token(read_alone)
    files = {file for file, _ in found}
    assert not any(file.startswith("fast") for file in files)
    assert "session/faster.py" not in files  # which fast path is taken is decided when loading
    assert {"engine.py", "policy.py", "session/session.py"} < files
    assert (len(found), len(files)) <= LIMITS[read_alone]
