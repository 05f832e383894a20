"""Probes in files: written and read back, and what is no probe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from minisafe.checkpoint.probe import load_probe, save_probe
from minisafe.errors import CheckpointError
from minisafe.probe import Probe


def test_a_probe_comes_back(tmp_path: Path) -> None:
    made = Probe(torch.randn(3, 40), torch.randn(1))
    save_probe(made, tmp_path / "probe.safetensors")
    found = load_probe(tmp_path / "probe.safetensors")
    assert torch.equal(found.weight, made.weight)
    assert torch.equal(found.bias, made.bias)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"weight": torch.zeros(2, 5)}, "tensors weight; expected a probe"),
        ({"layer.3": torch.zeros(5)}, r"tensors layer\.3; expected a probe"),
        ({"weight": torch.zeros(2, 5), "bias": torch.zeros(1), "x": torch.zeros(1)}, "expected a"),
        ({"weight": torch.zeros(2, 5), "bias": torch.zeros(2)}, r"bias \(2,\); expected up to 4"),
        ({"weight": torch.zeros(5, 5), "bias": torch.zeros(1)}, r"weight \(5, 5\) and bias"),
        ({"weight": torch.zeros(2, 0), "bias": torch.zeros(1)}, r"weight \(2, 0\) and bias"),
        (
            {"weight": torch.zeros(2, 5, dtype=torch.int32), "bias": torch.zeros(1)},
            "expected a probe",
        ),
        (
            {"weight": torch.full((2, 5), torch.nan), "bias": torch.zeros(1)},
            "weight has 10 NaN or infinite values",
        ),
    ],
)
def test_what_is_no_probe(tmp_path: Path, tensors: dict[str, torch.Tensor], words: str) -> None:
    save_file(tensors, tmp_path / "probe.safetensors")
    with pytest.raises(CheckpointError, match=words):
        load_probe(tmp_path / "probe.safetensors")


def test_no_file_and_a_file_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file; expected a probe"):
        load_probe(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(CheckpointError):
        load_probe(tmp_path / "text.safetensors")
