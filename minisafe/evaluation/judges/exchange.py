"""One HTTP exchange within one time limit: name, connection, headers and body together.

A socket's timeout applies to each wait, so a server that sends single bytes could hold a caller
without limit. Here the exchange runs in a thread. When the time is over, the caller continues and
closes the connection, which ends the thread.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar
from urllib.error import HTTPError
from urllib.request import (
    BaseHandler,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    build_opener,
)

T = TypeVar("T")


class TooLate(OSError):
    """The time limit was reached."""


class Line:
    """The connection of one exchange, once it exists; `cut` ends everything that waits for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.socket: socket.socket | None = None
        self.is_cut = False

    def connected(self, made: socket.socket) -> None:
        """Store the connection; raises `TooLate` if `cut` came before it."""
        with self.lock:
            self.socket = made
            if self.is_cut:
                raise TooLate

    def cut(self) -> None:
        """End the connection, now or as soon as it exists."""
        with self.lock:
            self.is_cut = True
            if self.socket is not None:
                with suppress(OSError):  # it may be closed already
                    # the plain socket's shutdown, which a reader in another thread notices at once
                    socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


class Answer(Generic[T]):
    """A thread's result or error."""

    def __init__(self, make: Callable[[], T]):
        self.make = make
        self.made: list[T] = []
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.made.append(self.make())
        except BaseException as error:
            self.error = error

    def within(self, seconds: float) -> T:
        """The result; raises `TooLate` after the time limit, or the thread's own error."""
        self.thread.start()
        self.thread.join(seconds)
        if self.thread.is_alive():
            raise TooLate(f"no complete reply within {seconds:g} s")
        if self.error is not None:
            raise self.error
        return self.made[0]


class Exchange(Request):
    """A request with its line."""

    def __init__(self, url: str, data: bytes, headers: dict[str, str]):
        super().__init__(url, data, headers)
        self.line = Line()


def exchange(
    opener: OpenerDirector,
    request: Exchange,
    read: Callable[[Any], T],
    timeout_s: float,
) -> T:
    """The result of `read` for the response, with any status, all within `timeout_s` seconds.

    Raises `TooLate` after that time, and the errors of opening and reading.
    """

    def work() -> T:
        try:
            response = opener.open(request, timeout=timeout_s)
        except HTTPError as error:  # also a reply
            response = error
        with response:
            return read(response)

    try:
        return Answer(work).within(timeout_s)
    finally:
        request.line.cut()


# ---- an opener whose connections can be cut -----------------------------------------------------


class Plain(http.client.HTTPConnection):
    """A connection that reports when it exists."""

    def __init__(self, *arguments: Any, line: Line, **settings: Any):
        super().__init__(*arguments, **settings)
        self.line = line

    def connect(self) -> None:
        super().connect()
        self.line.connected(self.sock)


class Secure(Plain, http.client.HTTPSConnection):
    """The same, encrypted. The socket's timeout applies to the whole handshake."""


class PlainHandler(HTTPHandler):
    """Opens `Exchange`s."""

    def http_open(self, request: Any) -> Any:
        return self.do_open(partial(Plain, line=request.line), request)  # type: ignore[arg-type]


class SecureHandler(HTTPSHandler):
    """Opens `Exchange`s."""

    def https_open(self, request: Any) -> Any:
        context = self._context  # type: ignore[attr-defined]
        made = partial(Secure, line=request.line, context=context)
        return self.do_open(made, request)  # type: ignore[arg-type]


class NoRedirect(HTTPRedirectHandler):
    """Rejects redirects, which would carry the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def make_opener(direct: bool) -> OpenerDirector:
    """An opener that follows no redirects; direct: without a proxy."""
    handlers: list[BaseHandler] = [NoRedirect(), PlainHandler(), SecureHandler()]
    return build_opener(*handlers, *([ProxyHandler({})] if direct else []))
