"""Values of every type, block by block, as the gguf library dequantises them whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minisafe.convert.container import Container, Stored
from minisafe.convert.values import check_inside, count_types, kind_of, read_rows, whole
from minisafe.errors import CheckpointError
from tests.support.spoil import refuses

gguf = pytest.importorskip("gguf")
GGML_QUANT_SIZES, Kind = gguf.GGML_QUANT_SIZES, gguf.GGMLQuantizationType


def known() -> list[Any]:
    """Every type that the installed library dequantises."""
    found = []
    for kind in Kind:
        try:
            gguf.quants.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            continue
        found.append(kind)
    return found


def container(path: Path, kind: int, shape: tuple[int, ...], start: int = 0) -> Container:
    tensor = Stored("t", shape, kind, start)
    return Container(path, path.stat().st_size, {}, {"t": tensor})


@pytest.mark.parametrize("kind", known(), ids=lambda kind: kind.name)
def test_every_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    """Any bytes are blocks of any type; blocks of rows must not change what they are."""
    block, n_bytes = GGML_QUANT_SIZES[kind]
    rows, columns = 7, 2 * block
    raw = np.random.default_rng(kind.value).integers(0, 256, (rows, 2 * n_bytes), np.uint8)
    (tmp_path / "x").write_bytes(b"123" + raw.tobytes())
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw, kind)
    found = container(tmp_path / "x", kind.value, (rows, columns), 3)
    type_ = kind_of(found.tensors["t"], found)
    assert (type_.name, type_.block, type_.n_bytes) == (kind.name, block, n_bytes)
    check_inside(found.tensors["t"], type_, found)
    for at_once in (1, 3 * columns, 10**9):
        monkeypatch.setattr("minisafe.convert.values.AT_ONCE", at_once)
        np.testing.assert_array_equal(whole(found, found.tensors["t"]), expected)


def test_what_belongs_together_stays_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(np.arange(24, dtype="<f4").tobytes())
    found = container(tmp_path / "x", 0, (12, 2))
    tensor = found.tensors["t"]
    for at_once, sizes in ((1, [4, 4, 4]), (17, [8, 4]), (99, [12])):
        monkeypatch.setattr("minisafe.convert.values.AT_ONCE", at_once)
        with found.path.open("rb") as file:
            blocks = list(read_rows(file, tensor, kind_of(tensor, found), together=4))
        assert [len(block) for block in blocks] == sizes


def test_values_outside_the_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(34 * 4))
    found = container(tmp_path / "x", 8, (4, 32))
    kind = kind_of(found.tensors["t"], found)
    check_inside(found.tensors["t"], kind, found)
    for changed, word in (
        (container(tmp_path / "x", 8, (4, 32), 1), "ends at byte 137, and the file has 136"),
        (container(tmp_path / "x", 8, (2**60, 32)), "not a complete GGUF file"),
        (container(tmp_path / "x", 8, (4, 33)), "rows of 33 values; expected a multiple of 32"),
    ):
        tensor = changed.tensors["t"]
        refuses(CheckpointError, lambda: check_inside(tensor, kind, changed), word)  # noqa: B023


@pytest.mark.parametrize(("number", "word"), [(28, "F64"), (26, "I32"), (4, "number 4"), (999, "")])
def test_types_that_are_not_dequantised(tmp_path: Path, number: int, word: str) -> None:
    (tmp_path / "x").write_bytes(bytes(64))
    found = container(tmp_path / "x", number, (1, 4))
    refuses(CheckpointError, lambda: kind_of(found.tensors["t"], found), "the tensor 't'", word)


def test_types_are_counted(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    tensors = {name: Stored(name, (1, 32), 8 if name > "b" else 0, 0) for name in "abcde"}
    found = Container(tmp_path / "x", 0, {}, tensors)
    assert list(count_types(found).items()) == [("Q8_0", 3), ("F32", 2)]
