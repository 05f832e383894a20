"""An answer as it grows: ids to text, stop strings, times; and the `Result` at its end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minisafe.engine import Event
from minisafe.session.stages import Stages
from minisafe.tokenizer import TextStream


@dataclass(frozen=True)
class Result:
    """One answer. `tokens` includes the end token, if there is one; `text` includes neither it nor
    a stop string.

    finish_reason: "stop" (end token), "stop_string", "length", "context", "time" or "cancelled".
    timings_ms: "prefill", the time to the first token; "total", the time to the last.
    """

    prompt_tokens: int
    tokens: tuple[int, ...]
    text: str
    finish_reason: str
    applied: Stages
    timings_ms: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "tokens": list(self.tokens),
            "text": self.text,
            "finish_reason": self.finish_reason,
            "applied": self.applied.to_json(),
            "timings_ms": {name: round(value, 3) for name, value in self.timings_ms.items()},
        }


@dataclass
class StopFilter:
    """Passes text on, ends before the first stop string, and never shows a part of one."""

    stops: Sequence[str]
    held: str = ""
    stopped: bool = False

    def push(self, text: str) -> str:
        """Append `text`; returns the text that can no longer be part of a stop string."""
        if self.stopped or not self.stops:
            return "" if self.stopped else text
        self.held += text
        found = [place for stop in self.stops if (place := self.held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self.held = self.held[: min(found)], ""
            return shown
        keep = max(
            (n for stop in self.stops for n in range(len(stop)) if self.held.endswith(stop[:n])),
            default=0,
        )
        cut = len(self.held) - keep
        shown, self.held = self.held[:cut], self.held[cut:]
        return shown

    def finish(self) -> str:
        """The text that was held back and is not part of a stop string."""
        shown, self.held = self.held, ""
        return shown


@dataclass
class Answer:
    """One row's answer while it grows: ids to text, stop strings, times."""

    stream: TextStream
    stops: StopFilter
    started: float
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish: str = "cancelled"
    ended: bool = False
    first_s: float = 0.0
    last_s: float = 0.0

    def push(self, event: Event) -> str:
        """Append an event's token; returns the text that is now certain."""
        piece = ""
        if event.id is not None:
            self.last_s = time.perf_counter() - self.started
            self.first_s = self.first_s or self.last_s
            self.tokens.append(event.id)
            if event.finish != "stop":  # the end token is not text
                piece = self.stops.push(self.stream.push(event.id))
        if event.finish is not None:
            self.finish = event.finish
            piece += self.stops.push(self.stream.finish())
            if not self.stops.stopped:
                piece += self.stops.finish()
        if self.stops.stopped:
            self.finish = "stop_string"
        self.ended = self.stops.stopped or event.finish is not None
        self.pieces.append(piece)
        return piece

    def result(self, prompt_tokens: int, applied: Stages) -> Result:
        timings = {"prefill": self.first_s * 1e3, "total": self.last_s * 1e3}
        text = "".join(self.pieces)
        return Result(prompt_tokens, tuple(self.tokens), text, self.finish, applied, timings)
