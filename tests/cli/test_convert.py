"""`minisafe convert`: what it refuses before it writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from minisafe.checkpoint.vectors import load_vector, save_vector
from minisafe.cli import cli
from minisafe.errors import VectorError
from minisafe.vectors import SafetyVector


@pytest.mark.parametrize("layer", [-1, 512, 10**12])
def test_a_layer_that_no_file_can_name(tmp_path: Path, layer: int) -> None:
    """Written, it could never be read again."""
    save_vector(SafetyVector({1: torch.ones(2)}), tmp_path / "v.safetensors")
    source, target = str(tmp_path / "v.safetensors"), tmp_path / "w.safetensors"
    found = CliRunner().invoke(cli, ["convert", source, str(target), f"--sa-layer={layer}"])
    assert isinstance(found.exception, VectorError)
    assert "expected 0 to 511" in str(found.exception)
    assert not target.exists()


def test_the_last_layer_that_can_be_named(tmp_path: Path) -> None:
    save_vector(SafetyVector({1: torch.ones(2)}), tmp_path / "v.safetensors")
    source, target = str(tmp_path / "v.safetensors"), tmp_path / "w.safetensors"
    CliRunner().invoke(cli, ["convert", source, str(target), "--sa-layer=511"])
    assert list(load_vector(target).layers) == [511]
