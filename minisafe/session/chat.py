"""A conversation: turns, and caches that are reused as far as ids and steering agree."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from minisafe.engine import Generation, Request, RequestState
from minisafe.errors import BusyError, NonFiniteError, PromptError, SettingError
from minisafe.lockstep import Lockstep
from minisafe.session.alone import Part, all_harmless, stands_alone, worst_parts
from minisafe.session.answer import Answer, Result
from minisafe.session.beginnings import is_long
from minisafe.session.chat_prompt import ChatPrompt
from minisafe.session.conversation import Conversation, Exchange
from minisafe.session.stages import Stages
from minisafe.session.why import Why
from minisafe.slots import Span, covered
from minisafe.tokenizer import ChatIds, Message
from minisafe.vectors import Steering, moved

if TYPE_CHECKING:
    from minisafe.session.session import Session

BATCH = 16  # parts of a message that are read together


@dataclass(frozen=True)
class Held:
    """What a stream's cache holds: ids, and for each id what was added to the residual stream."""

    ids: tuple[int, ...] = ()
    steered: tuple[object, ...] = ()

    @classmethod
    def of(
        cls, ids: tuple[int, ...], spans: tuple[Span, ...] = (), steering: Steering | None = None
    ) -> Held:
        """Ids, with those at `spans` marked as steered; marks are equal only for equal steering."""
        if steering is None or not spans:
            return cls(ids, (None,) * len(ids))
        touched = set(covered(spans, 0, len(ids)))
        mark = (*sorted((layer, id(v)) for layer, v in steering.vectors.items()), steering.scale)
        return cls(ids, tuple(mark if at in touched else None for at in range(len(ids))))

    def agrees_with(self, other: Held) -> int:
        """Length of the longest prefix whose ids and steering agree."""
        pairs = zip(self.ids, self.steered, strict=True), zip(other.ids, other.steered, strict=True)
        return next(
            (place for place, (a, b) in enumerate(zip(*pairs, strict=False)) if a != b),
            min(len(self.ids), len(other.ids)),
        )


