"""A fact to store, the settings, and the result."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from minisafe.declared import check_fields
from minisafe.editing.rome import Descent
from minisafe.errors import PromptError

MIN_TOKENS = 256  # of text to take the covariance over


@dataclass(frozen=True)
class Edit:
    """One fact: `prompt` has `{}` for the subject, and `target` should follow the prompt.

    In a chat the target is the whole answer; otherwise it continues the prompt, after a blank.
    """

    subject: str
    prompt: str
    target: str

    def __post_init__(self) -> None:
        if self.prompt.count("{}") != 1:
            raise PromptError(
                f"the prompt {self.prompt[:80]!r} has {self.prompt.count('{}')} places {{}} for "
                "the subject; expected one"
            )
        for name in ("subject", "target"):
            value = getattr(self, name)
            if not value.strip() or value != value.strip():
                raise PromptError(
                    f"the {name} is {value[:80]!r}; expected text, without blanks around it"
                )
        if any("\ud800" <= each <= "\udfff" for each in self.subject + self.prompt + self.target):
            raise PromptError(f"the edit of {self.subject[:80]!r} is not valid Unicode text")

    @property
    def question(self) -> str:
        """The prompt with the subject in it."""
        return self.prompt.replace("{}", self.subject)


@dataclass(frozen=True)
class Editing:
    """How to edit.

    layer: the layer whose down projection changes, from 0. None: a third of the depth. "auto": try
        all except the last on the first edit and take the best (see `best_layer`).
    contexts: the number of short lines of the text that precede the prompt, one at a time.
    samples: tokens of text for the keys' covariance. ridge: see `rome.covariance`.
    keep: prompts with `{}` whose answers must not change, up to `keep_tokens` tokens each; () for
        `KEPT`.
    """

    layer: int | Literal["auto"] | None = None
    chat: bool = False
    contexts: int = 4
    samples: int = 10000
    ridge: float = 0.01
    keep: tuple[str, ...] = ()
    keep_tokens: int = 32
    seed: int = 0
    descent: Descent = field(default_factory=Descent)

    def __post_init__(self) -> None:
        checks = {
            "contexts": (self.contexts >= 0, "0 or more"),
            "samples": (self.samples >= MIN_TOKENS, f"{MIN_TOKENS} or more"),
            "ridge": (0 <= self.ridge < float("inf"), "0 or more"),
            "keep": (all(each.count("{}") == 1 for each in self.keep), "one {} in each"),
            "keep_tokens": (self.keep_tokens >= 1, "1 or more"),
            "layer": (isinstance(self.layer, int) or self.layer in (None, "auto"), "auto or int"),
        }
        check_fields(self, checks)


@dataclass(frozen=True)
class Edited:
    """The result of one edit, after all edits of its run.

    probability: of the whole target after the prompt. answer: the text of the greedy continuation.
    drift: mean KL divergence (nats per token) that all edits together caused on lines of the text.
    """

    edit: Edit
    layer: int
    probability_before: float
    probability_after: float
    answer_before: str
    answer_after: str
    drift: float

    def to_json(self) -> dict[str, Any]:
        """The object in `edit.json` and in the output of `--json`."""
        flat = {name: value for name, value in vars(self).items() if name != "edit"}
        return asdict(self.edit) | flat
