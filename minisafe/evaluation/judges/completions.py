"""One exchange with an OpenAI-compatible chat-completions endpoint, with the standard library."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
import warnings
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from minisafe.errors import SettingError
from minisafe.evaluation.judges.exchange import Exchange, exchange, make_opener
from minisafe.files.display import one_line

LOCAL = ("localhost", "127.0.0.1", "::1")
PASSING = (408, 409, 429)  # temporary statuses, besides every 5xx
MAX_TOKENS = 32
MAX_REPLY_BYTES = 1 << 20
MAX_ERROR_BYTES = 4096  # read from an error's body
MAX_WAIT_S = 600.0  # the longest Retry-After to obey
SHOWN = 200  # characters of a server's message in an error
SHORTEST_SECRET = 8  # a shorter key is a dummy for a local server


class Unanswered(Exception):
    """An attempt failed, perhaps temporarily. `wait_s`: the wait that the server requests."""

    def __init__(self, reason: str, wait_s: float = 0.0):
        super().__init__(reason)
        self.wait_s = wait_s


class Completions:
    """Asks a model for short, greedy replies. `asked` counts the requests.

    The key comes from OPENAI_API_KEY; it goes only into the request's header.

    Raises:
        SettingError: the address is invalid, or the key is missing for a host other than this
            machine.
    """

    def __init__(self, model: str, url: str, timeout_s: float):
        self.model, self.url, self.timeout_s = model, check_url(url), timeout_s
        self._key = read_key(self.url)
        self._opener = make_opener(direct=urlsplit(self.url).hostname in LOCAL)
        self._lock = threading.Lock()
        self._limit_name = "max_tokens"
        self.asked = 0

    def ask(self, chat: list[dict[str, str]]) -> str:
        """The reply's text; "" if the server gives none.

        Raises `Unanswered` for a temporary failure, and `SettingError` for one that no retry fixes.
        """
        with self._lock:
            self.asked += 1
            limit_name = self._limit_name
        try:
            said = self._exchange(chat, limit_name)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unanswered(self._shown(str(error))[:SHOWN] or type(error).__name__) from None
        if said.status < 300:
            return self._shown(reply_text(said.body))
        words = self._shown(error_text(said.body))[
            :SHOWN
        ]  # in this order, so that no part of the key remains
        if said.status in PASSING or said.status >= 500:
            waits = retry_after(said.retry_after)
            raise Unanswered(f"status {said.status} {words}".strip(), waits)
        if said.status == 400 and limit_name in words and "max_completion_tokens" in words:
            self._limit_name = "max_completion_tokens"  # newer models accept only this name
            if limit_name != self._limit_name:
                return self.ask(chat)
        raise SettingError(refusal(self.url, self.model, said.status, words))

    def _exchange(self, chat: list[dict[str, str]], limit_name: str) -> Said:
        """The server's reply, with any status."""
        return exchange(self._opener, self._request(chat, limit_name), read_said, self.timeout_s)

    def _request(self, chat: list[dict[str, str]], limit_name: str) -> Exchange:
        body = {"model": self.model, "messages": chat, "temperature": 0, limit_name: MAX_TOKENS}
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        return Exchange(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)

    def _shown(self, text: str) -> str:
        """A server's message without the key, in case it repeats the key."""
        return text.replace(self._key, "***") if len(self._key) >= SHORTEST_SECRET else text


# ---- address and key ----------------------------------------------------------------------------


def check_url(url: str) -> str:
    """The address without a trailing slash; raises `SettingError` for an invalid one."""
    wrong = SettingError(f"the judge's url is {url!r}; expected an address such as https://host/v1")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise wrong from None
    if parts.username is not None or parts.password is not None:
        raise SettingError("the judge's url holds a password; give it as OPENAI_API_KEY")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise wrong
    return url.rstrip("/")


def read_key(url: str) -> str:
    """The key for a host, from OPENAI_API_KEY; raises `SettingError` if it is missing."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    local = urlsplit(url).hostname in LOCAL
    if not key and not local:
        raise SettingError(
            f"no key for {url}; set OPENAI_API_KEY, or judge with a server on localhost"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise SettingError(
            "OPENAI_API_KEY has blanks or unprintable characters; expected only a key"
        )
    if key and not local and url.startswith("http:"):
        warnings.warn(f"the key travels unencrypted to {url}; use https", stacklevel=4)
    return key


# ---- replies ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """A server's raw reply."""

    status: int
    retry_after: str | None
    body: bytes


def read_said(response: Any) -> Said:
    """The reply, or the first bytes of an error; raises `Unanswered` if it is too long."""
    failed = response.status >= 300
    limit = MAX_ERROR_BYTES if failed else MAX_REPLY_BYTES + 1
    body = b""
    try:
        while len(body) < limit and (chunk := response.read1(min(1 << 16, limit - len(body)))):
            body += chunk
    except (OSError, http.client.HTTPException):
        if not failed:
            raise
    if len(body) > MAX_REPLY_BYTES:
        raise Unanswered(f"the reply has over {MAX_REPLY_BYTES} bytes")
    return Said(response.status, response.headers.get("Retry-After"), body)


def reply_text(body: bytes) -> str:
    """The first choice's text; "" if the server gives none. Raises `Unanswered`."""
    content = found_in(body, "choices", 0, "message", "content")
    if content is MISSING:
        raise Unanswered("the reply is not a chat completion")
    if content is not None and not isinstance(content, str):
        raise Unanswered("the reply's content is not text")
    return content or ""


def error_text(body: bytes) -> str:
    """A server's error message in one line."""
    said = found_in(body, "error", "message")
    text = said if isinstance(said, str) else body.decode("utf-8", "replace")
    return one_line(text)


MISSING = object()


def found_in(body: bytes, *path: str | int) -> object:
    """The value of a JSON text under some keys and indices; `MISSING` if there is none, and null if
    only the last key is missing. A reply with half of a surrogate pair is accepted."""
    try:
        value = json.loads(body)
        for step in path[:-1]:
            value = value[step]
        return value.get(path[-1])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return MISSING


def retry_after(value: str | None) -> float:
    """Seconds from a Retry-After header: a number, or an HTTP date (RFC 9110, 10.2.3)."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return min(float(value), MAX_WAIT_S)
    try:
        seconds = parsedate_to_datetime(value).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), MAX_WAIT_S)


def refusal(url: str, model: str, status: int, said: str) -> str:
    """One line about a status that no retry fixes."""
    advice = {
        400: f"it rejects this request; can {model!r} chat, with temperature 0?",
        401: "it rejects the key; check OPENAI_API_KEY",
        403: f"the key may not use {model!r}",
        404: f"it has no such model or address; check {model!r} and the url",
    }.get(status, "it redirects" if 300 <= status < 400 else "it rejects this request")
    return f"{url}: status {status}: {advice}" + (f" (it says: {said})" if said else "")
