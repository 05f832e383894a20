"""A judge at an OpenAI-compatible chat-completions endpoint, with rate limit, retries and cache."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from random import Random

from minisafe.errors import MinisafeError, SettingError
from minisafe.evaluation.judges import Ruling
from minisafe.evaluation.judges.completions import Completions, Unanswered
from minisafe.evaluation.judges.replies import Replies
from minisafe.evaluation.judges.rubric import VERSION, messages, read_reply, text_hash
from minisafe.evaluation.prompts import Prompt

MAX_BACKOFF_S = 60.0
GIVE_UP_AFTER = 5  # consecutive questions without a reply after all their retries


class Stopped(Exception):
    """Another worker had an error that ends the run."""


class RateLimit:
    """Spreads requests evenly: one every 60 / per_minute seconds, over all workers.

    `clock` returns seconds, and `sleep` waits for some.
    """

    def __init__(
        self, per_minute: float, clock: Callable[[], float], sleep: Callable[[float], object]
    ):
        self.interval_s = 60.0 / per_minute
        self.clock, self.sleep = clock, sleep
        self.lock = threading.Lock()
        self.free_at = clock()

    def wait(self) -> None:
        """Return when it is this caller's turn."""
        with self.lock:
            now = self.clock()
            turn = max(now, self.free_at)
            self.free_at = turn + self.interval_s
        if turn > now:
            self.sleep(turn - now)

    def hold(self, seconds: float) -> None:
        """Delay all further turns by some seconds."""
        with self.lock:
            self.free_at = max(self.free_at, self.clock() + seconds)


