"""Chat templates as programs of strangers: they are stopped, and what they say is bounded."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from minisafe.errors import PromptError, SettingError, TokenizerError
from minisafe.tokenizer import Tokenizer, child, runner
from minisafe.tokenizer.options import MOST_OPTIONS, check_options
from minisafe.tokenizer.templates import MOST_CHARACTERS
from tests.support.templates import CHATML, chat
from tests.support.worlds import backend

FORKS = hasattr(os, "fork")
LIMITED = sys.platform == "linux"  # where an address space can be bounded


def with_template(source: Any, **settings: Any) -> Tokenizer:
    return Tokenizer(backend("byte_level"), {"chat_template": source} | settings, "here")


def doubling(first: str) -> str:
    """Macros that call each other, 2 ** 40 times."""
    calls = "".join(
        f"{{% macro m{n}() %}}{{{{ m{n - 1}() }}}}{{{{ m{n - 1}() }}}}{{% endmacro %}}"
        for n in range(1, 40)
    )
    return "{% macro m0() %}" + first + "{% endmacro %}" + calls + "{{ m39() }}"


NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}X{% endfor %}{% endfor %}"
LONG = "{% set n = messages | length * 2000000000 %}"
ATTACKS = {
    "nested range": (NESTED.replace("X", ""), "takes longer than 2 s"),
    "nested range that writes": (NESTED.replace("X", "xx"), "writes more than 512 kB"),
    "macros": (doubling(""), "takes longer than 2 s"),
    "power": ("{{ (messages | length + 1) ** 10000000000 }}", "takes longer than 2 s|256 MB"),
    "power at compile time": ("{{ 2 ** 10000000000 }}", "takes longer than 2 s|256 MB"),
    "output": ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "more than 512 kB"),
    "times": (LONG + "{{ 'a' * n }}", "more than 256 MB"),
    "times at compile time": ("{{ 'a' * 2000000000 }}", "more than 256 MB"),
    "percent": (LONG + "{{ '%*d' % (n, 1) }}", "more than 256 MB"),
    "format": ("{{ '{:2000000000}'.format(1) }}", "more than 256 MB"),
    "center": (LONG + "{{ 'a'.center(n) }}", "more than 256 MB"),
    "center as a filter": (LONG + "{{ 'a' | center(n) }}", "more than 256 MB"),
    "indent": ("{{ messages | tojson(indent=1000000000) }}", "more than 256 MB"),
    "doubled text": (
        "{% set t = namespace(a='x') %}{% for i in range(99) %}{% set t.a = t.a + t.a %}"
        "{% endfor %}",
        "more than 256 MB",
    ),
    "error text": ("{{ raise_exception('x' * 100000000) }}", "more than 256 MB|raises an error: x"),
    "parentheses": ("{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}", "nested too deep"),
    "some parentheses": ("{{ " + "(" * 500 + "1" + ")" * 500 + " }}", "nested too deep"),
    "brackets": ("{{ " + "[" * 190 + "]" * 190 + " }}", "nested too deep|malformed"),
    "not": ("{{ " + "not " * 50_000 + "1 }}", "nested too deep"),
    "a sum": ("{{ 1" + "+x.y" * 5000 + " }}", "nested too deep"),
    "loops": ("{% for a in messages %}" * 30 + "{% endfor %}" * 30, "malformed"),
    "conditions": ("{% if 1 %}" * 5000 + "{% endif %}" * 5000, "nested too deep"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself too deeply"),
    "half a pair": ("\ud800", "half of a surrogate pair"),
    "half a pair that is written": ("{{ '\\ud800' }}", "half of a surrogate pair"),
    "length": ("x" * (MOST_CHARACTERS + 1), "1,048,577 characters; expected at most 1,048,576"),
    "a list of lists": ([[1]], "a list of other things than named templates"),
    "a name that is none": ([{"name": {}}], "a list of other things than named templates"),
    "a name without template": ([{"name": "default"}], "has no chat template"),
    "an object as template": ([{"name": "default", "template": {}}], "has no chat template"),
}
OF_MEMORY = [how for how, (_, says) in ATTACKS.items() if "256 MB" in says]


@pytest.mark.parametrize("how", ATTACKS)
def test_a_template_that_attacks_is_one_line_in_time(how: str) -> None:
    if how in OF_MEMORY and not LIMITED:
        pytest.skip("this system bounds no address space")
    source, says = ATTACKS[how]
    known = with_template("x")
    known.render(chat("a"))  # the process is there
    known = with_template(source)
    begun = time.monotonic()
    with pytest.raises(TokenizerError, match=says) as error:
        known.encode_chat(chat("a"))
    assert time.monotonic() - begun < 4  # of which 2 are the limit
    assert len(str(error.value)) < 600
    assert "\n" not in str(error.value)
    assert with_template("next").render(chat("a")) == "next"


@pytest.mark.skipif(not LIMITED, reason="bounded by the time only")
def test_memory_is_bounded_while_a_template_runs() -> None:
    """Seen from outside, at its peak; the chat's own size comes on top."""
    known = with_template("{{ 'a' * (250000000 * (messages | length)) }}" * 2)
    known.template.check()
    process = psutil.Process(known.template.runner.process.pid)
    with pytest.raises(TokenizerError, match="256 MB"):
        known.render(chat("a"))
    limit = process.rlimit(psutil.RLIMIT_AS)
    assert limit[0] <= child.MEMORY + child.MEMORY_PER_BYTE * 4096
    status = Path(f"/proc/{process.pid}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmPeak"))
    assert int(peak.split()[1]) <= limit[0] >> 10


