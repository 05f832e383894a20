"""What `load()` returns: text in, text out; and what safety acts on it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from minisafe.checkpoint import load_adapter, load_model
from minisafe.editing import merge_adapter
from minisafe.engine import Event, Generation, Guidance, Request
from minisafe.errors import PromptError, SafetyError, SettingError
from minisafe.guidance import SGDS, Plain
from minisafe.lockstep import Lockstep, Stream
from minisafe.model import Llama
from minisafe.profile import (
    Settings,
    check_device,
    decide_safe,
    default_profile,
    from_generation_config,
    load_profile,
    make_expert,
    make_steering,
    resolve,
)
from minisafe.tokenizer import (
    ChatIds,
    Message,
    TextStream,
    Tokenizer,
    check_tokenizer,
    load_tokenizer,
)
from minisafe.vectors import SafetyVector, Steering, load_vector

if TYPE_CHECKING:
    from minisafe.chat import Chat


@dataclass(frozen=True)
class Result:
    """One answer. `tokens` has the end token, if one came; `text` has neither it nor a stop string.

    finish_reason: "stop" (end token), "stop_string", "length", "context" or "cancelled".
    timings_ms: "prefill" until the first token was known, "total" until the last.
    """

    prompt_tokens: int
    tokens: tuple[int, ...]
    text: str
    finish_reason: str
    applied: Mapping[str, Any]
    timings_ms: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "tokens": list(self.tokens),
            "text": self.text,
            "finish_reason": self.finish_reason,
            "applied": dict(self.applied),
            "timings_ms": {name: round(value, 3) for name, value in self.timings_ms.items()},
        }


class StopFilter:
    """Passes text on, but ends before the first stop string and never shows a part of one."""

    def __init__(self, stops: Sequence[str]):
        self.stops = tuple(stops)
        self.held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that can no longer be a part of a stop string."""
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
        """What was held back and turned out to be no stop string."""
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
    first_s: float = 0.0
    last_s: float = 0.0

    def push(self, event: Event) -> str:
        """The text that an event makes certain."""
        piece = ""
        if event.id is not None:
            self.last_s = time.perf_counter() - self.started
            self.first_s = self.first_s or self.last_s
            self.tokens.append(event.id)
            if event.finish != "stop":  # the end token is no text
                piece = self.stops.push(self.stream.push(event.id))
        if event.finish is not None:
            self.finish = event.finish
            piece += self.stops.push(self.stream.finish())
            if not self.stops.stopped:
                piece += self.stops.finish()
        if self.stops.stopped:
            self.finish = "stop_string"
        self.pieces.append(piece)
        return piece

    def result(self, prompt_tokens: int, applied: Mapping[str, Any]) -> Result:
        timings = {"prefill": self.first_s * 1e3, "total": self.last_s * 1e3}
        text = "".join(self.pieces)
        return Result(prompt_tokens, tuple(self.tokens), text, self.finish, applied, timings)


