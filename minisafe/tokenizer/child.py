"""The process in which chat templates run: a template is an untrusted program.

`runner` starts this file as a script, with jinja2 as the only site package. It reads requests from
standard input and writes a reply to each on standard output. Requests and replies are JSON in
UTF-8, preceded by their length in 8 bytes. The process ends when its input ends.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, BinaryIO

SECONDS = 2.0  # per request: compiling the template, and rendering up to `MOST_TEXTS` texts
MOST_TEXTS = 16
OUTPUT = 1 << 19  # characters beyond those of the messages; encoding one takes 400 bytes
CHAT = 16 << 20  # bytes per request
MEMORY = 256 << 20  # bytes of address space, plus for each byte of the request:
MEMORY_PER_BYTE = 24  # up to 4 bytes per character, about six copies
MESSAGE = 400  # characters of an error
NAMES = 200  # most names in a reply, of those that a template reads

TemplateNames = tuple[Any, frozenset[str]]


class Refused(Exception):
    """Why there is no text: what is wrong with the template, for the reply."""


def main() -> None:
    """Serve requests until the input ends."""
    limit_system()
    sys.path += sys.argv[1:]
    environment = make_environment()
    known: dict[str, TemplateNames] = {}
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    send(sink, b"{}")  # ready
    while (request := receive(source)) is not None:
        # if the parent is gone, nothing else stops a template that does not end
        faulthandler.dump_traceback_later(SECONDS + 1, exit=True)
        limit_memory(len(request))
        send(sink, reply(environment, known, request))
        faulthandler.cancel_dump_traceback_later()


def limit_system() -> None:
    """Allow no files and no core dumps, bound the memory, ignore the terminal's Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(ImportError, ValueError, OSError):  # Windows has no limits, macOS only some
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        most = MEMORY + MEMORY_PER_BYTE * CHAT
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def limit_memory(request: int) -> None:
    """Set the address space for a request of this many bytes."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_AS)
        allowed = MEMORY + MEMORY_PER_BYTE * request
        resource.setrlimit(resource.RLIMIT_AS, (min(allowed, most), most))


def receive(source: BinaryIO) -> bytes | None:
    """The next request; None at the end of the input."""
    length = source.read(8)
    if len(length) < 8:
        return None
    return source.read(int.from_bytes(length, "big"))


def send(sink: BinaryIO, data: bytes) -> None:
    """Write one frame: the length in 8 bytes, then the data."""
    sink.write(len(data).to_bytes(8, "big") + data)
    sink.flush()


def reply(environment: Any, known: dict[str, TemplateNames], request: bytes) -> bytes:
    """The reply to the parent: texts or an error, never an exception."""
    try:
        answer = serve(environment, known, json.loads(request))
        return json.dumps(answer, ensure_ascii=False).encode()
    except Refused as refused:
        return json.dumps({"error": str(refused)}).encode()
    except UnicodeEncodeError:
        return json.dumps({"error": "writes half of a surrogate pair"}).encode()
    except MemoryError:
        return json.dumps({"error": out_of_memory()}).encode()


def serve(
    environment: Any, known: dict[str, TemplateNames], request: Mapping[str, Any]
) -> dict[str, Any]:
    """{"names": the names that the template reads, "texts": [text, or {"error": reason}]}.

    A text is sent as [k, rest]: its first k characters are those of the text before it.
    """
    template, names = compiled(environment, known, request["template"])
    texts: list[Any] = []
    before = ""
    for length, contents, generation_prompt in request["texts"]:
        messages = [dict(message) for message in request["messages"][:length]]
        for number, content in contents.items():
            messages[int(number)]["content"] = content
        given = {
            "messages": messages, "tools": None, "documents": None,
            "add_generation_prompt": generation_prompt,
        }  # fmt: skip
        try:
            text = render(template, request["names"] | given)
        except Refused as refused:
            texts.append({"error": str(refused)})
            continue
        same = common_start(before, text)
        texts.append([same, text[same:]])
        before = text
    return {"names": sorted(names)[:NAMES], "texts": texts}


def compiled(environment: Any, known: dict[str, TemplateNames], source: str) -> TemplateNames:
    """The template, and the names that it reads but does not set."""
    if source not in known:
        if len(known) >= 8:
            known.clear()
        from jinja2 import meta

        try:
            names = meta.find_undeclared_variables(environment.parse(source))
            known[source] = environment.from_string(source), frozenset(names)
        except RecursionError:
            raise Refused("is malformed (it is nested too deeply)") from None
        except MemoryError:
            raise Refused(out_of_memory()) from None
        except Exception as error:
            raise Refused(f"is malformed ({said(error)})") from None
    return known[source]


def render(template: Any, names: Mapping[str, Any]) -> str:
    """The template's text; raises `Refused` if there is none."""
    most = OUTPUT + sum(len(str(message.get("content"))) for message in names["messages"])
    pieces: list[str] = []
    length = 0
    try:
        for piece in template.generate(names):
            length += len(piece)
            if length > most:
                pieces.clear()
                raise Refused(f"writes more than {OUTPUT >> 10} kB besides the messages")
            pieces.append(piece)
        return "".join(pieces)
    except Refused:
        raise
    except MemoryError:
        raise Refused(out_of_memory()) from None
    except RecursionError:
        raise Refused("raises an error: it calls itself too deeply") from None
    except Exception as error:  # a template is code and can fail in any way
        raise Refused(f"raises an error: {said(error)}") from None


def out_of_memory() -> str:
    """The error for a template that needs too much memory."""
    return f"needs more than {MEMORY >> 20} MB of memory"


def said(error: Exception) -> str:
    """An error's text, of bounded length."""
    text = str(error)
    return text if len(text) <= MESSAGE else f"{text[:MESSAGE]} ..."


def common_start(one: str, other: str) -> int:
    """The length of the longest common prefix of two texts."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def make_environment() -> Any:
    """Jinja as chat templates expect it, in a sandbox that cannot change its arguments."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}`, which marks answers for training; here it has
        no effect."""

        tags = {"generation"}  # noqa: RUF012 (jinja2's own interface)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson`, without escapes for HTML."""
    first, second = separators or (None, None)
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=None if first is None or second is None else (first, second),
        sort_keys=sort_keys,
    )


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # the parent is gone
        os._exit(0)