class EndpointJudge:
    """Rules by a chat model's reply to the two-way rubric (`rubric.py`).

    The key comes from OPENAI_API_KEY. `cache`, a JSONL file of hashes and replies, keeps replies,
    so that a resumed run asks nothing twice. `remembered` counts cache hits, and `unanswered`
    counts questions without a reply, which are INCONCLUSIVE and not cached.

    Args:
        url: the address, to which `/chat/completions` is added.
        per_minute: requests per minute, retries counted.
        retries: further attempts after the first, each after a longer wait.
        timeout_s: seconds that one attempt may take.
        workers: concurrent requests.
        clock, sleep: the time in seconds, and a wait; for tests.

    Raises:
        SettingError: a setting is out of range, or the key is missing for a host other than this
            machine; while ruling, the server rejects the key, the model or the request.
        MinisafeError: while ruling, the server does not answer for a long time.
    """

    def __init__(
        self,
        model: str,
        url: str = "https://api.openai.com/v1",
        cache: str | Path | None = None,
        per_minute: float = 60,
        retries: int = 5,
        timeout_s: float = 60,
        workers: int = 4,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ):
        check_settings(model, per_minute, retries, timeout_s, workers)
        self.name = f"endpoint:{model}"
        self.retries, self.workers = retries, workers
        self.completions = Completions(model, url, timeout_s)
        self.version = text_hash(self.completions.url, VERSION)
        self._replies = Replies(None if cache is None else Path(cache))
        self._stop = threading.Event()
        self._sleep = sleep or self._stop.wait
        self._limit = RateLimit(per_minute, clock, self._sleep)
        self._lock = threading.Lock()
        self._failed_in_a_row = 0
        self.remembered = self.unanswered = 0

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Accept any question."""

    def __call__(
        self, prompts: Sequence[Prompt], asked: Sequence[str], answers: Sequence[str]
    ) -> list[Ruling]:
        chats: dict[str, list[dict[str, str]]] = {}
        keys = []
        for prompt, question, answer in zip(prompts, asked, answers, strict=True):
            chat = messages(prompt.kind, question, answer)
            keys.append(self._key(chat))
            chats[keys[-1]] = chat
        new = [key for key in chats if self._replies.get(key) is None]
        self.remembered += len(chats) - len(new)
        rulings = self._ask_all({key: chats[key] for key in new})
        for key in chats:
            reply = self._replies.get(key)
            if reply is not None:
                rulings[key] = read_reply(reply)
        return [rulings[key] for key in keys]

    def _key(self, chat: list[dict[str, str]]) -> str:
        """The cache key of a reply: a hash of model, address, rubric, question and answer."""
        contents = [message["content"] for message in chat]
        return text_hash(self.completions.model, self.completions.url, VERSION, *contents)

    def _ask_all(self, chats: dict[str, list[dict[str, str]]]) -> dict[str, Ruling]:
        """Ask the new questions; returns rulings for those without a reply."""
        self._stop.clear()
        found: dict[str, Ruling] = {}
        with ThreadPoolExecutor(self.workers) as pool:
            futures = {key: pool.submit(self._work, key, chat) for key, chat in chats.items()}
            try:
                for key, future in futures.items():
                    failure = future.result()
                    if failure is not None:
                        found[key] = Ruling("INCONCLUSIVE", f"no reply: {failure}")
            except BaseException as error:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise (first_error(futures.values()) or error) from None
        return found

    def _work(self, key: str, chat: list[dict[str, str]]) -> str | None:
        """`_ask`; an error also stops the other workers."""
        try:
            return self._ask(key, chat)
        except BaseException:
            self._stop.set()
            raise

    def _ask(self, key: str, chat: list[dict[str, str]]) -> str | None:
        """Ask until there is a reply, and store it; returns the reason if there is none."""
        jitter = Random(key)
        reason = ""
        for attempt in range(self.retries + 1):
            self._turn()
            try:
                reply = self.completions.ask(chat)
            except Unanswered as failure:
                reason = str(failure)
                if attempt < self.retries:
                    self._back_off(attempt, failure.wait_s, jitter)
                continue
            self._replies.keep(key, reply)
            with self._lock:
                self._failed_in_a_row = 0
            return None
        self._count_failure(reason)
        return reason

    def _turn(self) -> None:
        """Wait until a request may start; raises `Stopped` after another worker's error."""
        if not self._stop.is_set():
            self._limit.wait()
        if self._stop.is_set():
            raise Stopped

    def _back_off(self, attempt: int, wait_s: float, jitter: Random) -> None:
        """Wait twice as long after each attempt, minus a random part of up to a half, so that the
        workers do not return all at once. A wait that the server requests holds for all workers."""
        self._limit.hold(wait_s)
        self._sleep(min(MAX_BACKOFF_S, 2.0**attempt) * (1 - jitter.random() / 2))

    def _count_failure(self, reason: str) -> None:
        with self._lock:
            self.unanswered += 1
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= GIVE_UP_AFTER:
                raise MinisafeError(
                    f"{self.completions.url}: {self._failed_in_a_row} questions in a row got no "
                    f"reply, each after {self.retries + 1} attempts (last: {reason}); check the "
                    "server and run again; with a cache, earlier replies are reused"
                )


def first_error(futures: Iterable[Future[str | None]]) -> BaseException | None:
    """The error that stopped the other workers."""
    done = [future for future in futures if future.done() and not future.cancelled()]
    errors = [error for future in done if (error := future.exception()) is not None]
    return next((error for error in errors if not isinstance(error, Stopped)), None)


def check_settings(
    model: str, per_minute: float, retries: int, timeout_s: float, workers: int
) -> None:
    """Raise `SettingError` for a value out of range."""
    checks = {
        "model": (model, bool(model.strip()), "a model name"),
        "per_minute": (per_minute, 0 < per_minute < float("inf"), "a number above 0"),
        "retries": (retries, retries >= 0, "0 or more"),
        "timeout_s": (timeout_s, 0 < timeout_s < float("inf"), "seconds above 0"),
        "workers": (workers, workers >= 1, "1 or more"),
    }
    for name, (value, holds, expected) in checks.items():
        if not holds:
            raise SettingError(f"the judge's {name} is {value!r}; expected {expected}")
