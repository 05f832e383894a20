"""A session with a defence around it, which the evaluation and its attacks ask like a session.

An attacker's messages and prefill are what the defence gets; it decides what the model reads, and
whether the answer is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from minisafe.evaluation.likelihood.scoring import begun_pair, score_pairs
from minisafe.session import Session
from minisafe.session.answer import Result
from minisafe.session.chat_prompt import ChatPrompt, EncodedPrompt
from minisafe.session.settings import Settings
from minisafe.session.stages import Stages
from minisafe.tokenizer import Tokenizer

REFUSAL = "Sorry, I cannot help you with that."  # in place of an answer that a guard withholds
Route = Literal["model", "plain", "refuse"]


@dataclass(frozen=True)
class Defence:
    """What stands around a model; this one does nothing, and others override some of it."""

    def prepare(self, session: Session) -> Session:
        """The session that answers, from the one that was loaded. Raises `SettingError` if the
        defence was not made for it."""
        return session

    def rewrite(self, prompt: ChatPrompt) -> ChatPrompt:
        """What the model reads in place of a prompt."""
        return prompt

    def routes(self, session: Session, prompts: Sequence[ChatPrompt]) -> list[Route]:
        """Who answers each prompt, before it is rewritten: the prepared model, the model without
        any safety stage, or a fixed refusal."""
        return ["model"] * len(prompts)

    def withheld(
        self, session: Session, prompts: Sequence[ChatPrompt], answers: Sequence[str]
    ) -> list[bool]:
        """Whether each answer is replaced by a refusal. answers: the whole answers, each with the
        prompt's prefill."""
        return [False] * len(prompts)

    def to_json(self) -> dict[str, Any]:
        """What decides its answers: its settings, and a hash of what was fitted."""
        values = {name: getattr(value, "digest", value) for name, value in vars(self).items()}
        return {"name": type(self).__name__, **values}


@dataclass(eq=False)
class Defended:
    """A defence around a loaded session: as much of a session as evaluation and attacks use.

    loaded: as `minisafe.load` gives it. session: the one that answers.
    """

    loaded: Session
    defence: Defence
    session: Session = field(init=False)

    def __post_init__(self) -> None:
        self.session = self.defence.prepare(self.loaded)

    @property
    def settings(self) -> Settings:
        return self.session.settings

    @property
    def tokenizer(self) -> Tokenizer:
        return self.session.tokenizer

    @property
    def n_ids(self) -> int:
        return self.session.n_ids

    def with_settings(self, changes: Mapping[str, Any]) -> Defended:
        """The same with other settings for the answers to come."""
        found = replace(self, loaded=self.loaded.with_settings(changes))
        found.session = self.session.with_settings(changes)
        return found

    def plain(self) -> Session:
        """The model without the defence and without any safety stage."""
        return self.loaded.plain()

    def encode_prompt(self, prompt: ChatPrompt, chat: bool = True) -> EncodedPrompt:
        """The ids that the model reads for a prompt."""
        return self.session.encode_prompt(self.defence.rewrite(prompt), chat)

    def check_fits(self, prompts: Sequence[Sequence[int]]) -> None:
        """Raise `PromptError` if a prompt is longer than the context."""
        self.session.check_fits(prompts)

    def generate(
        self, prompts: Sequence[ChatPrompt], batch_size: int = 8, first: int = 0
    ) -> list[Result]:
        """Answers in prompt order. first: the number of the first prompt, which fixes its draws,
        whoever answers. The finish reason of a withheld answer is "refused"."""
        numbered = list(enumerate(prompts, first))
        routes = self.defence.routes(self.session, prompts)
        found = {n: refused() for n, _ in numbered}
        for route, session in self.answering():
            taken = [each for each, own in zip(numbered, routes, strict=True) if own == route]
            asked = [(n, self.defence.rewrite(prompt)) for n, prompt in taken]
            found |= answered(session, asked, batch_size)
        given = [found[n] for n, _ in numbered]
        whole = [p.prefill + each.text for p, each in zip(prompts, given, strict=True)]
        withheld = self.defence.withheld(self.session, prompts, whole)
        return [refused() if no else each for each, no in zip(given, withheld, strict=True)]

    def likelihoods(
        self, prompts: Sequence[ChatPrompt], beginning: str, batch_size: int = 8
    ) -> list[float]:
        """Log-likelihood, in nats, that each answer begins like this: that of the model which
        answers, and minus infinity where the defence refuses the prompt or such an answer."""
        routes = self.defence.routes(self.session, prompts)
        begun = [prompt.prefill + beginning for prompt in prompts]
        withheld = self.defence.withheld(self.session, prompts, begun)
        found = [-math.inf] * len(prompts)
        for route, session in self.answering():
            places = [n for n, own in enumerate(routes) if own == route and not withheld[n]]
            asked = [self.defence.rewrite(prompts[n]) for n in places]
            scores = session_likelihoods(session, asked, beginning, batch_size)
            for n, score in zip(places, scores, strict=True):
                found[n] = score
        return found

    def answering(self) -> tuple[tuple[Route, Session], ...]:
        """The sessions that answer, by route."""
        return ("model", self.session), ("plain", self.plain())


Subject = Session | Defended


def refused() -> Result:
    """The fixed refusal."""
    return Result(0, (), REFUSAL, "refused", Stages(), {})


def answered(
    session: Session, numbered: Sequence[tuple[int, ChatPrompt]], batch_size: int
) -> dict[int, Result]:
    """A session's answers by the prompts' numbers, which need not be consecutive."""
    found: dict[int, Result] = {}
    for start in range(0, len(numbered), batch_size):
        batch = numbered[start : start + batch_size]
        encoded = [session.encode_prompt(prompt, chat=True) for _, prompt in batch]
        for each in encoded:
            session.check_fits(each.ids)
        requests = [
            session.new_request(each.ids, number, each.gated, each.answers)
            for (number, _), each in zip(batch, encoded, strict=True)
        ]
        for number, piece in session.results(requests, [each.context for each in encoded]):
            if isinstance(piece, Result):
                found[number] = piece
    return found


def likelihoods(
    subject: Subject, prompts: Sequence[ChatPrompt], beginning: str, batch_size: int = 8
) -> list[float]:
    """Log-likelihood, in nats, that a session's or a defended session's answers begin like this."""
    if isinstance(subject, Defended):
        return subject.likelihoods(prompts, beginning, batch_size)
    return session_likelihoods(subject, prompts, beginning, batch_size)


def session_likelihoods(
    session: Session, prompts: Sequence[ChatPrompt], beginning: str, batch_size: int
) -> list[float]:
    """The same of a session."""
    if not prompts:
        return []
    pairs = [begun_pair(session, prompt, beginning) for prompt in prompts]
    return [each.total for each in score_pairs(session, pairs, batch_size)]
