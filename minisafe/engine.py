"""The sampling loop over token ids: one generator, for streaming and for batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from minisafe.deadline import Deadline
from minisafe.errors import PromptError, SlotError
from minisafe.gate import Gate
from minisafe.guidance import Rule
from minisafe.lockstep import Lockstep
from minisafe.policy import LogProbs, Policy, Seen
from minisafe.sampling import Sampling, row_generator, sample
from minisafe.slots import Slot, Span, covered
from minisafe.vectors import Steering, moved


@dataclass(frozen=True)
class Request:
    """One prompt of a batch, with its settings.

    prompts: per stream, the ids to feed before the answer. They differ if the expert has another
        system prompt. In a conversation they hold only what the stream's cache lacks. A stream
        whose tuple is empty rests.
    spans: absolute positions, of the base, that are steered.
    index: the prompt's number in its list; seed and index fix the draws.
    gated: whether a gate may leave this answer to the base. Only for prompts like those that the
        gate was calibrated on: the first turn of a chat.
    note_changes: whether to note where guidance changes the likeliest token.
    alone: how harmful the worst part of what the user asked is by itself, if this is that part, or
        if none is harmful and the answer is left to the base.
    left: whether it is left to the base from the start: no vector, no rule.
    deadline: after it, the next token is the last.
    """

    prompts: tuple[tuple[int, ...], ...]
    spans: tuple[Span, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int | None = None
    index: int = 0
    gated: bool = False
    note_changes: bool = False
    alone: float | None = None
    left: bool = False
    deadline: Deadline | None = None


Ids = list[list[list[int]]]  # token ids: [stream][batch row] -> list of ids


@dataclass(frozen=True)
class Event:
    """A token of a request. finish: why its answer ends here, if it does: "stop" (end token),
    "length" (`max_new_tokens`), "context" (context full) or "time" (deadline passed).

    request: its number in the batch. A cancelled request ends with an event without a token. A
    request that is ended for another reason, such as a stop string, yields no further event.
    """

    request: int
    id: int | None
    finish: str | None = None


class RequestState:
    """A request in progress.

    seen: what the safety decision knows about it. spans: the steered positions; once the gate
    has left the answer to the base, nowhere in this turn. steered: how many tokens were fed at
    steered positions. changes: if noted, by the number of the answer's token, whether guidance made
    another token the likeliest. drafted, accepted: see `fast.speculation`.
    """

    def __init__(self, request: Request):
        self.request = request
        self.spans = request.spans
        self.seen = Seen(gated=request.gated, left_to_base=request.left)
        self.answer: list[int] = []
        self.counts: Counter[int] = Counter()
        self.generator = row_generator(request.sampling.seed, request.index)
        self.finish: str | None = None
        self.steered = 0
        self.changes: dict[int, bool] = {}
        self.drafted = self.accepted = 0

    def take(self, id_: int) -> None:
        """Append a token to the answer."""
        self.answer.append(id_)
        self.seen = replace(self.seen, tokens=len(self.answer))
        self.counts[id_] += 1


@dataclass(eq=False, repr=False)
class Generation:
    """Iterate over it to get `Event`s: each step yields one per live request, in request order.

    The first step feeds the prompts; each later step feeds one token to every stream that the rule
    still needs. `fast.speculation.Speculation` samples from the same distribution with fewer
    forwards of an expert that has its own weights.

    Args:
        lockstep: streams with one row per request; they may have read part of each text already.
        rule: combines the streams' log-probabilities into those to sample from.
        requests: what to answer.
        steering: the vector to add to its streams at each request's spans.
        eos: ids that end an answer; the id is part of the answer.
        gate: decides which answers are guided and steered; None: all of them.

    Raises:
        PromptError: a prompt is empty or does not fit the context.
        NonFiniteError, while iterating: a model produced NaN or infinite logits.
        SlotError, at the end: steering was asked for and never applied.
    """

    lockstep: Lockstep
    rule: Rule
    requests: Sequence[Request]
    steering: Steering | None = None
    eos: frozenset[int] = frozenset()
    gate: Gate | None = None

    def __post_init__(self) -> None:
        self.policy = Policy(self.rule, self.gate)
        self.states = [RequestState(request) for request in self.requests]
        self.check_prompts()

    def cancel(self, number: int, reason: str = "cancelled") -> None:
        """End a request before its next token; the others are unaffected."""
        self.states[number].finish = self.states[number].finish or reason

    def __iter__(self) -> Iterator[Event]:
        live = list(range(len(self.requests)))  # the request number of each batch row
        tokens = self.prompts()
        resting = [not any(map(len, rows)) for rows in tokens]  # streams that read nothing
        while live:
            # 1. every stream reads: first the prompts (prefill), then one token (decode)
            log_probs = self.feed(live, tokens)
            # 2. the safety decision, and 3. a token for each request
            yield from self.choose(live, self.decide(live, tokens, log_probs))
            # 4. requests that have ended leave the batch
            for number in live:
                if self.states[number].finish == "cancelled":
                    yield Event(number, None, "cancelled")
            going = [row for row, number in enumerate(live) if self.states[number].finish is None]
            if going and len(going) < len(live):
                self.lockstep.keep(going)
            live = [live[row] for row in going]
            # 5. what each stream reads next
            tokens = [self.next_tokens(live, rests, s > 0) for s, rests in enumerate(resting)]
        self.check_steered()

    # ---- the steps, in order -----------------------------------------------------------------

    def prompts(self) -> Ids:
        """The prompts' ids: [stream][row] -> list of ids."""
        streams = range(len(self.lockstep.streams))
        return [[list(request.prompts[s]) for request in self.requests] for s in streams]

    def feed(self, live: list[int], tokens: Ids) -> LogProbs:
        """Feed `tokens[stream][row]` to the streams and steer them at each request's spans; returns
        log-probabilities per stream."""
        slots: list[list[Slot]] = [[] for _ in self.lockstep.streams]
        for stream in () if self.steering is None else self.steering.streams:
            for row, number in enumerate(live):
                slots[stream] += self.slots(stream, row, self.states[number], tokens)
        return self.lockstep.feed(tokens, slots)

    def slots(self, stream: int, row: int, state: RequestState, tokens: Ids) -> list[Slot]:
        """The slots that steer a row of a stream in this forward. The request's spans are the
        base's positions; a stream that has more before the conversation has them further on."""
        assert self.steering is not None
        start, own = self.lockstep.length(stream, row), len(tokens[stream][row])
        ahead = start + own - self.lockstep.length(0, row) - len(tokens[0][row])
        spans = moved(state.spans, ahead)
        steered = covered(spans, start, start + own)
        state.steered += len(steered)
        return self.steering.slots(row, spans) if steered else []

    def decide(self, live: list[int], tokens: Ids, log_probs: LogProbs) -> Tensor:
        """The log-probabilities to sample from, (rows, vocab); see `policy.Policy`."""
        decision = self.policy.decide([self.states[number].seen for number in live], log_probs)
        for number, seen in zip(live, decision.seen, strict=True):
            self.states[number].seen = seen
        if any(decision.just_left):
            log_probs = self.unsteer(live, tokens[0], decision.just_left, log_probs)
            decision = self.policy.decide(decision.seen, log_probs)
        base = log_probs[0]
        assert base is not None
        self.note_changes(live, base, decision.log_probs)
        return decision.log_probs

    def choose(self, live: list[int], final: Tensor) -> Iterator[Event]:
        """Choose each live request's next token; greedy rows without penalties share one argmax."""
        best: list[int] = final.argmax(dim=-1).tolist()
        for row, number in enumerate(live):
            state = self.states[number]
            if state.finish is not None:
                continue
            sampling = state.request.sampling
            if sampling.temperature == 0 and not sampling.penalises:
                id_ = best[row]
            else:
                id_ = sample(final[row], sampling, state.counts, state.generator)
            state.take(id_)
            streams = range(len(self.lockstep.streams))
            read = max(self.lockstep.length(stream, row) for stream in streams)
            ended = self.why_ended(state.request, id_, len(state.answer), read)
            if state.request.deadline is not None:
                ended = ended or why_late(state.request)
            state.finish = ended or state.finish  # another thread may have cancelled it by now
            yield Event(number, id_, ended)

    def why_ended(self, request: Request, id_: int, n: int, read: int) -> str | None:
        """Why an answer ends with its n-th token, if it does. read: how many tokens the stream
        that is furthest ahead has read."""
        if id_ in self.eos:
            return "stop"
        if request.max_new_tokens is not None and n >= request.max_new_tokens:
            return "length"
        return "context" if read >= self.lockstep.limit else None

    def next_tokens(self, live: list[int], rests: bool, expert: bool) -> list[list[int]]:
        """What a stream reads next, per row: the last token, or nothing."""
        states = [self.states[number] for number in live]
        return [
            [] if rests or (expert and not self.policy.acts(state.seen)) else [state.answer[-1]]
            for state in states
        ]

    # ---- the gate leaves an answer to the base -------------------------------------------------

    def unsteer(
        self,
        live: list[int],
        prompts: list[list[int]],
        just_left: Sequence[bool],
        log_probs: LogProbs,
    ) -> LogProbs:
        """Let the base reread the prompts of the rows in `just_left`, without the vector; returns
        log-probabilities per stream."""
        again = [
            self.forget(self.states[number], row, prompts[row]) if just_left[row] else []
            for row, number in enumerate(live)
        ]
        base = log_probs[0]
        if not any(again) or base is None:
            return log_probs
        rest: list[list[int]] = [[] for _ in live]
        plain = self.feed(live, [again, *(rest for _ in log_probs[1:])])[0]
        assert plain is not None
        read = torch.tensor([bool(ids) for ids in again], device=base.device)[:, None]
        return (torch.where(read, plain, base), *log_probs[1:])

    def forget(self, state: RequestState, row: int, prompt: list[int]) -> list[int]:
        """Stop steering this answer and rewind the base to before its prompt's first steered token;
        returns the ids to reread. Earlier turns of a conversation stay steered."""
        end = self.lockstep.length(0, row)
        start = end - len(prompt)
        earlier = tuple(span for span in state.spans if span[1] is not None and span[1] < end)
        mine = [span for span in state.spans if span not in earlier]
        state.spans = earlier
        touched = covered(mine, start, end)
        if not touched or self.steering is None or self.steering.scale == 0:
            return []
        state.steered = 0
        if 0 not in self.steering.streams:
            return []
        self.lockstep.rewind(0, row, touched[0])
        return prompt[touched[0] - start :]

    # ---- notes and checks ----------------------------------------------------------------------

    def note_changes(self, live: list[int], base: Tensor, final: Tensor) -> None:
        """Note where guidance changes the likeliest token, for the requests that ask for it."""
        states = [self.states[number] for number in live]
        noted = [s.request.note_changes and self.policy.acts(s.seen) for s in states]
        if any(noted):
            changed = (final.argmax(dim=-1) != base.argmax(dim=-1)).tolist()
            for state, is_noted, is_changed in zip(states, noted, changed, strict=True):
                if is_noted:
                    state.changes[len(state.answer)] = is_changed

    def check_prompts(self) -> None:
        """Raise `PromptError` for a prompt that cannot be fed."""
        for row, request in enumerate(self.requests):
            if not request.prompts[0]:
                raise PromptError("the prompt is empty; expected at least one token")
            for stream, prompt in enumerate(request.prompts):
                length = self.lockstep.length(stream, row) + len(prompt)
                if length > self.lockstep.limit:
                    raise PromptError(
                        f"the prompt has {length} tokens; the model's context holds "
                        f"{self.lockstep.limit}"
                    )
        for stream in range(len(self.lockstep.streams)):
            if len({bool(request.prompts[stream]) for request in self.requests}) > 1:
                raise PromptError(  # a row that it does not read would be decided without it
                    f"stream {stream} has a prompt in some requests of the batch and none in "
                    "others; expected one in all, or in none"
                )

    def check_steered(self) -> None:
        """Raise `SlotError` if a vector was given and never applied."""
        if self.steering is None or self.steering.scale == 0:
            return
        for state in self.states:
            # with "generated", an answer of one token has no position to steer
            idle = self.steering.positions == "generated" and len(state.answer) < 2
            if not state.seen.left_to_base and not state.steered and not idle:
                raise SlotError("the safety vector was given and never applied")


def why_late(request: Request) -> str | None:
    """Why an answer ends with this token although it could go on: its time is over, or None."""
    return "time" if request.deadline is not None and request.deadline.passed else None
