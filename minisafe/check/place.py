"""What a session is checked on: prompts, the answers to them, and how far rounding goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from minisafe.check.engine import Ids
from minisafe.check.invariants import SHARES, tolerance
from minisafe.check.streams import Slots, StreamEngine, read_all
from minisafe.errors import NonFiniteError, PromptError, SettingError
from minisafe.lockstep import Lockstep
from minisafe.session.session import Session
from minisafe.slots import Slot

PROMPTS = (
    "Hello!",
    "What is the capital of France?",
    "How do I clean a wooden shelf without leaving any marks on it?",
)


@dataclass(frozen=True)
class Place:
    """A session, and what it reads while it is checked.

    texts: the prompts. prompts: [stream][row] -> ids. answers: [row] -> ids, which every stream
    reads. plain: [stream][row] -> log-probabilities, read before a fast path was put in; empty if
    none is.
    """

    session: Session
    texts: tuple[str, ...]
    chat: bool
    prompts: tuple[tuple[Ids, ...], ...]
    answers: tuple[Ids, ...]
    plain: tuple[tuple[Tensor, ...], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the streams."""
        return ("base", *self.session.settings.others)

    @cached_property
    def engines(self) -> tuple[StreamEngine, ...]:
        """Every stream by itself."""
        session = self.session
        dtype = session.settings.cache_dtype
        return tuple(StreamEngine(each, session.n_ids, dtype) for each in session.streams)

    @cached_property
    def said(self) -> list[list[Tensor]]:
        """[stream][row]: what the streams say when they are steered as in an answer."""
        return self.read(fuse=True)

    def read(self, fuse: bool) -> list[list[Tensor]]:
        """`said`, with the streams that share weights in one forward or in several."""
        session = self.session
        lockstep = Lockstep(
            session.streams, len(self.texts), 64, session.n_ids, fuse=fuse,
            cache_dtype=session.settings.cache_dtype,
        )  # fmt: skip
        return read_all(lockstep, self.prompts, self.answers, self.slots())

    def slots(self) -> Slots:
        """How an answer to each prompt is steered."""
        found: dict[int, list[Slot]] = {}
        for row in range(len(self.texts)):
            prompts = [stream[row] for stream in self.prompts]
            for stream, slots in self.session.slots(row, prompts).items():
                found.setdefault(stream, []).extend(slots)
        return found

    @property
    def share(self) -> float:
        """Of the spread of log-probabilities, what rounding may do: that of the coarsest numbers
        that a stream or its cache is held in."""
        settings = self.session.settings
        models = [stream.model for stream in self.session.streams]
        dtypes = {str(model.dtype).removeprefix("torch.") for model in models}
        dtypes |= {model.weights for model in models} | {settings.cache_dtype}
        return max(SHARES[each] for each in dtypes if each in SHARES)

    @cached_property
    def tolerance(self) -> float:
        """What log-probabilities may deviate by, in nats; 0 if they are not finite."""
        try:
            return max(tolerance(row, self.share) for stream in self.said for row in stream)
        except NonFiniteError:
            return 0.0


def make_place(session: Session, texts: Sequence[str], chat: bool, n_tokens: int) -> Place:
    """Let a session answer the texts, with `n_tokens` tokens at most.

    Raises `SettingError` unless n_tokens is 1 or more, `PromptError` for texts that it cannot
    answer.
    """
    if n_tokens < 1:
        raise SettingError(f"tokens is {n_tokens}; expected 1 or more")
    if not texts:
        raise PromptError("no prompts; expected at least one")
    bounds = {"max_new_tokens": n_tokens, "max_seconds": None, "stop": ()}
    short = session.with_settings(bounds)
    encoded = [short.encode_prompt(text, chat) for text in texts]
    prompts = tuple(zip(*(each.ids for each in encoded), strict=True))
    longest = max(len(ids) for stream in prompts for ids in stream) + n_tokens
    if longest > session.limit:
        raise PromptError(
            f"a prompt and {n_tokens} tokens make {longest}; the model's context holds "
            f"{session.limit}; give shorter prompts"
        )
    results = short.generate(list(texts), chat=chat)
    return Place(short, tuple(texts), chat, prompts, tuple(each.tokens for each in results))
