"""What is loaded, and what it makes of a text: ids by stream, room to read them, a generation."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from minisafe.engine import Generation, Request
from minisafe.errors import PromptError, SafetyError, SafetyWarning, SettingError
from minisafe.gate import Gate
from minisafe.guidance import SGDS, Guidance
from minisafe.lockstep import Lockstep, Stream
from minisafe.model import Llama
from minisafe.session.acted import Acted, what_acts
from minisafe.session.answer import Answer, StopFilter
from minisafe.session.asked import check_asked
from minisafe.session.faster import block_limit, make_generation
from minisafe.session.promise import check_numbers
from minisafe.session.settings import SETTABLE, Settings, resolve
from minisafe.tokenizer import ChatIds, Message, TextStream, Tokenizer
from minisafe.vectors import Steering

Kind = TypeVar("Kind", bound="Loaded")


class Running:
    """Generations under way, which any thread may cancel, and whether new ones may begin."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.generations: set[Generation] = set()
        self.closed = False

    @contextmanager
    def during(self, generation: Generation) -> Iterator[Generation]:
        """Within it, `cancel` ends this generation too."""
        with self.lock:
            self.check_open()
            self.generations.add(generation)
        try:
            yield generation
        finally:
            with self.lock:
                self.generations.discard(generation)

    def cancel(self) -> None:
        """End all answers under way before their next token."""
        with self.lock:
            for generation in self.generations:
                for row in range(len(generation.rows)):
                    generation.cancel(row)

    def close(self) -> None:
        self.closed = True
        self.cancel()

    def check_open(self) -> None:
        """Raise `SettingError` once `close` was called."""
        if self.closed:
            raise SettingError("the session is closed; load another")


@dataclass(eq=False, repr=False)
class Loaded:
    """Loaded models, tokenizer and settings. `Session` answers texts with it, `Chat` a
    conversation.

    streams: the base first. eos: ids that end an answer. kinds: of the streams after the base,
    "adapter", "checkpoint" or "system prompt". n_ids: how many ids all streams' models know.
    running: what can be cancelled, shared by all that share what is loaded.
    """

    settings: Settings
    streams: tuple[Stream, ...]
    tokenizer: Tokenizer
    eos: frozenset[int]
    guidance: Guidance
    steering: Steering | None
    kinds: tuple[str, ...]
    n_ids: int
    gate: Gate | None = None
    running: Running = field(default_factory=Running)

    @property
    def applied(self) -> Acted:
        """What safety acts on an answer that is guided."""
        return what_acts(self.settings, self.steering, self.guidance, self.kinds, self.gate)

    @property
    def model(self) -> Llama:
        return self.streams[0].model

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
        sampling = self.settings
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
        self.running.check_open()
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

    def with_settings(self: Kind, changes: Mapping[str, Any]) -> Kind:
        """The same that shares everything loaded, under other settings for the text to come.

        Raises `SettingError` for a name that needs a new load, or a value out of range.
        """
        for name in changes:
            if name not in SETTABLE:
                raise SettingError(
                    f"{name!r} cannot be changed now; expected one of {', '.join(SETTABLE)}"
                )
        settings, names = resolve(changes, vars(self.settings)), set(changes)
        check_asked(settings, dict.fromkeys(changes, "flag"))
        guidance, steering, gate = self.guidance, self.steering, self.gate
        if names & {"sgds_lambda", "margin"}:
            guidance = self._guidance_under(settings)
        if names & {"sa_scale", "sa_positions"}:
            steering = self._steering_under(settings)
        if gate is not None and names & {"sa_scale", "sa_positions", "system"}:
            warnings.warn("the gate is off: it was calibrated for other settings", SafetyWarning,
                          stacklevel=2)  # fmt: skip
            gate = None
        check_numbers(settings, steering, guidance)
        return replace(self, settings=settings, guidance=guidance, steering=steering, gate=gate)

    def _guidance_under(self, settings: Settings) -> Guidance:
        if not isinstance(self.guidance, SGDS) or settings.sgds_lambda == 0:
            raise SettingError("guidance cannot be switched here; start again with --sgds-lambda")
        return settings.guidance()

    def _steering_under(self, settings: Settings) -> Steering:
        if self.steering is None or settings.sa_scale == 0:
            raise SettingError("steering cannot be switched here; start again with --sa-scale")
        return Steering(self.steering.vectors, settings.sa_scale, settings.sa_positions)


def user(content: str) -> Message:
    """A user's turn."""
    return {"role": "user", "content": content}
