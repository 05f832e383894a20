"""What `load()` returns: text in, text out; and what safety acts on it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from minisafe.answer import Answer, Result, StopFilter
from minisafe.checkpoint import load_adapter, load_model
from minisafe.compiled import check_compile, compile_streams
from minisafe.editing import merge_adapter
from minisafe.engine import Generation, Request, Row
from minisafe.errors import PromptError, SafetyError, SettingError
from minisafe.gate import Calibration, Gate
from minisafe.guidance import SGDS, Guidance, Plain
from minisafe.lockstep import Lockstep, Stream
from minisafe.model import Llama
from minisafe.parts import (
    SafetyWarning,
    check_device,
    made_for,
    make_gate,
    make_guidance,
    make_steering,
    make_streams,
)
from minisafe.prepare import prepare
from minisafe.profile import (
    Profile,
    Settings,
    decide_safe,
    default_profile,
    from_generation_config,
    load_profile,
    resolve,
)
from minisafe.speculate import block_limit, make_generation
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
        gate: Gate | None = None,
    ):
        self.settings, self.streams, self.tokenizer, self.eos = settings, streams, tokenizer, eos
        self.guidance, self.steering, self.applied = guidance, steering, applied
        self.n_ids, self.gate = n_ids, gate

    @property
    def model(self) -> Llama:
        return self.streams[0].model

    def stream(self, prompt: str, chat: bool = False) -> Iterator[str]:
        """The answer's text, piece by piece. `chat` puts the prompt into the chat template."""
        for _, piece in self.run([prompt], chat=chat):
            if isinstance(piece, str):
                yield piece

    def generate(
        self, prompts: Sequence[str], chat: bool = False, batch_size: int = 8, first: int = 0
    ) -> list[Result]:
        """Answers of several prompts, in their order; batches hold prompts of any lengths.

        `first` is the number of the first prompt: with the seed, a prompt's number fixes its draws.
        """
        found: dict[int, Result] = {}
        for index, piece in self.run(prompts, chat=chat, batch_size=batch_size, first=first):
            if isinstance(piece, Result):
                found[index] = piece
        return [found[index] for index in range(first, first + len(prompts))]

    def chat(self) -> Chat:
        """A conversation that remembers its turns."""
        from minisafe.chat import Chat

        return Chat(self)

    def run(
        self, prompts: Sequence[str], chat: bool = False, batch_size: int = 8, first: int = 0
    ) -> Iterator[tuple[int, str | Result]]:
        """(number of the prompt, text piece) as they come, and each prompt's `Result` at its end.

        Numbers count from `first`.

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
            yield from self._run_batch(batch, first + start, chat)

    def _run_batch(
        self, batch: Sequence[tuple[tuple[int, ...], ...]], start: int, chat: bool
    ) -> Iterator[tuple[int, str | Result]]:
        generation = self.generation(batch, start, self.settings.max_new_tokens, gated=chat)
        answers = [self.answer(() if chat else ids[0]) for ids in batch]
        for event in generation:
            answer = answers[event.row]
            piece = answer.push(event)
            if piece:
                yield start + event.row, piece
            if answer.stops.stopped:
                generation.cancel(event.row, "stop_string")
            if answer.stops.stopped or event.finish is not None:
                applied = acted(self.applied, self.gate, generation.rows[event.row])
                yield start + event.row, answer.result(len(batch[event.row][0]), applied)

    def generation(
        self,
        batch: Sequence[tuple[tuple[int, ...], ...]],
        start: int,
        max_new_tokens: int,
        gated: bool = False,
    ) -> Generation:
        """A fresh generation for encoded prompts, the first of which has the number `start`.

        gated: they are chats of one turn, as the gate was calibrated on.
        """
        sampling = self.settings.sampling()
        requests = [
            Request(ids, self.spans(ids[0]), sampling, max_new_tokens, start + row, gated)
            for row, ids in enumerate(batch)
        ]
        longest = max(len(ids) for prompts in batch for ids in prompts)
        lockstep = self.lockstep(len(batch), longest + max_new_tokens)
        return make_generation(
            lockstep, self.guidance, requests, self.steering, self.eos, self.gate, self.most_drafts
        )

    @property
    def most_drafts(self) -> int:
        """Most tokens a block of drafts for these streams and settings, 0 for plain lockstep."""
        return block_limit(self.settings.speculate, self.streams)

    def variations(
        self, prompts: Sequence[str], chat: bool = True, batch_size: int = 8
    ) -> list[float]:
        """Total variation, 0 to 1, between steered base and expert at each answer's first token.

        Raises `SafetyError` where nothing guides.
        """
        if self.guidance.n_streams < 2:
            raise SafetyError("no expert guides here, so there is nothing to compare the base with")
        found: list[float] = []
        for start in range(0, len(prompts), batch_size):
            encoded = [self.encode(each, chat) for each in prompts[start : start + batch_size]]
            for ids in encoded:
                self.check_fits(ids)
            generation = self.generation(encoded, start, 1)
            for _ in generation:
                pass
            found += [row.variation for row in generation.rows if row.variation is not None]
        return found

    def answer(self, context: Sequence[int]) -> Answer:
        """An empty answer that follows `context` ids as running text."""
        stream = TextStream(self.tokenizer, context)
        return Answer(stream, StopFilter(self.settings.stop), time.perf_counter())

    def lockstep(self, rows: int, capacity: int) -> Lockstep:
        """Empty streams for `rows` prompts, with room for `capacity` tokens each."""
        limit = min(stream.model.config.max_positions for stream in self.streams)
        cache_dtype = self.settings.cache_dtype
        return Lockstep(
            self.streams, rows, min(capacity, limit), self.n_ids, cache_dtype=cache_dtype
        )

    def spans(self, prompt: Sequence[int]) -> tuple[tuple[int, int | None], ...]:
        """Where a fresh prompt and its answer are steered."""
        return () if self.steering is None else self.steering.spans([(len(prompt), None)])

    def encode(self, prompt: str, chat: bool) -> tuple[tuple[int, ...], ...]:
        """Ids of a prompt, by stream."""
        if not prompt:
            raise PromptError("the prompt is empty; expected some text")
        if chat:
            return tuple(chat_ids.ids for chat_ids in self.encode_chat([user(prompt)]))
        if any(system is not None for system in self.own_systems()):
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
        base, own = self.settings.system, self.own_systems()
        systems = [base, *(base if each is None else each for each in own)]
        found: dict[str | None, ChatIds] = {}
        for system in systems:
            if system not in found:
                first: list[Message] = [{"role": "system", "content": system}] if system else []
                kept = {number + len(first): ids for number, ids in (answers or {}).items()}
                found[system] = self.tokenizer.encode_chat([*first, *messages], kept)
        for system in own:
            if system is not None and found[systems[0]].ids == found[system].ids:
                raise SafetyError(
                    "the expert's system prompt changes nothing, so there is nothing to guide by: "
                    "the chat template leaves it out, or it says what the base's says"
                )
        return tuple(found[system] for system in systems)

    def own_systems(self) -> list[str | None]:
        """The experts' own system prompts, by stream after the base."""
        settings = self.settings
        return [settings.expert_system, settings.anti_system][: len(self.streams) - 1]

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
        guidance, steering, gate = self.guidance, self.steering, self.gate
        if {"sgds_lambda", "margin"} & set(changes):
            if not isinstance(guidance, SGDS) or settings.sgds_lambda == 0:
                raise SettingError(
                    "guidance cannot be switched here; start again with --sgds-lambda"
                )
            guidance = make_guidance(settings)
        if {"sa_scale", "sa_positions"} & set(changes):
            if steering is None or settings.sa_scale == 0:
                raise SettingError("steering cannot be switched here; start again with --sa-scale")
            steering = Steering(steering.vectors, settings.sa_scale, settings.sa_positions)
        if gate is not None and {"sa_scale", "sa_positions", "system"} & set(changes):
            warnings.warn("the gate is off: it was calibrated for other settings", SafetyWarning,
                          stacklevel=2)  # fmt: skip
            gate = None
        applied = dict(self.applied)
        if gate is None:
            applied.pop("gate", None)
        if isinstance(guidance, SGDS):
            applied["sgds"] = applied["sgds"] | {"lambda": guidance.lam, "margin": guidance.margin}
        if steering is not None:
            applied["sa"] = applied["sa"] | {
                "scale": steering.scale,
                "positions": steering.positions,
            }
        return Session(
            settings, self.streams, self.tokenizer, self.eos, guidance, steering, applied,
            self.n_ids, gate,
        )  # fmt: skip


