"""A conversation: turns, and caches that are reused as far as ids and steering agree."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from minisafe.engine import Generation, Request, Row
from minisafe.errors import BusyError, NonFiniteError, PromptError, SettingError
from minisafe.guidance import Guidance, Plain
from minisafe.lockstep import Lockstep
from minisafe.session.acted import Acted
from minisafe.session.answer import Answer, Result
from minisafe.session.conversation import Conversation, Exchange
from minisafe.session.faster import make_generation
from minisafe.session.loaded import Loaded, user
from minisafe.session.why import Why
from minisafe.slots import Span, covered
from minisafe.tokenizer import ChatIds, Message
from minisafe.vectors import Steering


@dataclass(frozen=True)
class Read:
    """What a stream's cache holds: ids, and for each what was added to the residual stream."""

    ids: tuple[int, ...] = ()
    steered: tuple[object, ...] = ()

    def agrees_with(self, other: Read) -> int:
        """Length of the longest prefix whose ids and steering agree."""
        pairs = zip(self.ids, self.steered, strict=True), zip(other.ids, other.steered, strict=True)
        return next(
            (place for place, (a, b) in enumerate(zip(*pairs, strict=False)) if a != b),
            min(len(self.ids), len(other.ids)),
        )


class Chat:
    """A multi-turn conversation over what one `Session` has loaded. Base and expert stay in step.

    `messages` is the conversation so far; `result` the last answer's `Result`, and `why` what acted
    on it. One answer is given at a time: while one is, whatever would change the conversation
    raises `BusyError`.
    """

    def __init__(self, session: Loaded):
        self.session = session
        self.messages: list[Message] = []
        self.answers: dict[int, tuple[int, ...]] = {}  # ids as they were sampled
        self.unguided: set[int] = set()  # messages whose answers the gate left to the base
        self.safe = bool(session.settings.safe)
        self.result: Result | None = None
        self.why: Why | None = None
        self.turn = 0
        self.reused = 0  # tokens of the last prompt that the base's cache already held
        self._generation: Generation | None = None
        self._answering = threading.Lock()
        self._restart()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Raise `BusyError` where an answer is being given; within it, nobody else begins one."""
        if not self._answering.acquire(blocking=False):
            raise BusyError(
                "an answer is being given; take it to its end or close it, and then go on"
            )
        try:
            yield
        finally:
            self._answering.release()

    def _restart(self) -> None:
        self.lockstep: Lockstep = self.session.lockstep(1, 512)
        self.read = [Read() for _ in self.session.streams]

    def reset(self) -> None:
        """Forget the conversation."""
        with self._alone():
            self._take(Conversation())
            self._restart()

    def set_safe(self, on: bool) -> None:
        """Switch what was loaded for safety on or off; raises `SettingError` if nothing was."""
        if on and not self.session.settings.safe:
            raise SettingError("nothing safe was loaded; start again with --safe")
        with self._alone():
            self.safe = on

    def set(self, name: str, value: Any) -> None:
        """Change a setting for the turns to come; raises `SettingError`."""
        with self._alone():
            self.session = self.session.with_settings({name: value})

    def conversation(self) -> Conversation:
        """What was said so far, as a value."""
        said = [
            Exchange(
                self.messages[number - 1]["content"],
                self.messages[number]["content"],
                self.answers[number],
                number not in self.unguided,
            )
            for number in sorted(self.answers)
        ]
        return Conversation(tuple(said), self.turn)

    def restore(self, conversation: Conversation) -> None:
        """Go on from another conversation; what the caches hold of it is not read again."""
        with self._alone():
            self._take(conversation)

    def _take(self, conversation: Conversation) -> None:
        self.messages, self.answers, self.unguided = [], {}, set()
        for each in conversation.exchanges:
            self.messages.append(user(each.question))
            self.answers[len(self.messages)] = each.ids
            if not each.guided:
                self.unguided.add(len(self.messages))
            self.messages.append({"role": "assistant", "content": each.answer})
        self.turn, self.result, self.why = conversation.turn, None, None

    def undo(self) -> str:
        """Take the last message and its answer back, as though they were never said; returns the
        message. Raises `PromptError` where nothing was said."""
        with self._alone():
            before = self.conversation()
            if not before.exchanges:
                raise PromptError("nothing was said yet, so there is nothing to take back")
            self._take(Conversation(before.exchanges[:-1], max(0, before.turn - 1)))
        return before.exchanges[-1].question

    def regenerate(self) -> Iterator[str]:
        """Another answer to the last message, with draws of its own, piece by piece.

        Where none comes, the one that was there stays. Raises as `send`, and `PromptError` where
        nothing was said.
        """
        before = self.conversation()
        text = self.undo()
        self.turn = before.turn
        try:
            yield from self.send(text)
        finally:
            if len(self.messages) < 2 * len(before.exchanges):
                self._take(before)

    def interrupt(self) -> None:
        """End the answer that is being given, if any, before its next token."""
        if self._generation is not None:
            self._generation.cancel(0)

    def send(self, text: str) -> Iterator[str]:
        """The answer to `text`, piece by piece.

        If the iteration is broken off, what was answered so far stays in the conversation.

        Raises `PromptError` if the conversation no longer fits the context; `text` is then not
        part of it. Raises `BusyError` where another answer is being given.
        """
        if not text.strip():
            raise PromptError("the message is empty; expected some text")
        with self._alone():
            yield from self._answer(text)

    def _answer(self, text: str) -> Iterator[str]:
        session = self.session
        messages: list[Message] = [*self.messages, user(text)]
        chats = session.encode_chat(messages, self.answers)
        session.check_fits([chat.ids for chat in chats])
        steering = session.steering if self.safe else None
        goals = [self._goal(chat, steering if not s else None) for s, chat in enumerate(chats)]
        active = range(len(chats) if self.safe else 1)
        pending = tuple(self._rewind(s, goals[s]) if s in active else () for s in range(len(chats)))
        guidance: Guidance = session.guidance if self.safe else Plain()
        spans = self._spans(chats[0], steering)
        settings = session.settings
        first = not self.messages  # later turns are not like what the gate was calibrated on
        request = Request(
            pending, spans, settings, settings.max_new_tokens, self.turn, gated=first,
            watched=True,
        )  # fmt: skip
        gate = session.gate if self.safe else None
        generation = make_generation(
            self.lockstep, guidance, [request], steering, session.eos, gate, session.most_drafts
        )
        self._generation = generation
        answer = session.answer(())
        self.messages, self.turn = messages, self.turn + 1
        try:
            with session.running.during(generation):
                for event in generation:
                    piece = answer.push(event)
                    if answer.stops.stopped:
                        generation.cancel(0, "stop_string")
                    if piece:
                        yield piece
        except (NonFiniteError, KeyboardInterrupt):
            self._restart()  # what the caches hold can no longer be trusted
            raise
        finally:
            self._generation = None
            self._remember(answer, chats, goals, steering, active, generation.rows[0])

    def _goal(self, chat: ChatIds, steering: Steering | None) -> Read:
        """What a stream should have read before the answer."""
        return Read(chat.ids, self._marks(len(chat.ids), self._spans(chat, steering), steering))

    def _spans(self, chat: ChatIds, steering: Steering | None) -> tuple[Span, ...]:
        """Steered positions: of every past turn, and of this one, whose answer is open."""
        if steering is None:
            return ()
        places = zip(sorted(self.answers), chat.answers, strict=True)
        past = [place for n, place in places if place is not None and n not in self.unguided]
        return steering.spans([*past, (len(chat.ids), None)])

    @staticmethod
    def _marks(
        length: int, spans: tuple[Span, ...], steering: Steering | None
    ) -> tuple[object, ...]:
        """By position, what is added there: a value that is equal only for equal steering."""
        if steering is None:
            return (None,) * length
        touched = set(covered(spans, 0, length))
        mark = (*sorted((layer, id(v)) for layer, v in steering.vectors.items()), steering.scale)
        return tuple(mark if position in touched else None for position in range(length))

    def _rewind(self, stream: int, goal: Read) -> tuple[int, ...]:
        """Rewind a stream to what agrees with `goal`; returns the ids that it still has to read."""
        common = min(self.read[stream].agrees_with(goal), len(goal.ids) - 1)
        self.lockstep.rewind(stream, 0, common)
        self.read[stream] = Read(goal.ids[:common], goal.steered[:common])
        if stream == 0:
            self.reused = common
        return goal.ids[common:]

    def _remember(
        self,
        answer: Answer,
        chats: tuple[ChatIds, ...],
        goals: list[Read],
        steering: Steering | None,
        active: range,
        row: Row,
    ) -> None:
        """Keep the answer, whole or broken off, and what each cache now holds."""
        gate = self.session.gate if self.safe else None
        applied = self.applied().on_answer(row, gate)
        self.result = answer.result(len(chats[0].ids), applied)
        self.why = Why.of(self.applied(), applied, row)
        if not answer.tokens:
            self.messages = self.messages[:-1]
        else:
            self.answers[len(self.messages)] = tuple(answer.tokens)
            if not row.guided:
                self.unguided.add(len(self.messages))
            content = "".join(answer.pieces)
            self.messages = [*self.messages, {"role": "assistant", "content": content}]
        for stream in active:
            ids = (*goals[stream].ids, *answer.tokens)[: self.lockstep.length(stream, 0)]
            spans = row.spans if stream == 0 else ()
            self.read[stream] = Read(
                ids, self._marks(len(ids), spans, steering if not stream else None)
            )

    def applied(self) -> Acted:
        """What safety acts on the next answer."""
        return self.session.applied if self.safe else Acted()
