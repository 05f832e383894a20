"""Where nobody asks for a dtype, a small model decodes in float32 on a CPU."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import minisafe
from minisafe.checkpoint import fingerprint
from minisafe.session import dtype as module
from minisafe.session.dtype import SMALL_MODEL, count_parameters, decoding_dtype, widen_small
from tests.support.tiny import random_model, tiny_config

SHIPPED = Path(__file__).parents[2] / "weights" / "tiny"


def test_the_rule() -> None:
    for stored in (torch.bfloat16, torch.float16):
        assert decoding_dtype(stored, SMALL_MODEL) == torch.float32
        assert decoding_dtype(stored, SMALL_MODEL + 1) == stored
        assert decoding_dtype(stored, 1, "cuda") == stored
    assert decoding_dtype(torch.float32, 1) == torch.float32
    assert 134_515_008 <= SMALL_MODEL < 362_000_000  # SmolLM2-135M, and not SmolLM2-360M


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_widening_keeps_values_and_fingerprint(stored: torch.dtype, tied: bool) -> None:
    model = random_model(tiny_config(tied=tied), dtype=stored)
    wide = widen_small(copy.deepcopy(model), None, "auto")
    assert {each.dtype for each in wide.parameters()} == {torch.float32}
    assert wide.dtype == torch.float32
    for one, other in zip(model.parameters(), wide.parameters(), strict=True):
        assert torch.equal(one.float(), other)
    assert fingerprint(wide) == fingerprint(model)


def test_what_is_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(tiny_config(), dtype=torch.bfloat16)
    assert widen_small(model, "bfloat16", "auto").dtype == torch.bfloat16
    assert widen_small(model, None, "int8").dtype == torch.bfloat16
    monkeypatch.setattr(module, "SMALL_MODEL", 1000)
    assert widen_small(model, None, "auto").dtype == torch.bfloat16


def test_parameters_are_counted_without_making_them() -> None:
    for tied in (False, True):
        config = tiny_config(tied=tied)
        assert count_parameters(config) == sum(p.numel() for p in random_model(config).parameters())
    assert count_parameters(replace(config, vocab_size=10**9)) > 10**9


@pytest.mark.parametrize("options", [{}, {"safe": False}])
def test_a_session_decodes_in_float32(options: dict[str, object]) -> None:
    """Its calibration holds: the fingerprint that it was made for is the same."""
    if not SHIPPED.is_dir():
        pytest.skip("no shipped weights here")
    with minisafe.load(SHIPPED, options) as session:
        assert {stream.model.dtype for stream in session.streams} == {torch.float32}
        assert (session.alone is not None) == (not options)
    assert minisafe.load(SHIPPED, options | {"dtype": "bfloat16"}).model.dtype == torch.bfloat16
