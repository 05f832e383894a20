"""Foreign arrays: `.npy` and GGUF, read as their own libraries write them, and refused by name."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisafe.checkpoint import limits
from minisafe.checkpoint.arrays import read_gguf, read_npy
from minisafe.checkpoint.vectors import load_vector
from minisafe.errors import VectorError
from tests.support.spoil import refuses


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "v.npy"


# ---- .npy --------------------------------------------------------------------------------------


@given(st.sampled_from(("<f2", "<f4", "<f8", ">f4")), st.booleans(), st.integers(1, 9))
def test_arrays_that_numpy_writes(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, fortran: bool, hidden: int
) -> None:
    path = tmp_path_factory.mktemp("npy") / "v.npy"
    values = (np.arange(hidden)[None] / 8).astype(dtype)
    np.save(path, np.asfortranarray(values) if fortran else values)
    found = read_npy(path)
    assert found.dtype == np.float32
    assert np.array_equal(found, values.astype(np.float32))


def npy(header: str, values: bytes = bytes(16)) -> bytes:
    """A file of version 1 with this header."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + values


def zipped() -> bytes:
    file = io.BytesIO()
    np.savez(file, vector=np.ones((1, 4), np.float32))
    return file.getvalue()


FOUR = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4), }"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (zipped(), ".npz archive holds several"),
        (b"PK\x03\x04" + bytes(30), ".npz archive"),
        (npy(FOUR.replace("4)", "4000000000000)")), "4000000000000 values"),
        (npy(FOUR.replace("4)", str(10**30) + ")")), "is the file complete"),
        (npy(FOUR.replace("4)", "-4)")), "is the file complete"),
        (npy(FOUR.replace("4)", "0)"), b""), "is the file complete"),
        (npy(FOUR[:-3]), "header is malformed"),
        (npy("{'descr': '<f4"), "header is malformed"),
        (npy("(" * 3000), "header is malformed"),
        (npy(FOUR.replace("<f4", "O")), "object array"),
        (npy(FOUR.replace("<f4", "<f16"), bytes(64)), "float128 array"),
        (npy(FOUR, bytes(15)), "is the file complete"),
        (npy(FOUR, bytes(17)), "is the file complete"),
        (npy(FOUR + " " * 20_000), "header is malformed"),
        (b"\x93NUMPY\x09\x00" + bytes(40), "header is malformed"),
        (b"\x93NUMPY", "header is malformed"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_what_is_no_array_of_one_layer(path: Path, content: bytes, word: str) -> None:
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refuses(VectorError, lambda: load_vector(path), "v.npy: ", word)


def test_values_beyond_float32_are_refused_in_silence(path: Path) -> None:
    np.save(path, np.full((1, 4), 1e300))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refuses(VectorError, lambda: load_vector(path), "NaN or infinite")


def test_a_file_larger_than_any_vector_is_not_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "VECTOR_BYTES", 100)
    path.write_bytes(bytes(101))
    refuses(VectorError, lambda: load_vector(path), "more than 100 bytes")


# ---- GGUF --------------------------------------------------------------------------------------

Info = tuple[str, tuple[int, ...], int, bytes]  # name, shape, type's number, data


def text(words: str) -> bytes:
    return struct.pack("<Q", len(words.encode())) + words.encode()


