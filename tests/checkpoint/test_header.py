"""Headers of safetensors files: read within limits, and refused in one line."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from minisafe.checkpoint import limits, read_file
from minisafe.checkpoint.header import read_header
from minisafe.errors import CheckpointError, VectorError
from tests.support.spoil import refuses


def spelt(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    text = header if isinstance(header, str) else json.dumps(header)
    return struct.pack("<Q", len(text.encode())) + text.encode() + data


def test_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2, 3), "b": torch.ones(4).bfloat16(), "c": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "x", {"made": "here"})
    header = read_header(tmp_path / "x")
    assert header.metadata == {"made": "here"}
    found = {name: (each.dtype, each.shape, each.size) for name, each in header.tensors.items()}
    assert found == {"a": ("F32", (2, 3), 6), "b": ("BF16", (4,), 4), "c": ("F32", (), 1)}


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", ("git lfs pull",)),
        (b"", ("not a complete safetensors file", "download")),
        (struct.pack("<Q", 2**63) + b"{}", ("not a complete safetensors file",)),
        (spelt("[1]"), ("not a JSON object",)),
        (spelt('{"a": 1}'), ("no dtype and shape of a",)),
        (spelt({"a": ENTRY | {"shape": [-1]}}), ("no dtype and shape",)),
        (spelt({"a": ENTRY | {"shape": [10**30]}}), ("no dtype and shape",)),
        (spelt({"a": ENTRY | {"shape": [True]}}), ("no dtype and shape",)),
        (spelt({"a": ENTRY | {"shape": [1] * 9}}), ("no dtype and shape",)),
        (spelt({"a": ENTRY | {"dtype": 5}}), ("no dtype and shape",)),
        (spelt({"__metadata__": {"a": 1}}), ("metadata",)),
        (spelt('{"a": {}, "a": {}}'), ("'a' is given twice",)),
        (spelt("[" * 10_000), ("nested too deep",)),
        (struct.pack("<Q", 3) + b'"\xff"', ("not UTF-8",)),
    ],
)
def test_headers_that_are_refused(tmp_path: Path, content: bytes, words: tuple[str, ...]) -> None:
    (tmp_path / "x").write_bytes(content)
    for error in (CheckpointError, VectorError):
        refuses(error, lambda error=error: read_header(tmp_path / "x", error), "/x: ", *words)


def test_a_header_larger_than_any(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.write(struct.pack("<Q", limits.HEADER_BYTES + 1))
        file.truncate(2 * limits.HEADER_BYTES)
    refuses(CheckpointError, lambda: read_header(tmp_path / "x"), "states 16,777,217 bytes")


def test_more_tensors_than_any_model_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TENSORS", 3)
    save_file({str(n): torch.ones(1) for n in range(4)}, tmp_path / "x")
    refuses(CheckpointError, lambda: list(read_file(tmp_path / "x")), "4 tensors", "at most 3")


def test_very_many_tensors_are_read_in_time(tmp_path: Path) -> None:
    """One mapping per tensor reads the header again each time: over a minute for these."""
    save_file({f"layer.{n}": torch.ones(1) for n in range(20_000)}, tmp_path / "x")
    start = time.perf_counter()
    assert sum(1 for _ in read_file(tmp_path / "x")) == 20_000
    assert time.perf_counter() - start < 5
