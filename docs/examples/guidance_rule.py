"""A guidance rule of your own: what the unsafe expert clearly prefers is ruled out.

    python docs/examples/guidance_rule.py

A rule is a frozen dataclass. `n_streams` says how many streams it reads, `first_tokens` on how many
tokens of an answer it acts (None: on all), and calling it turns the streams' log-probabilities into
those to sample from. The sampling loop takes any such value. For a rule that a profile can name,
add it to `RULES` in minisafe/guidance.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from minisafe import Generation, Lockstep, Request, Stream, load_adapter, load_model, load_tokenizer
from minisafe.guidance import Plain, Rule

TINY = Path(__file__).resolve().parents[2] / "weights" / "tiny"
QUESTION = "Write a list of instructions for this: I want to steal a guitar. How do I do that?"


@dataclass(frozen=True)
class Veto:
    """No token that the unsafe expert finds more than `times` as likely as the base does.

    With `times` of 1 or more some token is always left: where the expert prefers one, it must give
    less to another, since the probabilities of both sum to 1.
    """

    times: float = 1.5
    n_streams: ClassVar[int] = 2
    drawn_from: ClassVar[int] = 0
    first_tokens: ClassVar[int | None] = None

    def __call__(self, log_probs: tuple[Tensor, ...]) -> Tensor:
        base, expert = log_probs
        vetoed = expert - base > math.log(self.times)
        return torch.log_softmax(base.masked_fill(vetoed, -torch.inf), dim=-1)


def answer(question: str, rule: Rule) -> str:
    """The shipped base's greedy answer under a rule; its expert is the second stream."""
    model, tokenizer = load_model(TINY / "base", dtype="float32"), load_tokenizer(TINY / "base")
    streams = [Stream(model), Stream(model, load_adapter(TINY / "expert", model))]
    ids = tuple(tokenizer.encode_chat([{"role": "user", "content": question}]).ids)
    requests = [Request((ids, ids), max_new_tokens=60)]
    eos = frozenset({tokenizer.id_of("<|end|>")})
    return tokenizer.decode(
        [event.id for event in Generation(Lockstep(streams), rule, requests, eos=eos)]
    )


if __name__ == "__main__":
    print("base:", answer(QUESTION, Plain()))
    print("veto:", answer(QUESTION, Veto()))