class Session:
    """Loaded models, tokenizer and settings. Make one with `load`."""

    def __init__(
        self,
        settings: Settings,
        streams: tuple[Stream, ...],
        tokenizer: Tokenizer,
        eos: frozenset[int],
        guidance: Guidance,
        steering: Steering | None,
        applied: Mapping[str, Any],
        n_ids: int,
    ):
        self.settings, self.streams, self.tokenizer, self.eos = settings, streams, tokenizer, eos
        self.guidance, self.steering, self.applied = guidance, steering, applied
        self.n_ids = n_ids

    @property
    def model(self) -> Llama:
        return self.streams[0].model

    def stream(self, prompt: str, chat: bool = False) -> Iterator[str]:
        """The answer's text, piece by piece. `chat` puts the prompt into the chat template."""
        for _, piece in self.run([prompt], chat=chat):
            if isinstance(piece, str):
                yield piece

    def generate(
        self, prompts: Sequence[str], chat: bool = False, batch_size: int = 8
    ) -> list[Result]:
        """Answers of several prompts, in their order; batches hold prompts of any lengths."""
        found: dict[int, Result] = {}
        for index, piece in self.run(prompts, chat=chat, batch_size=batch_size):
            if isinstance(piece, Result):
                found[index] = piece
        return [found[index] for index in range(len(prompts))]

    def chat(self) -> Chat:
        """A conversation that remembers its turns."""
        from minisafe.chat import Chat

        return Chat(self)

    def run(
        self, prompts: Sequence[str], chat: bool = False, batch_size: int = 8
    ) -> Iterator[tuple[int, str | Result]]:
        """(number of the prompt, text piece) as they come, and each prompt's `Result` at its end.

        Raises `PromptError` before anything is answered if a prompt cannot be.
        """
        if batch_size < 1:
            raise SettingError(f"batch_size is {batch_size}; expected 1 or more")
        if isinstance(prompts, str):
            raise PromptError("prompts are one text; expected a list of texts")
        encoded = [self.encode(prompt, chat) for prompt in prompts]
        for ids in encoded:
            self.check_fits(ids)
        for start in range(0, len(prompts), batch_size):
            batch = encoded[start : start + batch_size]
            yield from self._run_batch(batch, start, chat)

    def _run_batch(
        self, batch: Sequence[tuple[tuple[int, ...], ...]], start: int, chat: bool
    ) -> Iterator[tuple[int, str | Result]]:
        settings = self.settings
        requests = [
            Request(
                ids, self.spans(ids[0]), settings.sampling(), settings.max_new_tokens, start + row
            )
            for row, ids in enumerate(batch)
        ]
        longest = max(len(ids) for prompts in batch for ids in prompts)
        lockstep = self.lockstep(len(batch), longest + settings.max_new_tokens)
        generation = Generation(lockstep, self.guidance, requests, self.steering, self.eos)
        answers = [self.answer(() if chat else ids[0]) for ids in batch]
        for event in generation:
            answer = answers[event.row]
            piece = answer.push(event)
            if piece:
                yield start + event.row, piece
            if answer.stops.stopped:
                generation.cancel(event.row, "stop_string")
            if answer.stops.stopped or event.finish is not None:
                result = answer.result(len(batch[event.row][0]), self.applied)
                yield start + event.row, result

    def answer(self, context: Sequence[int]) -> Answer:
        """An empty answer that follows `context` ids as running text."""
        stream = TextStream(self.tokenizer, context)
        return Answer(stream, StopFilter(self.settings.stop), time.perf_counter())

    def lockstep(self, rows: int, capacity: int) -> Lockstep:
        """Empty streams for `rows` prompts, with room for `capacity` tokens each."""
        limit = min(stream.model.config.max_positions for stream in self.streams)
        return Lockstep(self.streams, rows, min(capacity, limit), self.n_ids)

    def spans(self, prompt: Sequence[int]) -> tuple[tuple[int, int | None], ...]:
        """Where a fresh prompt and its answer are steered."""
        return () if self.steering is None else self.steering.spans([(len(prompt), None)])

    def encode(self, prompt: str, chat: bool) -> tuple[tuple[int, ...], ...]:
        """Ids of a prompt, by stream."""
        if not prompt:
            raise PromptError("the prompt is empty; expected some text")
        if chat:
            return tuple(chat_ids.ids for chat_ids in self.encode_chat([user(prompt)]))
        if self.settings.expert_system is not None and len(self.streams) > 1:
            raise PromptError(
                "an expert under another system prompt needs the chat template; use --chat"
            )
        ids = tuple(self.tokenizer.encode(prompt))
        if not ids:
            raise PromptError("the prompt has no tokens; expected some text")
        return (ids,) * len(self.streams)

    def encode_chat(
        self, messages: Sequence[Message], answers: Mapping[int, Sequence[int]] | None = None
    ) -> tuple[ChatIds, ...]:
        """Ids of a conversation, by stream; each stream has its own system prompt, if any."""
        systems = [self.settings.system] * len(self.streams)
        own = len(self.streams) > 1 and self.settings.expert_system is not None
        if own:
            systems[1] = self.settings.expert_system
        found: dict[str | None, ChatIds] = {}
        for system in systems:
            if system not in found:
                first: list[Message] = [{"role": "system", "content": system}] if system else []
                kept = {number + len(first): ids for number, ids in (answers or {}).items()}
                found[system] = self.tokenizer.encode_chat([*first, *messages], kept)
        if own and found[systems[0]].ids == found[systems[1]].ids:
            raise SafetyError(
                "the expert's system prompt changes nothing, so there is nothing to guide by: the "
                "chat template leaves it out, or it says what the base's says"
            )
        return tuple(found[system] for system in systems)

    def check_fits(self, prompts: Sequence[Sequence[int]]) -> None:
        """Raise `PromptError` where a prompt is longer than the context."""
        limit = min(stream.model.config.max_positions for stream in self.streams)
        longest = max(map(len, prompts))
        if longest > limit:
            raise PromptError(f"the prompt has {longest} tokens; the model's context holds {limit}")

    def with_settings(self, changes: Mapping[str, Any]) -> Session:
        """A session that shares everything loaded, under other settings for the text to come.

        Raises `SettingError` for a name that needs a new load, or a value out of range.
        """
        for name in changes:
            if name not in SETTABLE:
                raise SettingError(
                    f"{name!r} cannot be changed now; expected one of {', '.join(SETTABLE)}"
                )
        settings = resolve(changes, vars(self.settings))
        guidance, steering = self.guidance, self.steering
        applied = dict(self.applied)
        if {"sgds_lambda", "margin"} & set(changes):
            if not isinstance(guidance, SGDS) or settings.sgds_lambda == 0:
                raise SettingError(
                    "guidance cannot be switched here; start again with --sgds-lambda"
                )
            guidance = SGDS(settings.sgds_lambda, settings.margin)
            applied["sgds"] = applied["sgds"] | {"lambda": guidance.lam, "margin": guidance.margin}
        if {"sa_scale", "sa_positions"} & set(changes):
            if steering is None or settings.sa_scale == 0:
                raise SettingError("steering cannot be switched here; start again with --sa-scale")
            steering = Steering(steering.vectors, settings.sa_scale, settings.sa_positions)
            applied["sa"] = applied["sa"] | {
                "scale": steering.scale,
                "positions": steering.positions,
            }
        return Session(
            settings, self.streams, self.tokenizer, self.eos, guidance, steering, applied,
            self.n_ids,
        )  # fmt: skip


