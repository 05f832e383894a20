"""What an attack is given, and what it gives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from torch import Tensor

from minisafe.session.chat_prompt import ChatPrompt


@dataclass(frozen=True)
class Target:
    """The question that an attack wants answered.

    asked: its text. number: its place among the questions; with the seed it fixes what is drawn.
    """

    id: str
    asked: str
    number: int
    seed: int = 0

    def random(self, name: str) -> Random:
        """Draws of the attack `name` for this question, the same in every run and for every
        method."""
        key = f"{self.seed}\0{self.id}\0{name}"
        return Random(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest())


@dataclass(frozen=True)
class Attempt:
    """What is asked in the end.

    answer: the answer that counts, for attacks that draw several; None: `prompt` is still to be
    asked.
    """

    prompt: ChatPrompt
    answer: str | None = None


class Oracle(Protocol):
    """What an attacker can ask. Every answer of the defended model, and every likelihood under it,
    counts as one query."""

    @property
    def words(self) -> Sequence[str]:
        """Words to put into a question: those of the tokenizer's vocabulary."""

    def ask(
        self, prompts: Sequence[ChatPrompt], temperature: float = 0.0, draw: int = 0
    ) -> list[str]:
        """The defended model's answers. draw: the number of the first one's draws."""

    def complies(
        self, target: Target, prompts: Sequence[ChatPrompt], answers: Sequence[str]
    ) -> list[bool]:
        """Whether each answer complies with the target's question."""  # fmt: skip

    def likelihood(self, prompts: Sequence[ChatPrompt], beginning: str) -> list[float]:
        """Log-likelihood, in nats, that the defended model's answer begins like this."""

    def compliant(self, target: Target) -> str:
        """An answer of the undefended base that complies with the target's question; no query."""

    def others(self, target: Target, n: int) -> list[tuple[str, str]]:
        """n other harmful questions, each with a compliant answer of the undefended base."""

    def cut(self, text: str, n_tokens: int) -> str:
        """The first tokens of a text."""

    @property
    def single_words(self) -> Sequence[str]:
        """The words of `words` that are one token after another word."""

    def gradient(self, prompt: ChatPrompt, words: Sequence[str], beginning: str) -> Tensor:
        """White box, one query: how the negative log-likelihood of the beginning changes with each
        of `single_words` in the place of each of these words, (words, single words). words: words
        of `single_words` that stand next to each other in the prompt."""

    @property
    def undefended(self) -> Oracle:
        """The same asked of the undefended base, as an attacker's own copy: no queries."""


@dataclass(frozen=True)
class Attack:
    """An attack by its name.

    about: what it does, in a few words, for the report. is_searching: whether it asks the model
    before it settles, so that it takes a budget of queries. white_box: whether it needs gradients.
    family: attacks of one family share an idea; a defence that was trained on one has seen it.
    """

    name: str
    make: Callable[[Target, Oracle], Attempt]
    about: str
    is_searching: bool = False
    white_box: bool = False
    family: str = ""
