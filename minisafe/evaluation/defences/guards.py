"""Guards: a classifier or a filter reads what is asked, or the answer, and may put a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minisafe.errors import SettingError
from minisafe.evaluation.defences.classifier import named
from minisafe.evaluation.defences.defence import Defence, Route
from minisafe.evaluation.defences.features import (
    FEATURES,
    answer_features,
    message_features,
    perplexity,
    user_texts,
)
from minisafe.evaluation.defences.fitted import Fitted
from minisafe.session import Session
from minisafe.session.alone import parts_of, worst_parts
from minisafe.session.chat_prompt import ChatPrompt

WINDOWS = (0, 5, 10)  # tokens; 0: the whole message


@dataclass(frozen=True, eq=False)
class Guard(Defence):
    """A classifier of `minisafe rivals`. features: what it reads, one of `FEATURES`. threshold: the
    probability of harm from which it refuses."""

    fitted: Fitted
    features: str = "hidden"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.features not in FEATURES:
            raise SettingError(
                f"features is {self.features!r}; expected one of {', '.join(FEATURES)}"
            )
        if not 0 < self.threshold < 1:
            raise SettingError(f"threshold is {self.threshold:g}; expected it between 0 and 1")

    def prepare(self, session: Session) -> Session:
        self.fitted.check(session)
        return session


@dataclass(frozen=True, eq=False)
class InputGuard(Guard):
    """Refuses a conversation in which any message of the user's, read alone, seems harmful.

    sentences: whether each sentence of a message is read alone as well, as `read_alone` does.
    """

    sentences: bool = False

    def routes(self, session: Session, prompts: Sequence[ChatPrompt]) -> list[Route]:
        harmful = [self.score(session, prompt) >= self.threshold for prompt in prompts]
        return ["refuse" if each else "model" for each in harmful]

    def score(self, session: Session, prompt: ChatPrompt) -> float:
        """The largest probability of harm of the user's messages."""
        judge = named(self.fitted.tensors, f"input.{self.features}")
        texts = user_texts(prompt)
        if self.sentences:
            texts = [part for text in texts for part in parts_of(text)]
        found = (message_features(session, self.features, text) for text in texts)
        return max(judge.probability(each) for each in found)


@dataclass(frozen=True)
class AloneGuard(Defence):
    """`read_alone` without guidance: a part above the threshold is refused instead of answered
    alone, and the base answers all else."""

    def prepare(self, session: Session) -> Session:
        if session.alone is None:
            raise SettingError("it needs a profile with read_alone and its calibration")
        return session

    def routes(self, session: Session, prompts: Sequence[ChatPrompt]) -> list[Route]:
        assert session.alone is not None
        worst = worst_parts(session, prompts, len(prompts))
        opens = session.alone.opens
        return ["refuse" if opens(part.harm) else "plain" for part in worst]


@dataclass(frozen=True, eq=False)
class OutputGuard(Guard):
    """Replaces a whole answer, prefill and all, that seems to help with harm."""

    def withheld(
        self, session: Session, prompts: Sequence[ChatPrompt], answers: Sequence[str]
    ) -> list[bool]:
        return [
            bool(answer) and self.score(session, prompt, answer) >= self.threshold
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def score(self, session: Session, prompt: ChatPrompt, answer: str) -> float:
        """The probability that the answer, after its conversation, helps with harm."""
        judge = named(self.fitted.tensors, f"output.{self.features}")
        return judge.probability(answer_features(session, self.features, prompt, answer))


@dataclass(frozen=True, eq=False)
class PerplexityFilter(Defence):
    """Refuses a conversation with a message that surprises the base more than all but a share of
    harmless development questions do (Alon and Kamfonas 2023, arXiv 2308.14132; by windows: Jain et
    al. 2023, arXiv 2309.00614).

    window: tokens, one of `WINDOWS`. alarms: that share.
    """

    fitted: Fitted
    window: int = 0
    alarms: float = 0.02

    def __post_init__(self) -> None:
        if self.window not in WINDOWS:
            raise SettingError(f"window is {self.window}; expected one of {WINDOWS}")
        check_share(self.alarms)

    def prepare(self, session: Session) -> Session:
        self.fitted.check(session)
        return session

    def routes(self, session: Session, prompts: Sequence[ChatPrompt]) -> list[Route]:
        most = threshold(self.fitted, f"perplexity.{self.window}", self.alarms)
        return [
            "refuse"
            if max(perplexity(session, text, self.window) for text in user_texts(prompt)) > most
            else "model"
            for prompt in prompts
        ]


def check_share(alarms: float) -> None:
    """Raise `SettingError` unless it is a share."""
    if not 0 <= alarms < 1:
        raise SettingError(f"alarms is {alarms:g}; expected a share, 0 or more and below 1")


def threshold(fitted: Fitted, name: str, alarms: float) -> float:
    """The value that a share of the harmless development prompts exceeds: their values, sorted, are
    the tensor `name`, (n,)."""
    values = fitted.tensors[name].sort().values
    return float(values[len(values) - 1 - int(alarms * len(values))])
