"""A traced answer: the header, the steps as they come, the result. docs/trace.md has the schema."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minisafe import __version__
from minisafe.engine import RequestState
from minisafe.errors import SettingError
from minisafe.guidance import RULES
from minisafe.sampling import filtered
from minisafe.session.answer import Answer, Result
from minisafe.session.chat_prompt import ChatPrompt
from minisafe.session.fingerprints import fingerprints
from minisafe.session.own_rule import rule_name
from minisafe.session.settings import PATHS
from minisafe.trace.beside import Beside
from minisafe.trace.measure import compare, gather, penalties
from minisafe.trace.pieces import Pieces
from minisafe.trace.step import Layers, Step
from minisafe.trace.watched import Watched

if TYPE_CHECKING:
    from minisafe.session.session import Session

FORMAT, VERSION = "minisafe trace", 1


class Trace:
    """Iterate over it to get the steps of an answer as they are drawn; `Session.trace` makes it.

    The tokens are those of `Session.generate`; but a session that drafts ahead draws others at a
    temperature above 0, since a trace draws one by one. `result` is there after the last step.
    `lines` gives all of it as JSON objects.
    """

    def __init__(
        self, session: Session, prompt: str | ChatPrompt, chat: bool, index: int, top: int
    ):
        if top < 1:
            raise SettingError(f"top is {top}; expected 1 or more")
        self.session, self.top = session, top
        self.asked, self.chat = prompt, chat or isinstance(prompt, ChatPrompt)
        self.since = session.running.cancels
        (self.encoded,) = session.encode_prompts([prompt], chat)
        self.request = session.new_request(self.encoded, index)
        self.names = ("base", *RULES[session.settings.rule].others)[: len(session.streams)]
        self.pieces = Pieces(session.tokenizer)
        self.result: Result | None = None

    def __iter__(self) -> Iterator[Step]:
        session, prompts = self.session, self.request.prompts
        request = replace(self.request, deadline=session.new_deadline())  # begins now
        longest = max(map(len, prompts)) + (self.request.max_new_tokens or 0)
        generation = Watched(
            session.new_lockstep(1, longest), session.rule, [request], session.steering,
            session.eos, session.gate,
        )  # fmt: skip
        state, answer = generation.states[0], session.new_answer(self.encoded.context)
        beside, n = None, 0
        read: Sequence[Sequence[int]] = prompts
        for _, piece in session.grow(generation, [answer], self.since):
            if len(answer.tokens) > n:  # the last event of a cancelled answer has no token
                beside, n = beside or self.new_beside(state, longest), len(answer.tokens)
                yield self.step(generation, answer, piece, *beside.read(read, state.spans))
                read = ((answer.tokens[-1],),) * len(prompts)
        acted = session.stages.on_answer(state, session.gate)
        self.result = answer.result(len(prompts[0]), acted)

    def new_beside(self, state: RequestState, longest: int) -> Beside:
        """What reads along; without the vector if nothing is steered, or nothing is any more."""
        session, steering = self.session, self.session.steering
        return Beside(
            session.streams, self.names, steering if state.spans else None, session.n_ids,
            min(longest, session.limit), session.settings.cache_dtype,
        )  # fmt: skip

    def step(
        self, generation: Watched, answer: Answer, piece: str, base: Tensor, layers: Layers
    ) -> Step:
        """The step of the generation's last token. base: (n_ids,), without the vector."""
        said = {name: each[0] for name, each in self.said(generation) if each is not None}
        if not generation.states[0].spans:
            base = said["steered"]  # nothing is steered, so it is the same, to the last bit
        said = {"base": base, **said, "safe": generation.final[0]}
        id_, rule = answer.tokens[-1], generation.rule
        penalty = penalties(rule, generation.log_probs) if generation.acted else None
        candidates = gather(said, penalty, id_, self.top)
        best = {name: int(each.argmax()) for name, each in said.items()}
        both = [each for each in (layers.steered, layers.unsteered) if each is not None]
        named = [*candidates.ids, *(each for lens in both for each in lens.lens)]
        return Step(
            len(answer.tokens) - 1, id_, piece, self.drawn(said["safe"], answer),
            generation.acted, best["safe"] != best["steered"], best["safe"] != best["base"],
            compare(base, said["steered"], said["safe"]), candidates, layers,
            {each: self.pieces[each] for each in named},
        )  # fmt: skip

    def said(self, generation: Watched) -> Iterator[tuple[str, Tensor | None]]:
        """Each stream's log-probabilities, (1, vocab), by its name in a trace."""
        return zip(("steered", *self.names[1:]), generation.log_probs, strict=True)

    def drawn(self, safe: Tensor, answer: Answer) -> float:
        """The last token's log-probability in what it was drawn from."""
        before = Counter(answer.tokens[:-1])
        return float(filtered(safe, self.request.sampling, before)[answer.tokens[-1]])

    # ---- as JSON ---------------------------------------------------------------------------

    def lines(self) -> Iterator[dict[str, Any]]:
        """The header, a line for each step, and the result: what a file or a page takes."""
        yield self.header()
        for step in self:
            yield step.to_json()
        assert self.result is not None
        yield {"kind": "result", **self.result.to_json()}

    def header(self) -> dict[str, Any]:
        """What was asked, with which settings, of which weights."""
        session, asked = self.session, self.asked
        made = {
            "kind": "header",
            "format": FORMAT,
            "version": VERSION,
            "versions": {"minisafe": __version__, "torch": str(torch.__version__)},
            "asked": asked.to_json() if isinstance(asked, ChatPrompt) else asked,
            "chat": self.chat,
            "index": self.request.index,
            "left": self.request.left,
            "alone": self.request.alone,
            "pieces": [self.pieces[each] for each in self.request.prompts[0]],
            "streams": self.streams(),
            "vocabulary": session.n_ids,
            "layers": session.model.config.n_layers,
            "top": self.top,
            "vector": self.vector(),
            "rule": {"name": rule_name(session.rule), **vars(session.rule)},
            "gate": None if session.gate is None else session.gate.threshold,
            "reads_alone": None if session.alone is None else session.alone.threshold,
            "settings": {n: v for n, v in vars(session.settings).items() if n not in PATHS},
            "fingerprints": {
                **fingerprints(session.streams, session.steering, self.names[1:]),
                "tokenizer": session.tokenizer.fingerprint,
            },
        }
        plain: dict[str, Any] = json.loads(json.dumps(made, default=str))
        return plain

    def streams(self) -> list[dict[str, Any]]:
        """Each stream's name, kind and prompt."""
        kinds, prompts = ("model", *self.session.kinds), self.request.prompts
        return [
            {"name": name, "kind": kind, "ids": ids}
            for name, kind, ids in zip(self.names, kinds, prompts, strict=True)
        ]

    def vector(self) -> dict[str, Any] | None:
        """Where the vector is added, if there is one."""
        steering = self.session.steering
        if steering is None:
            return None
        return {
            "layers": sorted(steering.vectors),
            "scale": steering.scale,
            "positions": steering.positions,
            "streams": [self.names[each] for each in steering.streams],
        }