def acted(applied: Mapping[str, Any], gate: Gate | None, row: Row) -> Mapping[str, Any]:
    """What acted on one answer: where the gate stayed shut, nothing did."""
    if row.drafted:
        counts = {"drafted": row.drafted, "accepted": row.accepted}
        applied = dict(applied) | {"speculation": counts}
    if gate is None or not row.request.gated or row.variation is None:
        return {name: value for name, value in applied.items() if name != "gate"}
    is_open = gate.opens(row.variation)
    seen = {"threshold": gate.threshold, "variation": round(row.variation, 6), "open": is_open}
    return dict(applied) | ({} if is_open else {"sa": None, "sgds": None}) | {"gate": seen}


def user(content: str) -> Message:
    """A user's turn."""
    return {"role": "user", "content": content}


SETTABLE = (
    "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "presence_penalty",
    "frequency_penalty", "seed", "stop", "system", "sgds_lambda", "margin", "sa_scale",
    "sa_positions", "speculate",
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
    settings, vector, eos, calibration = gather(profile, overrides or {})
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    assert settings.base is not None
    if settings.compile:
        check_compile(settings.device, settings.weights)
    model = load_model(settings.base, settings.dtype, check_device(settings.device))
    if settings.edit is not None:
        merge_adapter(model, load_adapter(settings.edit, model))
    tokenizer = load_tokenizer(settings.base)
    check_tokenizer(tokenizer, model.config.vocab_size)
    steering = None
    if settings.safe and settings.sa_scale != 0:
        assert vector is not None
        steering = make_steering(settings, vector, model, tokenizer)
    streams, kinds = make_streams(settings, model, tokenizer)
    for stream in streams:
        prepare(stream.model, "plain" if settings.compile else settings.weights)
    if settings.compile:
        compile_streams(streams)
    gate = None
    if calibration is not None or settings.gate:
        gate = make_gate(settings, calibration, made_for(settings, steering))
    guidance = make_guidance(settings)
    applied = applied_by(settings, steering, guidance, kinds, gate)
    n_ids = min(stream.model.config.vocab_size for stream in streams)
    return Session(settings, streams, tokenizer, eos, guidance, steering, applied, n_ids, gate)


def applied_by(
    settings: Settings,
    steering: Steering | None,
    guidance: Guidance,
    kinds: Sequence[str],
    gate: Gate | None,
) -> dict[str, Any]:
    """What safety acts, as `--json` states it; `rule` is there for rules other than sGDS only."""
    applied: dict[str, Any] = {"safe": bool(settings.safe), "sa": None, "sgds": None}
    if steering is not None:
        applied["sa"] = {
            "vector": str(settings.vector), "layers": sorted(steering.vectors),
            "scale": steering.scale, "positions": steering.positions,
        }  # fmt: skip
    if isinstance(guidance, SGDS):
        applied["sgds"] = {
            "expert": kinds[0], "from": str(settings.expert or settings.expert_system),
            "lambda": guidance.lam, "margin": guidance.margin,
        }  # fmt: skip
    elif not isinstance(guidance, Plain):
        applied["rule"] = {"name": settings.rule, **vars(guidance), "streams": list(kinds)}
    if gate is not None:
        applied["gate"] = {"threshold": gate.threshold}
    return applied


def gather(
    profile: str | Path | None, flags: Mapping[str, Any]
) -> tuple[Settings, SafetyVector | None, frozenset[int], Calibration | None]:
    """Settings from every place that has any, the vector that they name, the end ids, the gate."""
    if profile is None and flags.get("base") is None:
        profile = default_profile()
    found = load_profile(profile) if profile is not None else Profile()
    given = dict(found.settings)
    for one, other in (("expert", "expert_system"), ("anti_expert", "anti_system")):
        for flag, replaced in ((one, other), (other, one)):
            if flags.get(flag) is not None and flags.get(replaced) is None:
                given.pop(replaced, None)  # a flag for one kind replaces the profile's other
    first = resolve(flags, given)
    if first.base is None:
        raise SettingError("no base model; give one with --base, or a profile that names one")
    vector = load_vector(first.vector) if first.vector is not None else None
    stated = {} if vector is None else vector.metadata
    made_with = {name: stated[name] for name in ("sa_scale", "sa_positions") if name in stated}
    sampling, eos = from_generation_config(first.base)
    settings = resolve(flags, given, made_with, sampling)
    return replace(settings, safe=decide_safe(settings)), vector, eos, found.calibration
