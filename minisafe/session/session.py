"""What `load()` returns: text in, text out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from minisafe.checkpoint import load_adapter, load_model
from minisafe.checkpoint.adapter import merge_adapter
from minisafe.errors import PromptError, SafetyError, SettingError
from minisafe.session.answer import Result
from minisafe.session.asked import check_asked, gather
from minisafe.session.chat import Chat
from minisafe.session.dtype import widen_small
from minisafe.session.faster import check_fast, put_in
from minisafe.session.loaded import Loaded
from minisafe.session.parts import (
    check_device,
    made_for,
    make_gate,
    make_steering,
    make_streams,
)
from minisafe.session.promise import Parts, check_parts
from minisafe.tokenizer import check_tokenizer, load_tokenizer


class Session(Loaded):
    """Answers texts with what is loaded. Make one with `load`; as a context manager it is closed
    at the end."""

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

    def cancel(self) -> None:
        """End every answer under way, of `generate`, `stream`, `run` and chats, before its next
        token; from any thread. They end with the finish reason "cancelled"."""
        self.running.cancel()

    def close(self) -> None:
        """Cancel what is under way and answer nothing any more; what was loaded can be freed."""
        self.running.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def chat(self) -> Chat:
        """A conversation that remembers its turns."""
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
        with self.running.during(generation):
            for event in generation:
                answer = answers[event.row]
                piece = answer.push(event)
                if piece:
                    yield start + event.row, piece
                if answer.stops.stopped:
                    generation.cancel(event.row, "stop_string")
                if answer.stops.stopped or event.finish is not None:
                    applied = self.applied.on_answer(generation.rows[event.row], self.gate)
                    yield start + event.row, answer.result(len(batch[event.row][0]), applied)

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
    asked = gather(profile, overrides or {})
    settings = asked.settings
    check_asked(settings, asked.origin)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    assert settings.base is not None
    check_fast(settings.device, settings.weights, settings.compile)
    model = load_model(settings.base, settings.dtype, check_device(settings.device))
    if settings.edit is not None:
        merge_adapter(model, load_adapter(settings.edit, model))
    widen_small(model, settings.dtype, settings.weights)
    tokenizer = load_tokenizer(settings.base, settings.template_options)
    check_tokenizer(tokenizer, model.config.vocab_size)
    steering = None
    if settings.safe and settings.sa_scale != 0:
        assert asked.vector is not None
        steering = make_steering(settings, asked.vector, model, tokenizer)
    streams, kinds = make_streams(settings, model, tokenizer)
    guidance = settings.guidance()
    check_parts(Parts(settings, tokenizer, streams, kinds, steering, guidance))
    put_in(streams, settings.weights, settings.compile)
    gate = None
    if asked.calibration is not None or settings.gate:
        gate = make_gate(settings, asked.calibration, made_for(settings, steering))
    n_ids = min(stream.model.config.vocab_size for stream in streams)
    return Session(settings, streams, tokenizer, asked.eos, guidance, steering, kinds, n_ids, gate)
