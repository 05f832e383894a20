"""The parent's side of the process in which chat templates run (`child`).

One process serves all tokenizers of a program. It starts with the first text and ends with the last
tokenizer. If a template takes too long, the process is killed, and the next text starts a new one.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing.spawn
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from minisafe.errors import PromptError, TokenizerError
from minisafe.tokenizer import child

START_SECONDS = 60.0  # for the interpreter and jinja2, on a busy disk
GRACE_SECONDS = 0.1  # for a reply that was in time to arrive through the pipe
# glibc reserves 128 MiB of address space for each thread's allocations: half of `child.MEMORY`
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
Process = subprocess.Popen[bytes]


class TemplateError(Exception):
    """Why a template gave no text."""


class Ended(TemplateError):
    """The process ended while it served a request."""


class Runner:
    """Runs templates in a child process, one request at a time. Threads may share it."""

    def __init__(self) -> None:
        self.forget()
        RUNNERS.add(self)

    def forget(self) -> None:
        """Reset without touching the child process, which belongs to the parent of this fork."""
        self.lock = threading.Lock()
        self.process: Process | None = None
        self.stop: weakref.finalize[..., Runner] | None = None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The child's reply. A process that has served before and ends is replaced once: the system
        may have ended it, for want of memory for example.

        Raises `TemplateError` if the template takes too long or ends its process, and
        `PromptError` for a request that is too long or not valid text.
        """
        data = packed(request)
        with self.lock:
            seconds = child.SECONDS + GRACE_SECONDS
            if self.process is not None and self.process.poll() is None:
                with suppress(Ended):
                    return parsed(self.exchange(data, seconds))
            self.start()
            return parsed(self.exchange(data, seconds))

    def start(self) -> None:
        """Start a new process and wait until it is ready."""
        self.close()
        self.process = started()
        self.stop = weakref.finalize(self, end, self.process, os.getpid())
        self.exchange(b"", START_SECONDS)

    def exchange(self, data: bytes, seconds: float) -> bytes:
        """Send a request, if any, and read a reply; any failure ends the process."""
        assert self.process is not None
        timer = threading.Timer(seconds, self.process.kill)
        timer.daemon = True
        begun = time.monotonic()
        try:
            timer.start()
            if data:
                write(self.process, data)
            return read(self.process)
        except BaseException as error:  # also KeyboardInterrupt: a late reply would be misread
            late = time.monotonic() - begun >= seconds
            self.close()
            if not isinstance(error, (EOFError, OSError)):
                raise
            if late:
                raise TemplateError(f"takes longer than {child.SECONDS:g} s") from None
            raise Ended("ends its process") from None
        finally:
            timer.cancel()

    def close(self) -> None:
        """End the process, if there is one."""
        if self.stop is not None:
            self.stop()
        self.process = self.stop = None


RUNNERS: weakref.WeakSet[Runner] = weakref.WeakSet()
IN_USE: list[weakref.ref[Runner]] = []  # at most one


def shared() -> Runner:
    """The program's runner: the current one, or a new one. (Two threads that create the first one
    at the same time may get two, which does no harm.)"""
    found = IN_USE[0]() if IN_USE else None
    if found is None:
        found = Runner()
        IN_USE[:] = [weakref.ref(found)]
    return found


def packed(request: Mapping[str, Any]) -> bytes:
    """A request as bytes; raises `PromptError`."""
    try:
        data = json.dumps(request, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise PromptError(
            "a message contains half of a surrogate pair; expected valid Unicode text"
        ) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError(f"a message is not plain text ({error}); expected strings") from None
    if len(data) > child.CHAT:
        raise PromptError(
            f"the conversation has {len(data):,} bytes; expected at most {child.CHAT:,} for a chat "
            "template"
        )
    return data


def parsed(data: bytes) -> dict[str, Any]:
    """A reply's object; raises `TemplateError` if it is an error."""
    reply = json.loads(data)
    if "error" in reply:
        raise TemplateError(str(reply["error"]))
    return dict(reply)


def started() -> Process:
    """A new interpreter that runs `child`; raises `TokenizerError`."""
    python = os.fsdecode(multiprocessing.spawn.get_executable() or "")
    if not python or (getattr(sys, "frozen", False) and python == sys.executable):
        raise TokenizerError(
            "a chat template needs a separate Python process, and this program is not a Python "
            "interpreter; name one with multiprocessing.set_executable"
        )
    command = [python, "-I", "-S", "-X", "utf8", child.__file__, *places("jinja2", "markupsafe")]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=os.environ | ONE_ARENA,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError as error:
        raise TokenizerError(
            f"{python}: cannot be started ({error.strerror or error}); a chat template needs a "
            "separate Python process"
        ) from None


def places(*packages: str) -> list[str]:
    """Directories that hold these packages."""
    found: dict[str, None] = {}
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise TokenizerError(f"chat templates need {package}; install it (pip install jinja2)")
        found[str(Path(spec.origin).resolve().parent.parent)] = None
    return list(found)


def write(process: Process, data: bytes) -> None:
    """Write a frame to the child's input."""
    assert process.stdin is not None
    left = memoryview(len(data).to_bytes(8, "big") + data)
    while left:
        left = left[process.stdin.write(left) or 0 :]


def read(process: Process) -> bytes:
    """Read a frame from the child's output; raises `EOFError`."""
    assert process.stdout is not None
    length = int.from_bytes(read_exactly(process.stdout, 8), "big")
    if length > child.MEMORY:  # more than the child can have written
        raise EOFError
    return read_exactly(process.stdout, length)


def read_exactly(source: IO[bytes], length: int) -> bytes:
    """Exactly `length` bytes; raises `EOFError` if the source ends earlier."""
    pieces = bytearray()
    while len(pieces) < length:
        piece = source.read(min(length - len(pieces), 1 << 20))
        if not piece:
            raise EOFError
        pieces += piece
    return bytes(pieces)


def end(process: Process, owner: int) -> None:
    """Kill a process and close its pipes, unless this is a fork of the process that owns it."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    if os.getpid() == owner:
        process.kill()
        process.wait()


def forget_all() -> None:
    """After a fork: forget the runners' processes, which belong to the parent."""
    for runner in list(RUNNERS):
        if runner.stop is not None:
            runner.stop.detach()
        runner.forget()


register: Callable[..., None] | None = getattr(os, "register_at_fork", None)
if register is not None:
    register(after_in_child=forget_all)


def texts_of(reply: Mapping[str, Any]) -> list[str | TemplateError]:
    """The reply's texts in full; the reply holds each as its difference from the one before."""
    found: list[str | TemplateError] = []
    before = ""
    for each in reply["texts"]:
        if isinstance(each, dict):
            found.append(TemplateError(str(each["error"])))
            continue
        same, rest = each
        before = before[:same] + rest
        found.append(before)
    return found


Part = tuple[int, Mapping[int, str], bool]  # messages, replaced contents, generation prompt
