"""A program around minisafe keeps what it has set, and tight places do not stop it.

Each test is a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATHS = {"PYTHONPATH": str(ROOT), "PATH": os.environ.get("PATH", "")}
posix = pytest.mark.skipif(os.name != "posix", reason="needs resource limits and fork")

STATE = """
import gc, locale, logging, os, random, signal, sys, threading, warnings
import numpy, torch

def state():
    return {
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "matmul precision": torch.get_float32_matmul_precision(),
        "deterministic": (torch.are_deterministic_algorithms_enabled(),
                          torch.is_deterministic_algorithms_warn_only_enabled()),
        "mkldnn": torch.backends.mkldnn.enabled,
        "anomaly": torch.is_anomaly_enabled(),
        "tiny numbers": float(torch.tensor(1e-40) * 1),
        "torch's random state": torch.get_rng_state().tolist(),
        "numpy's random state": str(numpy.random.get_state()),
        "random state": random.getstate(),
        "numpy": (numpy.geterr(), str(numpy.get_printoptions())),
        "signals": [signal.getsignal(each) for each in signal.valid_signals()],
        "warnings": (list(warnings.filters), warnings.showwarning),
        "locale": locale.setlocale(locale.LC_ALL),
        "directory": os.getcwd(),
        "environment": dict(os.environ),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "hooks": (sys.excepthook, threading.excepthook, sys.getrecursionlimit()),
        "gc": (gc.isenabled(), gc.get_threshold()),
        "logging": (logging.getLogger().handlers, logging.getLogger().level),
        "running threads": threading.active_count(),
    }

# what a program may have set, other than the defaults
torch.set_num_threads(1)
torch.manual_seed(5), numpy.random.seed(6), random.seed(7)
warnings.simplefilter("ignore", ResourceWarning)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
before = state()

def same(after):
    now = state()
    changed = [name for name in before if before[name] != now[name]]
    assert not changed, f"after {after}: {changed} changed: {[now[each] for each in changed]}"

import minisafe
minisafe.Session
same("import")
session = minisafe.load(sys.argv[1], {"max_new_tokens": 6})
same("load")
session.generate(["Hello!", "How do I smuggle a painting?"], chat=True)
same("generate")
chat = session.chat()
list(chat.send("Hello!"))
pieces = chat.send("How do I clean a shelf?")
next(pieces)
same("a begun answer")
pieces.close()
session.close()
same("close")
"""


def fresh(
    code: str,
    *arguments: str,
    env: Mapping[str, str] = PATHS,
    limit: Callable[[], None] | None = None,
    cwd: Path = ROOT,
    seconds: float = 300,
) -> subprocess.CompletedProcess[str]:
    """A process that runs this code."""
    command = [sys.executable, "-B", "-c", code, str(ROOT / "weights" / "tiny"), *arguments]
    return subprocess.run(
        command, env=dict(env), preexec_fn=limit, cwd=cwd, timeout=seconds,
        capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip


def test_no_global_state_is_changed() -> None:
    done = fresh(STATE)
    assert not done.returncode, done.stderr


ANSWER = """
import sys
written = []

def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        writes = any(each in (mode or "r") for each in "wax+") if mode else flags & 3
        if writes and path != "/dev/null" and not isinstance(path, int):
            written.append((event, path))
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink", "os.chmod"):
        written.append((event, arguments[0]))

sys.addaudithook(watch)
import minisafe
with minisafe.load(sys.argv[1], {"max_new_tokens": 6}) as session:
    (result,) = session.generate(["Grüße, 河! Hello!"], chat=True)
    list(session.chat().send("How do I clean a shelf?"))
