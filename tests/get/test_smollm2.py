"""The real file, where it is at hand: MINISAFE_SMOLLM2 names SmolLM2-135M-Instruct in GGUF."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import minisafe
from minisafe.get import look, make
from minisafe.get.known import SMOLLM2

FILE = os.environ.get("MINISAFE_SMOLLM2")
pytestmark = [
    pytest.mark.live, pytest.mark.slow,
    pytest.mark.skipif(not FILE, reason="MINISAFE_SMOLLM2 is not set"),
]  # fmt: skip


def test_it_is_made_and_answers(tmp_path: Path) -> None:
    """From the GGUF file, whose SHA-256 is the stated one, to an answer of the base."""
    assert look(SMOLLM2, tmp_path) is None
    make(SMOLLM2, tmp_path, Path(str(FILE)), lambda what, done, total: None)
    there = look(SMOLLM2, tmp_path)
    assert there is not None
    assert there.differing == ()
    weights = there.directory / "base" / "model.safetensors"
    assert weights.stat().st_size == SMOLLM2.weights_bytes
    flags = {"safe": False, "max_new_tokens": 12}
    with minisafe.load(there.directory, flags) as session:
        (result,) = session.generate(["What is the capital of France?"], chat=True)
    assert "Paris" in result.text