class Chat:
    """A multi-turn conversation with what one `Session` has loaded.

    `messages` is the conversation so far, `result` the last answer's `Result`, and `why` what acted
    on it. Only one answer can be in progress: until it ends, every call that would change the
    conversation raises `BusyError`.
    """

    def __init__(self, session: Session):
        self.session = session
        self.messages: list[Message] = []
        self.answers: dict[int, tuple[int, ...]] = {}  # by message number, ids as sampled
        self.left_to_base: set[int] = set()  # numbers of answers that were left to the base
        self.judged: dict[str, float] = {}  # how harmful earlier messages are by themselves
        self.safe = bool(session.settings.safe)
        self.result: Result | None = None
        self.why: Why | None = None
        self.turn = 0
        self.reused = 0  # tokens of the last prompt that the base's cache already held
        self._generation: Generation | None = None
        self._interrupted = False  # while the message is still being read
        self._answering = threading.Lock()
        if not self._limited:  # else when they are needed
            self.lockstep = self._new_caches()
        self.held = [Held() for _ in session.streams]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Raise `BusyError` if an answer is in progress; inside the block, no other can begin."""
        if not self._answering.acquire(blocking=False):
            raise BusyError("an answer is in progress; read it to its end or close it first")
        try:
            yield
        finally:
            self._answering.release()

    @cached_property
    def lockstep(self) -> Lockstep:
        """The streams' caches, made again if they were given back."""
        return self._new_caches()

    def _new_caches(self) -> Lockstep:
        # under a limit at once as large as they can get: growth would hold them twice
        return self.session.new_lockstep(1, self.session.limit if self._limited else 512)

    def _give_back(self) -> None:
        """Drop the caches, and what they hold."""
        vars(self).pop("lockstep", None)
        self.held = [Held() for _ in self.session.streams]

    @property
    def _limited(self) -> bool:
        return self.session.settings.memory_limit is not None

    def reset(self) -> None:
        """Forget the conversation."""
        with self._alone():
            self._take(Conversation())
            self._give_back()

    def set_safe(self, on: bool) -> None:
        """Switch safe decoding on or off; raises `SettingError` if nothing was loaded for it."""
        if on and not self.session.settings.safe:
            raise SettingError("no safety parts were loaded; start again with --safe")
        with self._alone():
            self.safe = on

    def set(self, name: str, value: Any) -> None:
        """Change a setting for the turns to come; raises `SettingError`."""
        with self._alone():
            self.session = self.session.with_settings({name: value})
            self.judged = {}

    def conversation(self) -> Conversation:
        """The conversation so far, as a value."""
        said = [
            Exchange(
                self.messages[number - 1]["content"],
                self.messages[number]["content"],
                self.answers[number],
                number not in self.left_to_base,
            )
            for number in sorted(self.answers)
        ]
        return Conversation(tuple(said), self.turn)

    def restore(self, conversation: Conversation) -> None:
        """Continue another conversation; what the caches already hold of it is not read again."""
        with self._alone():
            self._take(conversation)

    def _take(self, conversation: Conversation) -> None:
        self.messages, self.answers, self.left_to_base = [], {}, set()
        for each in conversation.exchanges:
            self.messages.append({"role": "user", "content": each.question})
            self.answers[len(self.messages)] = each.ids
            if not each.guided:
                self.left_to_base.add(len(self.messages))
            self.messages.append({"role": "assistant", "content": each.answer})
        self.turn, self.result, self.why = conversation.turn, None, None

    def undo(self) -> str:
        """Remove the last message and its answer from the conversation; returns the message.
        Raises `PromptError` if there is none."""
        with self._alone():
            before = self.conversation()
            if not before.exchanges:
                raise PromptError("the conversation is empty; send a message first")
            self._take(Conversation(before.exchanges[:-1], max(0, before.turn - 1)))
        return before.exchanges[-1].question

    def regenerate(self) -> Iterator[str]:
        """Another answer to the last message, with new draws, piece by piece.

        If none comes, the earlier one stays. Raises like `send`, and `PromptError` if there is no
        message.
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
        """End the answer in progress, if any, before its next token."""
        self._interrupted = True
        if self._generation is not None:
            self._generation.cancel(0)

    def send(self, text: str) -> Iterator[str]:
        """The answer to `text`, piece by piece.

        If the iteration is closed early, the answer so far stays in the conversation.

        Raises `PromptError` if `text` is blank or the conversation no longer fits the context;
        `text` is then not part of it. Raises `BusyError` if another answer is in progress.
        """
        if not text.strip():
            raise PromptError("the message is empty; expected some text")
        with self._alone():
            yield from self._answer(text)

    @property
    def session_now(self) -> Session:
        """What answers next: the session, or the same without safety if that is switched off."""
        return self.session if self.safe else self.session.plain()

    def _answer(self, text: str) -> Iterator[str]:
        session, self._interrupted = self.session_now, False
        session.running.check_open()
        limited, since = session.settings.max_seconds is not None, session.running.cancels
        deadline = session.new_deadline() if limited else None
        messages: list[Message] = [*self.messages, {"role": "user", "content": text}]
        part, left = self._read_alone(session, messages)
        if part is None or left:
            chats = session.encode_chat(messages, self.answers)
            spans = self._spans(chats[0], session.steering, left)
        else:
            chats = session.encode_chat(part.prompt.messages)
            spans = session.spans(chats[0].ids)
        goals = [
            self._goal(s, chat.ids, spans, len(chat.ids) - len(chats[0].ids), session.steering)
            for s, chat in enumerate(chats)
        ]
        active = len(chats) if self.safe else 1  # streams that read; the others rest
        pending = [self._rewind(s, goal) for s, goal in enumerate(goals[:active])]
        pending += [()] * (len(chats) - active)
        first = not self.messages  # later turns are not like what the gate was calibrated on
        settings = session.settings
        request = Request(
            tuple(pending), spans, settings, settings.max_new_tokens, self.turn,
            gated=first and part is None, note_changes=True,
            alone=None if part is None else part.harm, left=left, deadline=deadline,
        )  # fmt: skip
        generation = self._generation = session.new_generation([request], self.lockstep)
        if self._interrupted:
            generation.cancel(0)
        answer = session.new_answer(())
        self.messages, self.turn = messages, self.turn + 1
        try:
            for _, piece in session.grow(generation, [answer], since):
                if piece:
                    yield piece
        except (NonFiniteError, KeyboardInterrupt):
            self._give_back()  # the caches may hold wrong values
            raise
        finally:
            self._generation = None
            self._remember(session, answer, len(chats[0].ids), generation.states[0])
            self._note_read(goals[:active], answer, session.steering, generation.states[0])

    @staticmethod
    def _goal(
        stream: int, ids: tuple[int, ...], spans: tuple[Span, ...], ahead: int,
        steering: Steering | None,
    ) -> Held:  # fmt: skip
        """What a stream's cache should hold; `ahead`: by how many tokens it precedes the base."""
        if steering is None or stream not in steering.streams:
            return Held.of(ids)
        return Held.of(ids, moved(spans, ahead), steering)

    def _read_alone(
        self, session: Session, messages: Sequence[Message]
    ) -> tuple[Part | None, bool]:
        """What of the last message is harmful by itself and does not stand by itself; or, with
        True, its worst part if the answer is left to the base."""
        if session.alone is None:
            return None, False
        prompt = ChatPrompt.of(messages[-1]["content"])
        if not session.leaves_harmless and not self.messages and stands_alone(prompt):
            return None, False
        if self._limited and self._reads_long(session, messages):
            self._give_back()  # the limit has room for one cache of that length
        (part,) = worst_parts(session, [prompt], BATCH)
        if session.alone.opens(part.harm):
            whole = part.prompt == prompt and not self.messages
            return None if whole else part, False
        self.judged[prompt.question] = part.harm
        left = session.leaves_harmless and all_harmless(session, messages, self.judged, BATCH)
        return (part, True) if left else (None, False)

    def _reads_long(self, session: Session, messages: Sequence[Message]) -> bool:
        """Whether a text that is now read alone is a long one."""
        said = [each["content"] for each in messages]
        read = [session.settings.system, *said] if session.leaves_harmless else said[-1:]
        return any(is_long(session, text) for text in read if text and text not in self.judged)

    def _spans(
        self, chat: ChatIds, steering: Steering | None, left: bool = False
    ) -> tuple[Span, ...]:
        """The steered positions of past turns, unless their answers were left to the base, and of
        this turn, whose answer has no end yet, unless it is."""
        if steering is None:
            return ()
        places = zip(sorted(self.answers), chat.answers, strict=True)
        past = [place for n, place in places if place is not None and n not in self.left_to_base]
        return steering.spans([*past, *(() if left else ((len(chat.ids), None),))])

    def _rewind(self, stream: int, goal: Held) -> tuple[int, ...]:
        """Rewind a stream to what agrees with `goal`; returns the ids that it still has to read."""
        common = min(self.held[stream].agrees_with(goal), len(goal.ids) - 1)
        self.lockstep.rewind(stream, 0, common)
        self.held[stream] = Held(goal.ids[:common], goal.steered[:common])
        if stream == 0:
            self.reused = common
        return goal.ids[common:]

    def _remember(
        self, session: Session, answer: Answer, prompt_tokens: int, state: RequestState
    ) -> None:
        """Keep the answer, complete or not, and what acted on it."""
        acted = session.stages.on_answer(state, session.gate)
        self.result = answer.result(prompt_tokens, acted)
        self.why = Why.of(session.stages, acted, state)
        if not answer.tokens:
            self.messages = self.messages[:-1]
            return
        self.answers[len(self.messages)] = tuple(answer.tokens)
        if state.seen.left_to_base:
            self.left_to_base.add(len(self.messages))
        content = "".join(answer.pieces)
        self.messages = [*self.messages, {"role": "assistant", "content": content}]

    def _note_read(
        self, goals: list[Held], answer: Answer, steering: Steering | None, state: RequestState
    ) -> None:
        """Note what each stream's cache holds after an answer; nothing if it was given back."""
        if "lockstep" not in vars(self):
            return
        for stream, goal in enumerate(goals):
            ids = (*goal.ids, *answer.tokens)[: self.lockstep.length(stream, 0)]
            # what the gate left to the base is no longer steered there, but was in other streams
            spans = state.request.spans if stream else state.spans
            ahead = len(goal.ids) - len(goals[0].ids)
            self.held[stream] = self._goal(stream, ids, spans, ahead, steering)

    def stages(self) -> Stages:
        """Which safety stages are active for the next answer."""
        return self.session_now.stages