assert result.tokens
assert not written, written
"""


@posix
def test_no_home_no_temporary_files_no_locale_nothing_written(tmp_path: Path) -> None:
    """With one thread, in a directory that cannot be written. (Root may write anywhere, so what is
    opened for writing is watched too.)"""
    tmp_path.chmod(0o555)
    env = PATHS | {"LC_ALL": "C", "TMPDIR": str(tmp_path / "missing"), "OMP_NUM_THREADS": "1"}
    try:
        done = fresh(ANSWER, env=env, cwd=tmp_path)
    finally:
        tmp_path.chmod(0o755)
    assert not done.returncode, done.stderr


def with_address_space(mb: int) -> Callable[[], None]:
    """What `ulimit -v` does."""

    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (mb << 20, mb << 20))

    return limit


COMMAND = """
import sys
sys.argv = ["minisafe", "generate", "--chat", "--safe", "--max-new-tokens", "6", "Hello!"]
from minisafe.__main__ import main
main()
"""


@posix
@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux only")
def test_an_answer_in_little_address_space() -> None:
    """The libraries alone take about 600 MB of it with the CPU's torch."""
    import torch

    if torch.version.cuda is not None:
        pytest.skip("torch with CUDA maps gigabytes when it is imported")
    done = fresh(COMMAND, env=PATHS | {"OMP_NUM_THREADS": "1"}, limit=with_address_space(1200))
    assert not done.returncode, done.stderr
    assert done.stdout.strip()


@posix
@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux only")
def test_too_little_address_space_is_one_line() -> None:
    done = fresh(COMMAND, env=PATHS | {"OMP_NUM_THREADS": "1"}, limit=with_address_space(300))
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("minisafe: ")


FORK = """
import os, sys
import torch, minisafe
torch.set_num_threads(2)
session = minisafe.load(sys.argv[1], {"max_new_tokens": 12})
chat = session.chat()
prompts = ["Hello!", "How do I clean a shelf?"]
wanted = [each.tokens for each in session.generate(prompts, chat=True)]
wanted_chat = list(chat.send("Hello!"))
child = os.fork()
if not child:
    found = [each.tokens for each in session.generate(prompts, chat=True)]
    again = list(session.chat().send("Hello!"))
    list(chat.send("And how do I clean a window?"))
    os._exit(0 if (found, again) == (wanted, wanted_chat) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert [each.tokens for each in session.generate(prompts, chat=True)] == wanted
list(chat.send("And how do I clean a window?"))
"""


@posix
def test_a_fork_after_load_answers_and_leaves_the_parent_alone() -> None:
    done = fresh(FORK)
    assert not done.returncode, done.stderr


LATE = """
import sys
import minisafe.cli
from minisafe.__main__ import main

def late():
    raise ImportError(sys.argv[2])

minisafe.cli.main = late
main()
"""


@pytest.mark.parametrize(
    ("said", "code", "lines"),
    [("x.so: failed to map segment from shared object", 2, 1), ("no module named x", 1, None)],
)
def test_a_library_that_gets_no_room_later_is_one_line(
    said: str, code: int, lines: int | None
) -> None:
    """Only that; another error while something is imported is shown as it is."""
    done = fresh(LATE, said)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert (len(done.stderr.splitlines()) == lines) == (code == 2)


FORK_OF_THREADS = """
import os, signal, torch, minisafe

session = minisafe.load(None, {"threads": 2})
torch.rand(1500, 1500) @ torch.rand(1500, 1500)  # now torch has started its threads
wanted = session.generate(["Hello!"], chat=True)[0].tokens
child = os.fork()
if not child:
    signal.alarm(60)  # ends it if it hangs, which no parent would
    told = ""
    for ask in (lambda: session.generate(["Hello!"], chat=True),
                lambda: list(session.chat().send("Hi"))):
        try:
            ask()
        except minisafe.MinisafeError as error:
            told += str(error)
    torch.set_num_threads(1)
    found = session.generate(["Hello!"], chat=True)[0].tokens
    os._exit(0 if told.count("torch.set_num_threads(1)") == 2 and found == wanted else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@posix
def test_a_forked_child_that_would_hang_says_what_to_do() -> None:
    done = fresh(FORK_OF_THREADS, env=PATHS | {"OMP_NUM_THREADS": "2"}, seconds=120)
    assert not done.returncode, done.stderr
