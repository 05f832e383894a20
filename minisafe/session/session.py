"""Text in, text out: what `load` returns, and the one loop that all answers share."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from minisafe.deadline import Clock, Deadline
from minisafe.divergence import total_variation
from minisafe.engine import Generation, Request
from minisafe.errors import PromptError, SafetyError, SettingError
from minisafe.gate import Gate
from minisafe.guidance import Plain, Rule
from minisafe.lockstep import Lockstep, Stream
from minisafe.model import Llama
from minisafe.probe import Probe
from minisafe.session.alone import without_context
from minisafe.session.answer import Answer, Result, StopFilter
from minisafe.session.beginnings import beginnings
from minisafe.session.changing import changed
from minisafe.session.chat import Chat
from minisafe.session.chat_prompt import ChatPrompt, EncodedPrompt
from minisafe.session.draws import draws_of
from minisafe.session.encoding import encode_text, encode_turns
from minisafe.session.faster import Engine
from minisafe.session.others import fronts
from minisafe.session.own_rule import with_rule
from minisafe.session.running import Running
from minisafe.session.settings import Settings
from minisafe.session.stages import AloneState, Stages, active_stages
from minisafe.slots import Slot, Span
from minisafe.tokenizer import ChatIds, Message, TextStream, Tokenizer
from minisafe.vectors import Steering, moved

if TYPE_CHECKING:
    from minisafe.session.traced import Trace


@dataclass(eq=False, repr=False)
class Session:
    """What is loaded, and the methods that answer texts with it. Make one with `load`; as a context
    manager, it closes at the end of the block.

    streams: the base first. eos: ids that end an answer. kinds: of the streams after the base,
    "adapter", "checkpoint", "system prompt" or "demonstrations". running: the answers in progress,
    shared by all sessions that share what is loaded. engine: makes generations, `Generation` or a
    faster one. shots: demonstrations that only the anchor reads. alone: the gate that decides
    whether a part is harmful by itself (`alone.py`). probe: what it asks; None: the variation.
    clock: measures `max_seconds`.
    """

    settings: Settings
    streams: tuple[Stream, ...]
    tokenizer: Tokenizer
    eos: frozenset[int]
    rule: Rule
    steering: Steering | None
    kinds: tuple[str, ...]
    gate: Gate | None = None
    running: Running = field(default_factory=Running)
    engine: Engine = Generation
    shots: tuple[Message, ...] = ()
    alone: Gate | None = None
    probe: Probe | None = None
    clock: Clock = time.monotonic

    @property
    def leaves_harmless(self) -> bool:
        """Whether an answer is left to the base if no part of what the user says is harmful."""
        return self.alone is not None and bool(self.settings.gate)

    @property
    def n_ids(self) -> int:
        """How many token ids the models of all streams have in common."""
        return min(stream.model.config.vocab_size for stream in self.streams)

    @property
    def limit(self) -> int:
        """Tokens that fit every stream's context, and the setting `context`."""
        own = min(stream.model.config.max_positions for stream in self.streams)
        return min(own, self.settings.context or own)

    @property
    def stages(self) -> Stages:
        """The safety stages that are active for an answer that is guided."""
        found = active_stages(self.settings, self.steering, self.rule, self.kinds, self.gate)
        if self.alone is None:
            return found
        return replace(found, alone=AloneState(self.alone.threshold, left=self.leaves_harmless))

    @property
    def model(self) -> Llama:
        return self.streams[0].model

    @property
    def one_text(self) -> bool:
        """Whether all streams read the same ids: none is behind its own prompt."""
        return not set(self.kinds) & {"system prompt", "demonstrations"}

    # ---- texts -----------------------------------------------------------------------------

    def stream(self, prompt: str | ChatPrompt, chat: bool = False) -> Iterator[str]:
        """The answer's text, piece by piece; see `run`."""
        for _, piece in self.run([prompt], chat=chat):
            if isinstance(piece, str):
                yield piece

    def generate(
        self,
        prompts: Sequence[str | ChatPrompt],
        chat: bool = False,
        batch_size: int = 8,
        first: int = 0,
        draws: Sequence[int] | None = None,
    ) -> list[Result]:
        """Answers to several prompts, in prompt order; the prompts of a batch may differ in length.
        See `run`."""
        found: dict[int, Result] = {}
        for index, piece in self.run(prompts, chat, batch_size, first, draws):
            if isinstance(piece, Result):
                found[index] = piece
        return [found[index] for index in range(first, first + len(prompts))]

    def cancel(self) -> None:
        """End every answer in progress (of `generate`, `stream`, `run` and chats) before its next
        token, from any thread. Their finish reason is "cancelled"."""
        self.running.cancel()

    def close(self) -> None:
        """Cancel all answers in progress and begin no more; what was loaded can then be freed."""
        self.running.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def chat(self) -> Chat:
        """A conversation that remembers its turns."""
        self.running.check_open()
        return Chat(self)

    def run(
        self,
        prompts: Sequence[str | ChatPrompt],
        chat: bool = False,
        batch_size: int = 8,
        first: int = 0,
        draws: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, str | Result]]:
        """Yields (prompt's number, text piece) as they come, and each prompt's `Result` at its end.

        prompts: texts, which `chat` puts into the chat template, and conversations. An answer that
        begins with a prefill is what follows it. Numbers count from `first`. draws: for each
        prompt, the number that fixes its draws, with the seed; by default its own number. The
        prompts of a batch are read together, so `max_seconds` begins for all of them at once. Under
        a `memory_limit` every prompt is answered by itself.

        Raises `PromptError` if a prompt cannot be answered, before any is.
        """
        if batch_size < 1:
            raise SettingError(f"batch_size is {batch_size}; expected 1 or more")
        if isinstance(prompts, str):
            raise PromptError("prompts is a single text; expected a list of texts")
        numbers, since = draws_of(len(prompts), first, draws), self.running.cancels
        encoded = self.encode_whole(prompts, chat)
        rows = batch_size if self.settings.memory_limit is None else 1
        for start in range(0, len(prompts), rows):
            deadline, own = self.new_deadline(), slice(start, start + rows)
            batch = without_context(self, prompts[own], chat, encoded[own], batch_size)
            requests = [
                self.new_request(each, number, deadline)
                for each, number in zip(batch, numbers[own], strict=True)
            ]
            for n, piece in self.results(requests, [each.context for each in batch], since):
                yield first + start + n, piece
            since = self.running.cancels

    def trace(
        self, prompt: str | ChatPrompt, chat: bool = True, index: int = 0, top: int = 20
    ) -> Trace:
        """The answer to a prompt, to be watched: iterate over it for its steps, or over its
        `lines()` for JSON objects (docs/trace.md).

        index: the number that fixes the draws, with the seed. top: how many of each stream's
        likeliest tokens a step keeps. Raises `PromptError`, or `SettingError` for `top` below 1.
        """
        from minisafe.session.traced import Trace  # here, so that no other answer pays for it

        return Trace(self, prompt, chat, index, top)

    def variations(
        self, prompts: Sequence[str | ChatPrompt], chat: bool = True, batch_size: int = 8
    ) -> list[float]:
        """Total variation, 0 to 1, between steered base (or anchor) and expert at each answer's
        first token.

        Raises `SafetyError` if there is no expert.
        """
        if self.rule.n_streams < 2:
            raise SafetyError("there is no expert to compare the base with; give one")
        chosen = self.rule.drawn_from
        found = [0.0] * len(prompts)
        for numbers, first in beginnings(self, prompts, chat, batch_size):
            apart = total_variation(first[:, chosen], first[:, 1]).tolist()
            for number, value in zip(numbers, apart, strict=True):
                found[number] = value
        return found

    # ---- answers ---------------------------------------------------------------------------

    def new_deadline(self) -> Deadline | None:
        """When an answer's time is over that begins now; None if it has no limit."""
        return Deadline.after(self.settings.max_seconds, self.clock)

    def new_request(
        self, prompt: EncodedPrompt, index: int = 0, deadline: Deadline | None = None
    ) -> Request:
        """A request for a new prompt. index: its number; seed and index fix the draws. deadline: by
        default that of an answer which begins now."""
        settings = self.settings
        spans = () if prompt.left else self.spans(prompt.ids[0], prompt.answers)
        return Request(
            prompt.ids, spans, settings, settings.max_new_tokens, index, prompt.gated,
            alone=prompt.alone, left=prompt.left, deadline=deadline or self.new_deadline(),
        )  # fmt: skip

    def results(
        self, requests: Sequence[Request], contexts: Sequence[Sequence[int]], since: int
    ) -> Iterator[tuple[int, str | Result]]:
        """Yields (request's place, text piece) as they come, and each one's `Result` at its end.

        contexts: per request, the ids of the text that the answer continues; empty in a chat.
        since: as in `Running.during`.
        """
        generation = self.new_generation(requests)
        answers = [self.new_answer(context) for context in contexts]
        for number, piece in self.grow(generation, answers, since):
            request, answer = requests[number], answers[number]
            if piece:
                yield number, piece
            if answer.ended:
                acted = self.stages.on_answer(generation.states[number], self.gate)
                yield number, answer.result(len(request.prompts[0]), acted)

    def new_generation(
        self, requests: Sequence[Request], lockstep: Lockstep | None = None
    ) -> Generation:
        """The generation that answers the requests. lockstep: streams that may have read part of
        each text already; None: new ones."""
        if lockstep is None:
            longest = max(len(ids) for request in requests for ids in request.prompts)
            longest += max(request.max_new_tokens or 0 for request in requests)
            lockstep = self.new_lockstep(len(requests), longest)
        return self.engine(lockstep, self.rule, requests, self.steering, self.eos, self.gate)

    def grow(
        self, generation: Generation, answers: Sequence[Answer], since: int | None = None
    ) -> Iterator[tuple[int, str]]:
        """Push every event of a generation to its answer; yields (request's number in `generation`,
        text that is now certain).

        An answer ends at a stop string. While this runs, `cancel` ends all answers. since: as in
        `Running.during`.
        """
        with self.running.during(generation, since):
            for event in generation:
                answer = answers[event.request]
                piece = answer.push(event)
                if answer.stops.stopped:
                    generation.cancel(event.request, "stop_string")
                yield event.request, piece

    def new_answer(self, context: Sequence[int]) -> Answer:
        """An empty answer that continues the text of the `context` ids."""
        stream = TextStream(self.tokenizer, context)
        return Answer(stream, StopFilter(self.settings.stop), time.perf_counter())

    def new_lockstep(self, rows: int, capacity: int) -> Lockstep:
        """Empty streams for `rows` prompts, with room for `capacity` tokens each."""
        kept, limit = self.settings.cache_dtype, self.limit
        return Lockstep(self.streams, rows, capacity, self.n_ids, cache_dtype=kept, limit=limit)

    def spans(
        self, prompt: Sequence[int], answers: Sequence[tuple[int, int | None]] | None = None
    ) -> tuple[Span, ...]:
        """Where a new prompt and its answer are steered. answers: the places of answers in it, the
        last one open; by default one that follows the prompt."""
        if self.steering is None:
            return ()
        return self.steering.spans(answers or [(len(prompt), None)])

    def slots(
        self,
        row: int,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[tuple[int, int | None]] | None = None,
    ) -> dict[int, list[Slot]]:
        """By stream, the slots that steer a new prompt and its answer, in batch row `row`. prompts:
        its ids per stream."""
        if self.steering is None:
            return {}
        spans = self.spans(prompts[0], answers)
        ahead = {stream: len(prompts[stream]) - len(prompts[0]) for stream in self.steering.streams}
        return {s: self.steering.slots(row, moved(spans, n)) for s, n in ahead.items()}

    # ---- texts to ids ----------------------------------------------------------------------

    def encode_prompts(
        self, prompts: Sequence[str | ChatPrompt], chat: bool, batch_size: int = 8
    ) -> list[EncodedPrompt]:
        """What is read of each prompt when it is answered: if messages are read alone too, that may
        be a part of it. Raises `PromptError`."""
        encoded = self.encode_whole(prompts, chat)
        return without_context(self, prompts, chat, encoded, batch_size)

    def encode_whole(self, prompts: Sequence[str | ChatPrompt], chat: bool) -> list[EncodedPrompt]:
        """The prompts as they are written. Raises `PromptError`."""
        encoded = [self.encode_prompt(prompt, chat) for prompt in prompts]
        for each in encoded:
            self.check_fits(each.ids)
        return encoded

    def encode_prompt(self, prompt: str | ChatPrompt, chat: bool) -> EncodedPrompt:
        """A text, or a conversation, as a request takes it. Raises `PromptError`."""
        self.running.check_open()
        if isinstance(prompt, ChatPrompt):
            return encode_turns(self, prompt)
        ids = encode_text(self, prompt, chat)
        return EncodedPrompt(ids, ((len(ids[0]), None),), () if chat else ids[0], gated=chat)

    def encode(self, prompt: str, chat: bool) -> tuple[tuple[int, ...], ...]:
        """The ids of a text, per stream. Raises `PromptError`."""
        self.running.check_open()
        return encode_text(self, prompt, chat)

    def encode_chat(
        self, messages: Sequence[Message], answers: Mapping[int, Sequence[int]] | None = None
    ) -> tuple[ChatIds, ...]:
        """The ids of a conversation, per stream; each stream has its own system prompt, if any, and
        the anchor its demonstrations."""
        first = fronts(self.settings, self.shots, len(self.streams))
        found: dict[int, ChatIds] = {}
        for stream, front in enumerate(first):
            same = first.index(front)
            if same == stream:
                kept = {number + len(front): ids for number, ids in (answers or {}).items()}
                found[stream] = self.tokenizer.encode_chat([*front, *messages], kept)
            found[stream] = found[same]
        for stream, kind in enumerate(self.kinds, 1):
            if kind == "system prompt" and found[stream].ids == found[0].ids:
                raise SafetyError(
                    "the expert's system prompt changes nothing: the chat template leaves it out, "
                    "or it is the same as the base's; give another prompt or template"
                )
        return tuple(found[stream] for stream in range(len(first)))

    def check_fits(self, prompts: Sequence[Sequence[int]]) -> None:
        """Raise `PromptError` if a prompt is longer than the context."""
        longest = max(map(len, prompts))
        if longest > self.limit:
            raise PromptError(
                f"the prompt has {longest} tokens; the model's context holds {self.limit}"
            )

    # ---- other settings -------------------------------------------------------------------

    def with_settings(self, changes: Mapping[str, Any]) -> Session:
        """The same session with other settings for the answers to come; shares what is loaded, and
        `cancel` and `close` with it. (For a session of its own over the same weights: `load` with
        `beside`.)

        Raises `SettingError` for a name that needs a new load, or a value out of range.
        """
        return changed(self, changes)

    def with_rule(self, rule: Rule) -> Session:
        """The same session under a guidance rule of your own; shares what is loaded.

        rule: an instance of a frozen dataclass with `n_streams` (how many streams it reads: all of
        `streams`), `drawn_from` (the number of the stream that it corrects: that of the profile's
        rule), `first_tokens` (how many tokens of an answer it acts on, None for all), and
        `__call__`, a pure function: given a tuple of float32 log-probabilities, one (rows, vocab)
        per stream, the base's first, it returns those to sample from, (rows, vocab), normalised.

        Raises `SafetyError` if the rule does not fit what is loaded or changes nothing,
        `SettingError` if what it returns cannot be sampled from.
        """
        return with_rule(self, rule)

    def plain(self) -> Session:
        """The same session without any safety stage."""
        return replace(
            self, settings=replace(self.settings, safe=False), rule=Plain(), steering=None,
            gate=None, alone=None, engine=Generation,
        )  # fmt: skip