def gguf(*tensors: Info, keys: bytes = b"", n_keys: int = 0, version: int = 3) -> bytes:
    """A GGUF file of these tensors, each of which starts at a multiple of 32 bytes."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), n_keys) + keys
    data = b""
    for name, shape, kind, content in tensors:
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head += struct.pack("<IQ", kind, len(data))
        data += content + bytes(-len(content) % 32)
    return head + bytes(-len(head) % 32) + data


def one(kind: int, size: int, content: bytes) -> Info:
    return "direction.4", (size,), kind, content


VALUES = (np.arange(64, dtype=np.float32) - 20) / 8
AS_BF16 = (VALUES.view(np.uint32) >> 16).astype(np.uint16).tobytes()


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (0, VALUES.tobytes()),
        (1, VALUES.astype(np.float16).tobytes()),
        (28, VALUES.astype(np.float64).tobytes()),
        (30, AS_BF16),
    ],
    ids=["F32", "F16", "F64", "BF16"],
)
def test_floats_of_every_width(tmp_path: Path, kind: int, content: bytes) -> None:
    (tmp_path / "v.gguf").write_bytes(gguf(one(kind, 64, content)))
    found = load_vector(tmp_path / "v.gguf").layers[4]
    assert found.tolist() == VALUES.tolist()


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0"])
def test_types_are_read_as_the_library_reads_them(tmp_path: Path, name: str) -> None:
    """BF16 and Q8_0 were once taken for raw float32."""
    library = pytest.importorskip("gguf")
    kind = library.GGMLQuantizationType[name]
    values = np.random.default_rng(3).normal(size=(96,)).astype(np.float32)
    raw = library.quantize(values, kind)
    writer = library.GGUFWriter(str(tmp_path / "v.gguf"), "controlvector")
    writer.add_tensor("direction.2", raw, raw_dtype=kind)
    writer.add_array("some.words", ["a", "bc"])
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_custom_alignment(64)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = load_vector(tmp_path / "v.gguf").layers[2]
    assert np.array_equal(found.numpy(), library.dequantize(raw, kind))
    assert np.abs(found.numpy() - values).max() < 0.05


def test_a_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "v.gguf"
    path.write_bytes(gguf(one(2, 32, bytes(18))))  # Q4_0
    words = ("direction.4", "type number 2", "F32, F16, Q8_0, F64, BF16")
    refuses(VectorError, lambda: load_vector(path), *words)


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


MANY = struct.pack("<IQ", 4, 2**61)  # an array of as many uint32
NESTED = struct.pack("<IQ", 9, 1) * 50
F32 = one(0, 64, VALUES.tobytes())


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "not a GGUF file"),
        (b"GGUF", "not a GGUF file"),
        (gguf(F32)[:100], "not a complete GGUF file"),
        (gguf(F32)[:50], "not a GGUF file"),
        (gguf(F32, version=1), "version 1"),
        (gguf(F32, n_keys=2**60), "not a GGUF file"),
        (gguf(F32, keys=key("x", 9, MANY), n_keys=1), "not a GGUF file"),
        (gguf(F32, keys=key("x", 9, NESTED), n_keys=1), "not a GGUF file"),
        (gguf(F32, keys=key("x", 77, b""), n_keys=1), "not a GGUF file"),
        (gguf(F32, F32), "direction.4 twice"),
        (gguf(("direction.4", (8, 8), 0, VALUES.tobytes())), "2 dimensions"),
        (gguf(("token_embd.weight", (64,), 0, VALUES.tobytes())), "token_embd.weight"),
        (gguf(one(0, 2**62, b"")), "4,611,686,018,427,387,904 values"),
        (gguf(one(8, 33, bytes(68))), "33 values"),
        (gguf(one(0, 0, b"")), "0 values"),
        (gguf(), "0 layers"),
        (gguf(one(0, 64, np.full(64, np.nan, np.float32).tobytes())), "NaN"),
    ],
)
def test_what_is_no_control_vector(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "v.gguf"
    path.write_bytes(content)
    refuses(VectorError, lambda: load_vector(path), "v.gguf: ", word)


def test_reading_needs_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    (tmp_path / "v.gguf").write_bytes(gguf(F32))
    assert read_gguf(tmp_path / "v.gguf").keys() == {"direction.4"}


def test_a_bad_archive_is_no_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"nonsense")
    path.write_bytes(path.read_bytes()[:-5])
    refuses(VectorError, lambda: load_vector(path), "not a NumPy array")
