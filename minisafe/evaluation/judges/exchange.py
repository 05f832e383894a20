"""One HTTP exchange within one time limit: name, connection, headers and body together.

A socket's own limit is for each wait, so a server that sends a byte now and then could hold a
caller for as long as it likes. Here the exchange runs in a thread. When the time is over, the
caller goes on and cuts the connection, which ends the thread.
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
    """The time was over."""


class Line:
    """The connection of one exchange, as far as there is one; `cut` ends what waits for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.socket: socket.socket | None = None
        self.is_cut = False

    def connected(self, made: socket.socket) -> None:
        """Raises `TooLate` where the line was cut before it was there."""
        with self.lock:
            self.socket = made
            if self.is_cut:
                raise TooLate

    def cut(self) -> None:
        """End the connection, now or as soon as it is there."""
        with self.lock:
            self.is_cut = True
            if self.socket is not None:
                with suppress(OSError):  # it may be closed
                    # the plain socket's own, which a reader in another thread feels at once
                    socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


class Answer(Generic[T]):
    """What a thread makes, or the error that it meets."""

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
        """The result; raises `TooLate` where it takes longer, or the thread's own error."""
        self.thread.start()
        self.thread.join(seconds)
        if self.thread.is_alive():
            raise TooLate(f"no whole reply within {seconds:g} s")
        if self.error is not None:
            raise self.error
        return self.made[0]


class Exchange(Request):
    """A request with the line that it goes over."""

    def __init__(self, url: str, data: bytes, headers: dict[str, str]):
        super().__init__(url, data, headers)
        self.line = Line()


def exchange(
    opener: OpenerDirector,
    request: Exchange,
    read: Callable[[Any], T],
    timeout_s: float,
) -> T:
    """What `read` makes of the response, with any status, all within `timeout_s` seconds.

    Raises `TooLate` where it takes longer, and what opening and reading raise.
    """

    def work() -> T:
        try:
            response = opener.open(request, timeout=timeout_s)
        except HTTPError as error:  # a reply too
            response = error
        with response:
            return read(response)

    try:
        return Answer(work).within(timeout_s)
    finally:
        request.line.cut()


# ---- an opener whose connections can be cut -----------------------------------------------------


class Plain(http.client.HTTPConnection):
    """A connection that says when it is made."""

    def __init__(self, *arguments: Any, line: Line, **settings: Any):
        super().__init__(*arguments, **settings)
        self.line = line

    def connect(self) -> None:
        super().connect()
        self.line.connected(self.sock)


class Secure(Plain, http.client.HTTPSConnection):
    """The same, encrypted. Its handshake has the socket's limit, which is for the whole of it."""


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
    """A redirect would carry the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def make_opener(direct: bool) -> OpenerDirector:
    """Follows no redirects; direct: goes through no proxy."""
    handlers: list[BaseHandler] = [NoRedirect(), PlainHandler(), SecureHandler()]
    return build_opener(*handlers, *([ProxyHandler({})] if direct else []))