def test_long_texts_are_written() -> None:
    """The limit of output counts what the template adds."""
    text = "ab 日\U0001f98a" * 400_000
    known = with_template("{% for m in messages %}<{{ m.content }}>{% endfor %}")
    assert known.render(chat(text)) == f"<{text}>"
    with pytest.raises(PromptError, match=r"has 2.,...,... bytes; expected at most"):
        known.render(chat(text * 6))


def test_a_message_that_is_no_text() -> None:
    known = with_template("x")
    with pytest.raises(PromptError, match="half of a surrogate pair"):
        known.render(chat("a\udc80"))
    with pytest.raises(PromptError, match="not plain text"):
        known.render([{"role": "user", "content": object()}])  # type: ignore[dict-item]


def test_words_of_a_template_command_no_terminal() -> None:
    known = with_template("{{ raise_exception('a\x1b[2J\nb' ~ 'c' * 9999) }}")
    with pytest.raises(TokenizerError, match=r"raises an error: a␛\[2J bc") as error:
        known.render(chat("a"))
    assert len(str(error.value)) < 600


# ---- the process -------------------------------------------------------------------------------


def test_one_process_for_all_and_none_without() -> None:
    one, other = with_template("a"), with_template("b")
    assert one.template.runner is other.template.runner
    assert one.render(chat("x")) + other.render(chat("x")) == "ab"
    process = one.template.runner.process
    del one
    gc.collect()
    assert process.poll() is None
    assert other.template.runner is runner.shared()


def test_a_runner_that_is_gone_takes_its_process_along() -> None:
    own = runner.Runner()
    own.start()
    process = own.process
    del own
    gc.collect()
    assert process.poll() is not None
    assert process.stdin.closed


def test_a_tokenizer_may_be_copied() -> None:
    """As for a process that is spawned."""
    known = with_template("{{ messages[0].content }}")
    assert known.render(chat("a")) == "a"
    for other in (copy.deepcopy(known), pickle.loads(pickle.dumps(known))):
        assert other.render(chat("b")) == "b"
        assert other.template.runner is known.template.runner


def test_a_process_that_was_killed_is_started_anew() -> None:
    known = with_template("{{ messages[0].content }}")
    assert known.render(chat("a")) == "a"
    known.template.runner.process.kill()
    known.template.runner.process.wait()
    assert known.render(chat("b")) == "b"


def test_a_process_that_is_killed_while_it_serves_is_replaced_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = with_template("{{ messages[0].content }}")
    assert known.render(chat("a")) == "a"
    original, kills = runner.write, [True, False]

    def write(process: runner.Process, data: bytes) -> None:
        if kills.pop(0):
            process.kill()
            process.wait()
        original(process, data)

    monkeypatch.setattr(runner, "write", write)
    assert known.render(chat("b")) == "b"
    assert not kills
    kills[:] = [True, True, False]
    with pytest.raises(TokenizerError, match="ends its process"):
        known.render(chat("c"))
    assert kills == [False]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_has_most_of_its_memory_to_spare() -> None:
    """The threads of its watchdog once reserved most of it."""
    known = with_template("{{ messages[0].content }}")
    for n in range(50):
        known.render(chat(str(n)))
    status = Path(f"/proc/{known.template.runner.process.pid}/status").read_text()
    size = next(line for line in status.splitlines() if line.startswith("VmSize"))
    assert int(size.split()[1]) << 10 < child.MEMORY / 4


def test_threads_share_it() -> None:
    known = with_template("{{ messages[0].content }}")
    found: dict[int, set[str]] = {}

    def ask(number: int) -> None:
        found[number] = {known.render(chat(f"text {number}")) for _ in range(50)}

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: {f"text {number}"} for number in range(8)}


def render_in_fork(known: Tokenizer, queue: Any) -> None:
    queue.put((known.render(chat("fork")), known.template.runner.process.pid))


@pytest.mark.skipif(not FORKS, reason="this system does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of threads at a fork; torch's
def test_a_fork_has_a_process_of_its_own() -> None:
    known = with_template("{{ messages[0].content }}")
    assert known.render(chat("a")) == "a"
    process = known.template.runner.process
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with known.template.runner.lock:  # as if another thread were asking
        fork = context.Process(target=render_in_fork, args=(known, queue))
        fork.start()
    text, pid = queue.get(timeout=30)
    fork.join(30)
    assert (text, fork.exitcode) == ("fork", 0)
    assert pid != process.pid
    assert process.poll() is None
    assert known.render(chat("b")) == "b"
    assert gone(pid)


PROGRAM = """
import sys, time
sys.path[:0] = {path!r}
from tests.support.worlds import backend
from minisafe.tokenizer import Tokenizer
known = Tokenizer(backend("byte_level"), {{"chat_template": {source!r}}}, "here")
print(known.render([{{"role": "user", "content": "a"}}]), flush=True)
print(known.template.runner.process.pid, flush=True)
{rest}
"""


def program(rest: str, source: str = "x") -> subprocess.Popen[str]:
    """A Python program that has rendered a chat and goes on with `rest`."""
    path = [str(Path(__file__).parents[2])]
    text = PROGRAM.format(path=path, source=source, rest=rest)
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)


