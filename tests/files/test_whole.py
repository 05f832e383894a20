"""Files are written whole or not at all, and nobody can turn the writing elsewhere."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from minisafe.errors import OutputError
from minisafe.files import whole_directory, whole_file, write_text


def test_a_file_is_written(tmp_path: Path) -> None:
    write_text(tmp_path / "sub" / "a.txt", "grüezi")
    assert (tmp_path / "sub" / "a.txt").read_text(encoding="utf-8") == "grüezi"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_mode_is_an_ordinary_files(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "a", "x")
        with whole_file(tmp_path / "b") as temporary:  # as a library does that makes its own file
            temporary.unlink()
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    for name in "ab":
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), OSError(5, "broken")])
def test_what_fails_leaves_everything_as_it_was(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a").write_text("before")
    kind = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(kind), whole_file(tmp_path / "a") as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "before"


def test_a_link_at_the_target_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("before")
    (tmp_path / "a").symlink_to(tmp_path / "precious")
    write_text(tmp_path / "a", "new")
    assert (tmp_path / "precious").read_text() == "before"
    assert not (tmp_path / "a").is_symlink()


def test_the_temporary_name_cannot_be_foreseen(tmp_path: Path) -> None:
    names = set()
    for _ in range(3):
        with whole_file(tmp_path / "a") as temporary:
            names.add(temporary.name)
            assert temporary.parent == tmp_path
    assert len(names) == 3


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_line(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(OutputError, match="the disk is full") as caught, whole_file(tmp_path / "a"):
        raise error
    assert "\n" not in str(caught.value)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        write_text(tmp_path / "file" / "a", "x")


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_file_that_outgrows_its_limit_leaves_nothing(tmp_path: Path) -> None:
    """The system itself refuses: a limit on a file's size stands for a disk's."""
    code = """
import resource, signal, sys, torch
from minisafe.checkpoint import save_tensors
from minisafe.errors import OutputError
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save_tensors({"a": torch.zeros(10000)}, Path(sys.argv[1]))
except OutputError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.safetensors")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "the disk is full" in run.stdout, run.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), OSError(5, "broken")])
def test_a_directory_is_there_whole_or_not_at_all(tmp_path: Path, error: BaseException) -> None:
    kind = OutputError if isinstance(error, OSError) else type(error)

    def stop_halfway() -> None:
        with whole_directory(tmp_path / "sub" / "out") as part:
            (part / "a").write_text("half")
            raise error

    with pytest.raises(kind):
        stop_halfway()
    assert list((tmp_path / "sub").iterdir()) == []
    with whole_directory(tmp_path / "sub" / "out") as part:
        (part / "a").write_text("all")
        assert not (tmp_path / "sub" / "out").exists()
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["out"]
    assert (tmp_path / "sub" / "out" / "a").read_text() == "all"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "sub" / "out").stat().st_mode) == 0o777 & ~mask


def test_a_directory_never_replaces_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("before")
    with pytest.raises(OutputError), whole_directory(tmp_path / "out") as part:
        (part / "a").write_text("after")
    assert (tmp_path / "out" / "a").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