def user(content: str) -> Message:
    """A user's turn."""
    return {"role": "user", "content": content}


SETTABLE = (
    "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "presence_penalty",
    "frequency_penalty", "seed", "stop", "system", "sgds_lambda", "margin", "sa_scale",
    "sa_positions",
)  # fmt: skip


# ---- loading -----------------------------------------------------------------------------------


def load(profile: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Session:
    """Load a model and what makes it safe.

    Args:
        profile: a profile file or its directory. Without one, and without `base`, the shipped
            profile is taken.
        overrides: fields of `Settings` by name, such as {"sgds_lambda": 0.9}; they precede the
            profile's.

    Raises:
        SafetyError: safe decoding was asked for and a part of it is missing.
        BadInput: a file or setting cannot be used; the message says which and why.
    """
    settings, vector, eos = gather(profile, overrides or {})
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    assert settings.base is not None
    model = load_model(settings.base, settings.dtype, check_device(settings.device))
    if settings.edit is not None:
        merge_adapter(model, load_adapter(settings.edit, model))
    tokenizer = load_tokenizer(settings.base)
    check_tokenizer(tokenizer, model.config.vocab_size)
    applied: dict[str, Any] = {"safe": bool(settings.safe), "sa": None, "sgds": None}
    steering = None
    if settings.safe and settings.sa_scale != 0:
        assert vector is not None
        steering = make_steering(settings, vector, model, tokenizer)
        applied["sa"] = {
            "vector": str(settings.vector), "layers": sorted(steering.vectors),
            "scale": steering.scale, "positions": steering.positions,
        }  # fmt: skip
    guidance: Guidance = Plain()
    streams: tuple[Stream, ...] = (Stream(model),)
    if settings.safe and settings.sgds_lambda > 0:
        expert, kind = make_expert(settings, model, tokenizer)
        streams = (Stream(model), expert)
        guidance = SGDS(settings.sgds_lambda, settings.margin)
        applied["sgds"] = {
            "expert": kind, "from": str(settings.expert or settings.expert_system),
            "lambda": guidance.lam, "margin": guidance.margin,
        }  # fmt: skip
    n_ids = min(stream.model.config.vocab_size for stream in streams)
    return Session(settings, streams, tokenizer, eos, guidance, steering, applied, n_ids)


def gather(
    profile: str | Path | None, flags: Mapping[str, Any]
) -> tuple[Settings, SafetyVector | None, frozenset[int]]:
    """Settings from every place that has any, the vector that they name, and the end ids."""
    if profile is None and flags.get("base") is None:
        profile = default_profile()
    given = dict(load_profile(profile).settings) if profile is not None else {}
    for one, other in (("expert", "expert_system"), ("expert_system", "expert")):
        if flags.get(one) is not None and flags.get(other) is None:
            given.pop(other, None)  # a flag for one kind replaces the profile's other
    first = resolve(flags, given)
    if first.base is None:
        raise SettingError("no base model; give one with --base, or a profile that names one")
    vector = load_vector(first.vector) if first.vector is not None else None
    stated = {} if vector is None else vector.metadata
    made_with = {name: stated[name] for name in ("sa_scale", "sa_positions") if name in stated}
    sampling, eos = from_generation_config(first.base)
    settings = resolve(flags, given, made_with, sampling)
    return replace(settings, safe=decide_safe(settings)), vector, eos
