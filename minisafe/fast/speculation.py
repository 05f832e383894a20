"""Exact speculative lockstep, for an expert with its own weights.

Plain lockstep reads two models' weights for each token. Here the steered base drafts a block of
tokens, and the expert reads the block in one forward (Leviathan et al., 2023, arXiv 2211.17192;
Chen et al., 2023, arXiv 2302.01318). Drafts come from q, the base's distribution after penalties,
temperature and filters; the target p is the guided distribution after the same steps. A draft is
accepted with probability min(1, p / q). The first rejected draft is drawn again from max(p - q, 0),
and all drafts after it are dropped. With temperature 0, a draft is accepted if it is p's best.

If a whole block is accepted, the expert has also read its last token. The next token's target then
needs only the base, so the next block's first draft is verified without the expert.

Each token of an answer has its own three uniform numbers (draft, acceptance, second draw). So a
seed gives the same text for any block lengths and any other rows: the text of a loop that verifies
every token singly. It differs from plain lockstep's text, but has the same distribution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minisafe.engine import Event, Generation, why_late
from minisafe.errors import NonFiniteError
from minisafe.fast.block import BlockLength
from minisafe.fast.draft import Draft
from minisafe.fast.score import score, wipe
from minisafe.lockstep import Stream, Tokens
from minisafe.slots import covered

AUTOMATIC = 7  # with the token before: eight rows, which kernels read about as fast as one


@dataclass(eq=False, repr=False)
class Speculation(Generation):
    """`Generation` for two streams that do not share weights, with fewer forwards of the second.

    A request's events come in order; within a block, requests take turns token by token. At the
    end, or if closed early, the caches hold what they would hold in plain lockstep.

    Args:
        most: the most tokens per block; past acceptances of all rows decide the actual number. The
            other arguments are those of `Generation`.

    `verified` counts drafts that were compared with their target, `accepted` those of them that
    became the answer's tokens; `accepted / verified` is the acceptance rate.
    """

    most: int = AUTOMATIC

    def __post_init__(self) -> None:
        super().__post_init__()
        base, expert = (n_weights(stream) for stream in self.lockstep.streams)
        self.block_length = BlockLength(self.most, expert / base)
        self.verified = self.accepted = 0
        self.live = list(range(len(self.requests)))
        self.drafts: list[Draft] = []  # of the live rows
        self.spoilt = False  # whether a cache holds values that are not finite

    def __iter__(self) -> Iterator[Event]:
        log_probs = self.read_prompts()
        try:
            while self.live:
                yield from self.block(log_probs)
                if self.live:
                    log_probs = self.read([[draft.state.answer[-1]] for draft in self.drafts])
        finally:
            for row in range(len(self.drafts)):
                self.rewind(row, going=False)
        self.check_steered()

    def read_prompts(self) -> Tensor:
        """Let both streams read the prompts; returns the base's log-probabilities after them."""
        prompts = self.prompts()
        found = self.feed(self.live, prompts)
        decision = self.policy.decide([state.seen for state in self.states], found)
        for state, seen in zip(self.states, decision.seen, strict=True):
            state.seen = seen
        if any(decision.just_left):
            found = self.unsteer(self.live, prompts[0], decision.just_left, found)
        base, expert = found
        assert base is not None
        assert expert is not None
        for row, state in enumerate(self.states):
            starts = self.lockstep.length(0, row), self.lockstep.length(1, row)
            guided_tokens = self.policy.guided_tokens(state.seen)
            expert_first = None if state.seen.left_to_base else expert[row]
            self.drafts.append(Draft(state, starts, guided_tokens, expert_first))
        return base

    def read(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Let the base read `ids[row]`; returns its log-probabilities after them."""
        fed: list[list[list[int]]] = [[list(each) for each in ids], [[] for _ in ids]]
        base = self.feed(self.live, fed)[0]
        assert base is not None
        return base

    def expert_reads(self, tokens: Tokens) -> list[Tensor]:
        """Let the expert read `tokens[row]`; returns its log-probabilities after each of them."""
        return score(self.lockstep, 1, tokens)

    def block(self, log_probs: Tensor) -> Iterator[Event]:
        """Draft, verify and emit; then rewind the caches to what the answers have become."""
        verified, accepted, self.spoilt = self.verified, self.accepted, False
        most = self.block_length.now
        if most == 0:
            self.catch_up()
        self.draft(log_probs, max(most, 1))
        self.read_drafts()
        gained = self.verify()
        self.block_length.note(self.accepted - accepted, self.verified - verified)
        yield from self.emit(gained)
        for number in self.live:
            if self.states[number].finish == "cancelled":
                yield Event(number, None, "cancelled")
        going = [row for row, number in enumerate(self.live) if not self.states[number].finish]
        for row in range(len(self.live)):
            self.rewind(row, row in going)
        if going and len(going) < len(self.live):
            self.lockstep.keep(going)
        self.live = [self.live[row] for row in going]
        self.drafts = [self.drafts[row] for row in going]

    def catch_up(self) -> None:
        """Let the expert read the answers' last tokens, so that the next tokens' targets are known.
        This is plain lockstep, for when hardly any draft would be accepted."""
        behind = [d.expert_first is None and d.begin < d.guided_tokens for d in self.drafts]
        if any(behind):
            tokens = [
                d.unread(False) if is_ else [] for d, is_ in zip(self.drafts, behind, strict=True)
            ]
            found = self.expert_reads(tokens)
            for draft, ids, log_probs in zip(self.drafts, tokens, found, strict=True):
                if len(log_probs) < len(ids):
                    raise broken()
                draft.read += len(ids)
                draft.expert_first = log_probs[-1] if ids else draft.expert_first

    def draft(self, log_probs: Tensor, most: int) -> None:
        """Let the base draft one block per row. log_probs: the base's, for the first tokens."""
        if not any(draft.begin < draft.guided_tokens for draft in self.drafts):
            most = 1  # no draft waits for the expert
        going = [True] * len(self.drafts)
        for number in range(most):
            best = log_probs.argmax(dim=-1).tolist()
            for row, draft in enumerate(self.drafts):
                if going[row]:
                    draft.extend(log_probs[row], best[row])
            if number == 0:
                self.verify_first()
            going = [more and not self.ends(d) for d, more in zip(self.drafts, going, strict=True)]
            if number + 1 == most or not any(going):
                return
            ids = [d.ids[-1:] if more else [] for d, more in zip(self.drafts, going, strict=True)]
            try:
                log_probs = self.read(ids)
            except NonFiniteError:  # raised again if an answer gets that far
                self.spoilt = True
                return

    def ends(self, draft: Draft) -> bool:
        """Whether the row would end with its last draft."""
        n = draft.begin + len(draft.ids)
        return bool(self.why_ended(draft.state.request, draft.ids[-1], n, draft.longest(n)))

    def verify_first(self) -> None:
        """Verify the first drafts whose target needs no forward, because the expert has read
        everything before them."""
        ready = [(d, d.expert_first) for d in self.drafts if d.expert_first is not None]
        if not ready:
            return
        base = torch.stack([draft.base[0] for draft, _ in ready])
        expert = torch.stack([log_probs for _, log_probs in ready])
        seen = [draft.seen(0) for draft, _ in ready]
        targets = self.policy.decide(seen, (base, expert)).log_probs
        for (draft, _), target in zip(ready, targets, strict=True):
            draft.ids[0], draft.n_verified = self.verify_one(draft, 0, target), 1

    def verify_one(self, draft: Draft, place: int, target: Tensor) -> int:
        """The answer's token at `place`; counts whether it is the draft."""
        token = draft.verify(place, target)
        if draft.state.request.note_changes:
            changed = int(target.argmax()) != int(draft.base[place].argmax())
            draft.state.changes[draft.begin + place] = changed
        self.verified += 1
        self.accepted += token == draft.ids[place]
        return token

    def read_drafts(self) -> None:
        """Let the expert read all drafts in one forward, if any has to be verified."""
        if not any(draft.n_unverified for draft in self.drafts):
            return
        tokens = [draft.unread(self.ends(draft)) for draft in self.drafts]
        found = self.expert_reads(tokens)
        for draft, ids, log_probs in zip(self.drafts, tokens, found, strict=True):
            draft.read, draft.expert = draft.read + len(ids), log_probs
            self.spoilt |= len(log_probs) < len(ids)
            draft.state.drafted += draft.n_unverified

    def verify(self) -> list[list[int]]:
        """Verify the drafts; returns the tokens that each row gains."""
        counts = [min(draft.n_unverified, len(draft.expert)) for draft in self.drafts]
        found = [torch.empty(0)] * len(counts)
        if any(counts):
            pairs = list(zip(self.drafts, counts, strict=True))
            base = [each for d, n in pairs for each in d.base[d.n_verified : d.n_verified + n]]
            expert = [each for d, n in pairs for each in d.expert[:n]]
            seen = [d.seen(d.n_verified + place) for d, n in pairs for place in range(n)]
            streams = torch.stack(base), torch.stack(expert)
            targets = self.policy.decide(seen, streams).log_probs
            found = list(torch.split(targets, counts))
        return [self.accept(draft, each) for draft, each in zip(self.drafts, found, strict=True)]

    def accept(self, draft: Draft, targets: Tensor) -> list[int]:
        """The token that is verified already, if any, then the drafts up to the first that is
        rejected, and the token that replaces it."""
        tokens, n_unverified = draft.ids[: draft.n_verified], draft.n_unverified
        for number, id_ in enumerate(draft.ids[draft.n_verified :]):
            token = id_
            if number < n_unverified:
                if number == len(targets):  # not finite from here on
                    break
                token = self.verify_one(draft, draft.n_verified + number, targets[number])
                draft.state.accepted += token == id_
            tokens.append(token)
            if token != id_:
                break
        if not tokens:
            raise broken()
        return tokens

    def emit(self, gained: Sequence[Sequence[int]]) -> Iterator[Event]:
        """Append each row's tokens to its answer, unless the request has been cancelled by now."""
        for turn in range(max(map(len, gained))):
            for number, draft, tokens in zip(self.live, self.drafts, gained, strict=True):
                state = draft.state
                if state.finish is None and turn < len(tokens):
                    state.take(tokens[turn])
                    n = len(state.answer)
                    ended = self.why_ended(state.request, tokens[turn], n, draft.longest(n))
                    ended = ended or why_late(state.request)
                    state.finish = ended or state.finish  # as in `Generation.choose`
                    yield Event(number, tokens[turn], ended)

    def rewind(self, row: int, going: bool) -> None:
        """Rewind a row's caches to its answer; the base has not read the last token yet."""
        draft = self.drafts[row]
        state, n = draft.state, len(draft.state.answer)
        whole = going and state.answer[draft.begin :] == draft.ids
        after = len(draft.ids) - draft.n_verified  # index in draft.expert of the next token
        draft.expert_first = draft.expert[after] if whole and len(draft.expert) > after else None
        draft.read = min(draft.read, max(n - 1, 0) if draft.expert_first is None else n)
        ends = draft.starts[0] + max(n - 1, 0), draft.starts[1] + draft.read
        for stream, end in enumerate(ends):
            self.lockstep.rewind(stream, row, min(end, self.lockstep.length(stream, row)))
            if self.spoilt:
                wipe(self.lockstep, stream, row)
        fed = covered(state.spans, draft.starts[0], self.lockstep.length(0, row))
        state.steered = draft.prompt_steered + len(fed)  # rejected drafts do not count
        draft.clear()


def broken() -> NonFiniteError:
    """The error for an expert whose logits are not finite where they are needed."""
    return NonFiniteError(
        "the expert produced NaN or infinite logits, so the answer stops; try --dtype float32, or "
        "other weights"
    )


def n_weights(stream: Stream) -> int:
    """About how many weights a forward of the stream reads."""
    config = stream.model.config
    attention = 2 * config.hidden * config.head_dim * (config.n_heads + config.n_kv_heads)
    layer = attention + 3 * config.hidden * config.intermediate
    return config.n_layers * layer + config.vocab_size * config.hidden
