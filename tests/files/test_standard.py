"""Standard streams that are closed, full or left, and Ctrl-C before anything is imported."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minisafe.files import standard

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ["generate", "--chat", "--safe", "--max-new-tokens", "4"]


def shell(line: str, *args: str, timeout: float = 120) -> subprocess.CompletedProcess[bytes]:
    """Run `python cli.py ARGS` with the redirections in `line`."""
    command = f'exec "$0" "$@" {line}'
    program = [sys.executable, str(ROOT / "cli.py"), *args]
    return subprocess.run(
        ["bash", "-c", command, *program], cwd=ROOT, capture_output=True, timeout=timeout
    )


def test_a_closed_stdin_is_an_empty_one() -> None:
    done = shell("<&-", "chat", "--safe")
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("line", ["2>/dev/full", "2> >(exit 0)"])
def test_messages_that_nobody_reads_take_no_answer_away(line: str) -> None:
    if "full" in line and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    done = shell(line, *SHIPPED, "Hello!")
    assert done.returncode == 0
    assert done.stdout.strip()


def test_closed_streams_become_the_null_device() -> None:
    script = (
        "from minisafe.files import standard; standard.open_closed();"
        "import sys; sys.stdout.write('x');"
        "sys.stderr.write('x'); ok = sys.stdin.read() == '' and open('/dev/null').fileno() > 2;"
        "sys.exit(0 if ok else 1)"
    )
    line = '"$0" -c "$1" <&- >&- 2>&-'
    done = subprocess.run(["bash", "-c", line, sys.executable, script], cwd=ROOT, timeout=60)
    assert done.returncode == 0


class Full(io.StringIO):
    """A stream on a full disk, with a file number of its own."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def fileno(self) -> int:
        return self.number

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        raise BrokenPipeError


def test_forgiving_loses_what_cannot_be_written(tmp_path: Path) -> None:
    handle = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    stream = standard.Forgiving(Full(handle))
    assert stream.write("lost") == 4
    stream.flush()
    os.write(handle, b"into the null device")
    os.close(handle)
    assert (tmp_path / "file").read_bytes() == b""


def test_ctrl_c_while_importing_is_one_line(tmp_path: Path) -> None:
    """A stand-in for torch that is as slow as one likes."""
    slow = "import time; print('importing', flush=True); time.sleep(60)"
    (tmp_path / "torch.py").write_text(slow, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "minisafe", "--version"], env=environment, cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # where the tests run in the background, the signal is ignored, and so in their children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == b"importing\n"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, b"minisafe: stopped\n")


def test_importing_minisafe_is_light() -> None:
    script = "import minisafe, sys; sys.exit(1 if {'torch', 'click'} & set(sys.modules) else 0)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60).returncode == 0


def test_every_public_name_is_there() -> None:
    import minisafe

    for name in minisafe.__all__:
        assert getattr(minisafe, name) is not None
        assert name in dir(minisafe)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        minisafe.nonsense  # noqa: B018


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_loading_line_is_a_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, expected in ((Terminal(), "loading ...\r           \r"), (io.StringIO(), "")):
        monkeypatch.setattr(sys, "stderr", stream)
        standard.show_loading()
        standard.erase_loading()
        assert stream.getvalue() == expected
