"""The container: read as the library writes it, refused by name where damaged or too large."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minisafe.checkpoint import limits
from minisafe.convert.container import is_gguf, read_container
from minisafe.errors import CheckpointError
from tests.support.spoil import refuses

gguf = pytest.importorskip("gguf")


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str = "t", shape: tuple[int, ...] = (2,), kind: int = 0, offset: int = 0) -> bytes:
    dims = b"".join(struct.pack("<Q", size) for size in shape)
    return text(name) + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", kind, offset)


def file(*parts: bytes, keys: int = 0, tensors: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts)


def test_all_that_the_library_writes(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "a": 7, "b": -7, "c": 1.5, "d": True, "e": "text ü", "f": 2**40, "g": -(2**40), "h": 0.1,
    }  # fmt: skip
    lists: dict[str, list[Any]] = {
        "texts": ["", "x", "日本"], "numbers": [1, -2, 3], "floats": [0.5, 2.0],
        "truths": [True, False], "one": [9],
    }  # fmt: skip
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    adders: dict[str, Callable[[str, Any], None]] = {
        "a": writer.add_uint8, "b": writer.add_int16, "c": writer.add_float32, "d": writer.add_bool,
        "e": writer.add_string, "f": writer.add_uint64, "g": writer.add_int64,
        "h": writer.add_float64,
    }  # fmt: skip
    for name, value in values.items():
        adders[name](name, value)
    for name, items in lists.items():
        writer.add_array(name, items)
    writer.add_custom_alignment(64)
    writer.add_tensor("m", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("v", np.ones(4, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_container(tmp_path / "m.gguf")
    assert found.architecture == "llama"
    assert {name: found.metadata[name] for name in values} == values
    assert {name: found.metadata[name] for name in lists} == lists
    theirs = gguf.GGUFReader(tmp_path / "m.gguf").tensors
    for each in theirs:
        ours = found.tensors[each.name]
        assert ours.shape == tuple(reversed(each.shape.tolist()))
        assert (ours.kind, ours.start) == (each.tensor_type.value, each.data_offset)
    assert is_gguf(tmp_path / "m.gguf")


LIMITED = limits.GGUF_ITEMS + 1
ARRAY = struct.pack("<I", 9)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "not a GGUF file"),
        (b"GGU", "not a GGUF file"),
        (b"PK\x03\x04" + bytes(40), "not a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (b"GGUF", "not a complete GGUF file"),
        (file(version=1), "GGUF of version 1; expected version 2 or 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (file(keys=limits.GGUF_KEYS + 1), "states 0 tensors and 4,097 keys"),
        (file(tensors=2**63), "tensors and 0 keys; expected at most 65,536"),
        (file(keys=1), "not a complete GGUF file"),
        (file(key("", 4, bytes(4)), keys=1), "a name of 0 characters"),
        (file(key("k" * 1025, 4, bytes(4)), keys=1), "a name of 1,025 characters"),
        (file(text(b"\xff\xfe") + bytes(8), keys=1), "not valid UTF-8"),
        (file(key("k", 8, text(b"\xff")), keys=1), "not valid UTF-8"),
        (file(key("k", 8, struct.pack("<Q", 2**63)), keys=1), "not a complete GGUF file"),
        (file(key("k", 13, bytes(8)), keys=1), "metadata of type 13"),
        (file(key("k", 9, struct.pack("<IQ", 9, 1) + bytes(20)), keys=1), "items of type 9;"),
        (file(key("k", 9, struct.pack("<IQ", 99, 1)), keys=1), "a list of items of type 99"),
        (file(key("k", 9, struct.pack("<IQ", 8, LIMITED)), keys=1), "a list of 4,194,305 items"),
        (file(key("k", 9, struct.pack("<IQ", 4, 5)), keys=1), "not a complete GGUF file"),
        (file(key("k", 4, bytes(4)) * 2, keys=2), "the key 'k' is given twice"),
        (file(key("general.alignment", 4, struct.pack("<I", 3)), keys=1), "a power of two"),
        (file(key("general.alignment", 4, bytes(4)), keys=1), "a power of two"),
        (file(key("general.alignment", 8, text("32")), keys=1), "a power of two"),
        (file(tensor(), tensors=2), "not a complete GGUF file"),
        (file(tensor(), tensor(), tensors=2), "the tensor 't' is given twice"),
        (file(tensor(shape=(1,) * 5), tensors=1), "has 5 dimensions; expected 1 to 4"),
        (file(tensor(shape=()), tensors=1), "has 0 dimensions"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    refuses(CheckpointError, lambda: read_container(path), str(path), word)


def test_a_header_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GGUF_HEADER_BYTES", 100)
    path = tmp_path / "m.gguf"
    path.write_bytes(file(key("k", 8, text("x" * 200)), keys=1))
    refuses(CheckpointError, lambda: read_container(path), "header has more than 100 bytes")


def test_no_file(tmp_path: Path) -> None:
    refuses(CheckpointError, lambda: read_container(tmp_path / "x"), "no such file")
    refuses(CheckpointError, lambda: read_container(tmp_path), "no such file")
    assert not is_gguf(tmp_path)
