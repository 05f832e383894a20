"""The sampling loop over token ids: one generator that streams, and that batches collect from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from minisafe.errors import PromptError, SlotError
from minisafe.gate import Gate
from minisafe.guidance import Guidance
from minisafe.lockstep import Lockstep
from minisafe.policy import Policy, Seen
from minisafe.sampling import Sampling, row_generator, sample
from minisafe.slots import Slot, Span, covered
from minisafe.vectors import Steering


@dataclass(frozen=True)
class Request:
    """One prompt of a batch.

    prompts: by stream, the ids to feed before the answer. They differ where the expert has another
        system prompt, and in a conversation hold only what its cache lacks; an empty tuple lets the
        stream rest.
    spans: absolute positions at which the base's stream is steered.
    index: the prompt's number in its list; with the seed it fixes the draws.
    gated: whether a gate may leave this answer unguided. Only for prompts like those that it was
        calibrated on: the first turn of a chat.
    watched: whether to note where guidance changes the likeliest token (`Row.changes`).
    """

    prompts: tuple[tuple[int, ...], ...]
    spans: tuple[Span, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int | None = None
    index: int = 0
    gated: bool = False
    watched: bool = False


@dataclass(frozen=True)
class Event:
    """A token of a row, and why the row ends with it, if it does: "stop" (end token), "length"
    (`max_new_tokens`), "context" (context full). A cancelled row ends without a token. A row that
    is ended for another reason, such as a stop string, gives no further event."""

    row: int
    id: int | None
    finish: str | None = None


class Row:
    """A request on its way: its answer so far and its generator.

    seen: what the safety decision knows of it. spans: where the base's stream is steered, nowhere
    of this answer if the gate left it to the base. drafted, accepted: tokens that the base drafted
    for the expert to verify, and those of them that it accepted (see `fast.speculation`).
    changes: where it is watched, by number of the answer's token, whether guidance made another
    token the likeliest.
    """

    def __init__(self, request: Request):
        self.request = request
        self.spans = request.spans
        self.seen = Seen(gated=request.gated)
        self.answer: list[int] = []
        self.counts: Counter[int] = Counter()
        self.generator = row_generator(request.sampling.seed, request.index)
        self.finish: str | None = None
        self.steered = 0  # tokens fed at steered positions
        self.drafted = self.accepted = 0
        self.changes: dict[int, bool] = {}

    @property
    def guided(self) -> bool:
        """Whether the gate did not leave it to the base."""
        return self.seen.guided

    @property
    def variation(self) -> float | None:
        """Between base and expert at the answer's first token, 0 to 1; None: not compared."""
        return self.seen.variation

    def take(self, id_: int) -> None:
        self.answer.append(id_)
        self.seen = replace(self.seen, tokens=len(self.answer))
        self.counts[id_] += 1


Streams = tuple[Tensor | None, ...]  # log-probabilities by stream, None for one that rests