def gone(pid: int, seconds: float = 10) -> bool:
    """Whether a process ends within some seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("how", ["ends", "killed"])
def test_it_ends_with_the_program(how: str) -> None:
    """Even where the program is killed while a template runs, and cannot kill it."""
    endless = "{% if messages[0].content == 'b' %}" + NESTED.replace("X", "") + "{% endif %}x"
    rest = "" if how == "ends" else "known.render([{'role': 'user', 'content': 'b'}])"
    started = program(rest, endless)
    assert started.stdout.readline() == "x\n"
    pid = int(started.stdout.readline())
    if how == "killed":
        time.sleep(0.3)
        started.kill()
    started.wait(30)
    started.stdout.close()
    assert gone(pid)


@pytest.mark.skipif(os.name != "posix", reason="signals of a terminal")
def test_ctrl_c_reaches_the_program_alone() -> None:
    known = with_template("{{ messages[0].content }}")
    known.render(chat("a"))
    process = known.template.runner.process
    os.kill(process.pid, signal.SIGINT)
    assert known.render(chat("b")) == "b"
    assert known.template.runner.process is process


def test_an_interruption_leaves_no_old_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked next gets its own answer."""
    known = with_template("{{ messages[0].content }}")
    known.render(chat("a"))
    original = runner.read

    def interrupted(process: Any) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        known.render(chat("old"))
    monkeypatch.setattr(runner, "read", original)
    assert known.render(chat("new")) == "new"


def test_a_program_that_is_no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.multiprocessing.spawn, "get_executable", lambda: sys.executable)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(TokenizerError, match=r"multiprocessing\.set_executable"):
        runner.Runner().start()
    monkeypatch.setattr(runner.multiprocessing.spawn, "get_executable", lambda: "/no/python")
    with pytest.raises(TokenizerError, match="/no/python: cannot be started"):
        runner.Runner().start()


def test_the_process_knows_jinja2_only() -> None:
    """So that it starts soon: no torch, no site packages' start files."""
    found = runner.places("jinja2", "markupsafe")
    code = (
        "import sys, runpy; sys.path += sys.argv[2:]; import jinja2.sandbox;"
        "print(sorted(m for m in sys.modules if m in ('torch', 'tokenizers', 'minisafe', 'site')))"
    )
    command = [sys.executable, "-I", "-S", "-c", code, child.__file__, *found]
    assert subprocess.check_output(command, text=True).strip() == "[]"


# ---- options -----------------------------------------------------------------------------------

OPTIONAL = (
    "{{ enable_thinking is defined and enable_thinking }}|{{ language }}|{{ messages[0].content }}"
)


def test_options_reach_the_template() -> None:
    settings = {"chat_template": OPTIONAL}
    options = {"enable_thinking": True, "language": "de"}
    known = Tokenizer(backend("byte_level"), settings, "here", options)
    assert known.render(chat("a")) == "True|de|a"
    assert with_template(OPTIONAL).render(chat("a")) == "False||a"
    assert known.encode_chat(chat("a")).ids != with_template(OPTIONAL).encode_chat(chat("a")).ids


def test_an_option_that_the_template_does_not_read() -> None:
    known = Tokenizer(backend("byte_level"), {"chat_template": OPTIONAL}, "here", {"thinking": 1})
    with pytest.raises(
        SettingError,
        match="does not read the option 'thinking'; it reads enable_thinking, language",
    ):
        known.render(chat("a"))
    known = Tokenizer(backend("byte_level"), {"chat_template": CHATML}, "here", {"thinking": 1})
    with pytest.raises(SettingError, match="'thinking'; it reads no option"):
        known.template.check()


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "bos_token", "loop",
                                  "range", "raise_exception", "a b", "", "1a", "_a", "__class__",
                                  "é", "a" * 65, 3])  # fmt: skip
def test_names_that_are_not_free(name: Any) -> None:
    with pytest.raises(SettingError, match="template option"):
        check_options({name: True})


@pytest.mark.parametrize("value", [[1], {}, float("nan"), float("inf"), "x" * 5000, 1 << 64, b"x"])
def test_values_that_are_no_scalars(value: Any) -> None:
    with pytest.raises(SettingError, match="template option a"):
        check_options({"a": value})


def test_options_without_number() -> None:
    with pytest.raises(SettingError, match="expected at most 64"):
        check_options({f"a{n}": n for n in range(MOST_OPTIONS + 1)})