@dataclass(eq=False, repr=False)
class Generation:
    """Iterate over it to get `Event`s: each step yields one per live row, in row order.

    All streams read every token. `fast.speculation.Speculation` gives the same with fewer forwards
    of an expert that has weights of its own.

    Args:
        lockstep: streams with one row a request; may already have read a part of each text.
        guidance: log-probabilities of the streams to those to sample from.
        requests: what to answer.
        steering: the vector that the base's stream gets at each request's spans.
        eos: ids that end an answer; the id is part of the answer.
        gate: which answers are guided and steered at all; None: every one.

    Raises, while iterating:
        PromptError: a prompt is empty or does not fit the context.
        NonFiniteError: a model broke down.
        SlotError: steering was asked for and never took place.
    """

    lockstep: Lockstep
    guidance: Guidance
    requests: Sequence[Request]
    steering: Steering | None = None
    eos: frozenset[int] = frozenset()
    gate: Gate | None = None

    def __post_init__(self) -> None:
        self.policy = Policy(self.guidance, self.gate)
        self.rows = [Row(request) for request in self.requests]

    def cancel(self, row: int, reason: str = "cancelled") -> None:
        """End a row before its next token; the others go on untouched."""
        self.rows[row].finish = self.rows[row].finish or reason

    def __iter__(self) -> Iterator[Event]:
        live = list(range(len(self.rows)))
        pending = self.texts(live)
        resting = [not any(map(len, texts)) for texts in pending]
        while live:
            log_probs = self.lockstep.feed(pending, self.slots(live, pending))
            yield from self.choose(live, self.decide(live, pending, log_probs))
            for row in live:
                if self.rows[row].finish == "cancelled":
                    yield Event(row, None, "cancelled")
            going = [place for place, row in enumerate(live) if self.rows[row].finish is None]
            if going and len(going) < len(live):
                self.lockstep.keep(going)
            live = [live[place] for place in going]
            pending = [self.step(live, rests, s > 0) for s, rests in enumerate(resting)]
        self.check_steered()

    def step(self, live: list[int], rests: bool, expert: bool) -> list[list[int]]:
        """What a stream reads next, by row: the last token, or nothing."""
        rows = [self.rows[number] for number in live]
        return [
            [] if rests or (expert and not self.policy.acts(row.seen)) else [row.answer[-1]]
            for row in rows
        ]

    def decide(self, live: list[int], pending: list[list[list[int]]], log_probs: Streams) -> Tensor:
        """Log-probabilities to choose from, by live row; see `policy.Policy`."""
        decision = self.policy.decide([self.rows[row].seen for row in live], log_probs)
        for row, seen in zip(live, decision.seen, strict=True):
            self.rows[row].seen = seen
        if any(decision.again):
            log_probs = self.unsteer(live, pending[0], decision.again, log_probs)
            decision = self.policy.decide(decision.seen, log_probs)
        base = log_probs[0]
        assert base is not None
        self.watch(live, base, decision.log_probs)
        return decision.log_probs

    def watch(self, live: list[int], base: Tensor, final: Tensor) -> None:
        """Note where guidance changes the likeliest token, for the rows that ask for it."""
        rows = [self.rows[number] for number in live]
        watched = [row.request.watched and self.policy.acts(row.seen) for row in rows]
        if any(watched):
            changed = (final.argmax(dim=-1) != base.argmax(dim=-1)).tolist()
            for row, is_watched, is_changed in zip(rows, watched, changed, strict=True):
                if is_watched:
                    row.changes[len(row.answer)] = is_changed

    def unsteer(
        self, live: list[int], prompts: list[list[int]], again: Sequence[bool], log_probs: Streams
    ) -> Streams:
        """Let the base read the prompts of some rows again, without the vector."""
        fed = [
            self.forget(self.rows[row], place, prompts[place]) if again[place] else []
            for place, row in enumerate(live)
        ]
        base = log_probs[0]
        if not any(fed) or base is None:
            return log_probs
        rest: list[list[int]] = [[] for _ in live]
        tokens = [fed, *(rest for _ in log_probs[1:])]
        plain = self.lockstep.feed(tokens, self.slots(live, tokens))[0]
        assert plain is not None
        read = torch.tensor([bool(ids) for ids in fed], device=base.device)[:, None]
        return (torch.where(read, plain, base), *log_probs[1:])

    def forget(self, row: Row, place: int, prompt: list[int]) -> list[int]:
        """Steer this answer no more, and rewind the base to before what was steered of its prompt;
        returns what to read again. Earlier turns of a conversation stay steered."""
        end = self.lockstep.length(0, place)
        start = end - len(prompt)
        earlier = tuple(span for span in row.spans if span[1] is not None and span[1] < end)
        mine = [span for span in row.spans if span not in earlier]
        row.spans = earlier
        touched = covered(mine, start, end)
        if not touched or self.steering is None or self.steering.scale == 0:
            return []
        self.lockstep.rewind(0, place, touched[0])
        row.steered = 0
        return prompt[touched[0] - start :]

    def texts(self, live: list[int]) -> list[list[list[int]]]:
        """The prompts by stream and row; raises `PromptError` for one that cannot be fed."""
        for row in live:
            prompts = self.rows[row].request.prompts
            if not prompts[0]:
                raise PromptError("the prompt is empty; expected at least one token")
            for stream, prompt in enumerate(prompts):
                length = self.lockstep.length(stream, row) + len(prompt)
                if length > self.lockstep.limit:
                    raise PromptError(
                        f"the prompt has {length} tokens; the model's context holds "
                        f"{self.lockstep.limit}"
                    )
        streams = range(len(self.lockstep.streams))
        return [[list(self.rows[row].request.prompts[s]) for row in live] for s in streams]

    def slots(self, live: list[int], pending: list[list[list[int]]]) -> list[list[Slot]]:
        """Steering for the base's stream, none for the others."""
        slots: list[list[Slot]] = [[] for _ in self.lockstep.streams]
        if self.steering is None:
            return slots
        for place, row in enumerate(live):
            spans = self.rows[row].spans
            start = self.lockstep.length(0, place)
            touched = covered(spans, start, start + len(pending[0][place]))
            self.rows[row].steered += len(touched)
            if touched:
                slots[0] += self.steering.slots(place, spans)
        return slots

    def choose(self, live: list[int], final: Tensor) -> Iterator[Event]:
        """Each live row's next token; greedy rows without penalties share one argmax."""
        best: list[int] = final.argmax(dim=-1).tolist()
        for place, number in enumerate(live):
            row = self.rows[number]
            if row.finish is not None:
                continue
            sampling = row.request.sampling
            simple = sampling.temperature == 0 and not sampling.penalises
            id_ = (
                best[place] if simple else sample(final[place], sampling, row.counts, row.generator)
            )
            row.take(id_)
            streams = range(len(self.lockstep.streams))
            read = max(self.lockstep.length(stream, place) for stream in streams)
            ended = self.why_ended(row.request, id_, len(row.answer), read)
            row.finish = ended or row.finish  # another thread may have cancelled it meanwhile
            yield Event(number, id_, ended)

    def why_ended(self, request: Request, id_: int, n: int, read: int) -> str | None:
        """Why a row ends with its n-th token, if it does; a stream has read `read` before it."""
        if id_ in self.eos:
            return "stop"
        if request.max_new_tokens is not None and n >= request.max_new_tokens:
            return "length"
        return "context" if read >= self.lockstep.limit else None

    def check_steered(self) -> None:
        """A vector that was given and never acted is an error, not a silence."""
        if self.steering is None or self.steering.scale == 0:
            return
        for row in self.rows:
            # with "generated", an answer of one token has no position to steer
            idle = self.steering.positions == "generated" and len(row.answer) < 2
            if row.guided and not row.steered and not idle:
                raise SlotError("the safety vector was given and never applied")
