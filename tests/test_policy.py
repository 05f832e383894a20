"""The safety decision has one home: sampling, speculation and scoring ask it, and agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import minisafe
from minisafe.engine import Generation, Request
from minisafe.errors import SafetyError
from minisafe.evaluation.likelihood.scoring import Pair, score_pairs
from minisafe.fast.speculation import Speculation
from minisafe.gate import Gate
from minisafe.guidance import RULES, SGDS, Plain
from minisafe.lockstep import Lockstep, Stream
from minisafe.policy import Policy, Seen
from tests.support.tiny import random_adapter
from tests.support.worlds import World, base_model

pytest_plugins = ["tests.support.world_fixtures"]
rules = st.sampled_from([*(make() for make in RULES.values()), Plain()]).flatmap(
    lambda rule: (
        st.just(rule)
        if isinstance(rule, Plain)
        else st.sampled_from([None, 1, 2, 3]).map(lambda first: replace(rule, first_tokens=first))
    )
)
seens = st.builds(
    Seen,
    tokens=st.integers(0, 4),
    gated=st.booleans(),
    left_to_base=st.booleans(),
    variation=st.one_of(st.none(), st.floats(0, 1)),
)


def distributions(rows: int, seed: int) -> tuple[Tensor, ...]:
    """Three streams' (rows, 11) log-probabilities; some agree."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(rows, 11, generator=generator) * 2
    others = [base + torch.randn(rows, 11, generator=generator) * (seed % 3) for _ in range(2)]
    return tuple(torch.log_softmax(each, dim=-1) for each in (base, *others))


def by_hand(
    rule: Any, gate: Gate | None, seen: Seen, said: Sequence[Tensor]
) -> tuple[Tensor, Seen, bool]:
    """One row's decision, written as the text says it: (vocab,) log-probabilities, what was seen,
    whether the gate has just left it to the base. What was left to the base before stays so."""
    left = False
    if seen.tokens == 0 and seen.variation is None and not seen.left_to_base:
        apart = float((said[0].exp() - said[1].exp()).abs().sum() / 2)
        left = gate is not None and seen.gated and apart <= gate.threshold
        seen = replace(seen, variation=apart, left_to_base=left)
    first = rule.first_tokens
    if seen.left_to_base or (first is not None and seen.tokens >= first):
        return said[0], seen, left
    return rule(tuple(each[None] for each in said[: rule.n_streams]))[0], seen, left


@given(
    rule=rules,
    threshold=st.sampled_from([None, 0.0, 0.3, 0.9]),
    seen=st.lists(seens, min_size=1, max_size=4),
    seed=st.integers(0, 50),
)
def test_a_batch_is_decided_as_its_rows_are_by_hand(
    rule: Any, threshold: float | None, seen: list[Seen], seed: int
) -> None:
    gate = None if threshold is None else Gate(threshold)
    said = distributions(len(seen), seed)
    decision = Policy(rule, gate).decide(seen, said)
    for row, before in enumerate(seen):
        final, after, left = by_hand(rule, gate, before, [each[row] for each in said])
        torch.testing.assert_close(decision.log_probs[row], final, atol=1e-5, rtol=0)
        assert decision.just_left[row] is left
        assert decision.seen[row].left_to_base == after.left_to_base
        if after.variation is not None:
            found = decision.seen[row].variation
            assert found is not None
            assert math.isclose(found, after.variation, abs_tol=1e-6)


def test_a_stream_that_is_missing_is_never_taken_for_agreement() -> None:
    base = distributions(2, 1)[0]
    policy = Policy(SGDS())
    with pytest.raises(SafetyError, match="nothing is answered unguided"):
        policy.decide([Seen(), Seen()], (base, None))
    with pytest.raises(SafetyError, match="needs 2 streams, but only 1"):
        policy.decide([Seen(left_to_base=True), Seen()], (base,))
    # a third does not move up
    with pytest.raises(SafetyError, match="needs 2 streams, but only 1"):
        policy.decide([Seen(), Seen()], (base, None, base.flip(-1)))
    alone = policy.decide([Seen(left_to_base=True)] * 2, (base, None))  # here none is read
    assert alone.log_probs is base
    late = Policy(SGDS(first_tokens=1)).decide([Seen(tokens=1)] * 2, (base, None))
    assert late.log_probs is base
    assert not Policy(SGDS(first_tokens=1)).acts(Seen(tokens=1))
    assert Policy(SGDS(first_tokens=2)).acts(Seen(tokens=1))


# ---- all who ask agree -------------------------------------------------------------------------


class Kept(Generation):
    """Plain lockstep that keeps what each token is drawn from."""

    def note_changes(self, live: list[int], base: Tensor, final: Tensor) -> None:
        super().note_changes(live, base, final)
        self.finals = [*getattr(self, "finals", []), final[0]]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("first_tokens", [None, 1, 3])
@pytest.mark.parametrize("opens", [None, True, False], ids=["no gate", "open", "shut"])
@pytest.mark.parametrize("rule", ["sgds", "safedecoding"])
def test_sampling_speculation_and_scoring_agree(
    world: World, seed: int, first_tokens: int | None, opens: bool | None, rule: str
) -> None:
    """Random prompts, greedy: the sampled tokens, their log-probabilities, what drafts become."""
    overrides = {
        "rule": rule, "first_tokens": first_tokens, "sa_scale": 1.0, "sa_positions": "last",
        "dtype": "float32", "weights": "plain", "expert_kind": None,
    }  # fmt: skip
    session = minisafe.load(None, world.flags(expert=world.expert, **overrides))
    gate = None if opens is None else Gate(0.0 if opens else 0.9999)
    session = replace(session, gate=gate)
    generator = torch.Generator().manual_seed(seed)
    prompt = tuple(torch.randint(5, session.n_ids, (6,), generator=generator).tolist())
    spans = session.spans(prompt)
    request = Request((prompt, prompt), spans, max_new_tokens=7, gated=True)
    given = (session.rule, [request], session.steering, frozenset(), gate)
    plain = Kept(Lockstep(session.streams, 1), *given)
    drafted = Speculation(Lockstep(session.streams, 1), *given, 3)
    answer = [event.id for event in plain]
    assert [event.id for event in drafted] == answer
    assert plain.states[0].seen == drafted.states[0].seen
    (scored,) = score_pairs(session, [Pair((prompt, prompt), tuple(answer), gated=True)])
    sampled = torch.stack([final[id_] for final, id_ in zip(plain.finals, answer, strict=True)])
    torch.testing.assert_close(scored.log_probs, sampled.cpu(), atol=2e-2, rtol=0)


@pytest.mark.parametrize("who", ["sampling", "speculation", "scoring"])
def test_nobody_decides_by_itself(world: World, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    """Turn the one decision around, and each of them follows."""
    model = base_model()
    streams = (Stream(model), Stream(model, random_adapter(model)))
    if who == "speculation":
        streams = (Stream(model), Stream(base_model(seed=3)))
    asked: list[int] = []
    right = Policy.decide

    def other(self: Policy, seen: Sequence[Seen], log_probs: Any) -> Any:
        asked.append(len(seen))
        decision = right(self, seen, log_probs)
        return replace(decision, log_probs=decision.log_probs.roll(1, dims=-1))

    request = Request(((5, 6, 7), (5, 6, 7)), max_new_tokens=3)
    kinds: dict[str, Any] = {"sampling": Generation, "speculation": Speculation}
    if who == "scoring":
        session = replace(minisafe.load(None, world.flags()), steering=None)
        pair = Pair(((5, 6, 7), (5, 6, 7)), (8, 9))
        before = score_pairs(session, [pair])[0].log_probs
        monkeypatch.setattr(Policy, "decide", other)
        after = score_pairs(session, [pair])[0].log_probs
        assert not torch.equal(before, after)
    else:
        make = kinds[who]
        before = [event.id for event in make(Lockstep(streams, 1), SGDS(), [request])]
        monkeypatch.setattr(Policy, "decide", other)
        after = [event.id for event in make(Lockstep(streams, 1), SGDS(), [request])]
        assert after != before
    assert asked


@pytest.mark.parametrize("kind", [Generation, Speculation])
def test_a_cancel_that_comes_while_a_token_is_drawn_is_not_lost(kind: Any) -> None:
    """As from another thread, between a row's draw and the note of how it ended."""

    class Cancelled(kind):  # type: ignore[misc]
        def why_ended(self, request: Request, id_: int, n: int, read: int) -> str | None:
            ended = super().why_ended(request, id_, n, read)
            if len(self.states[0].answer) == 2:
                self.cancel(0)
            return ended

    streams = (Stream(base_model()), Stream(base_model(seed=3)))
    request = Request(((5, 6, 7), (5, 6, 7)), max_new_tokens=30)
    events = list(Cancelled(Lockstep(streams, 1), SGDS(), [request]))
    assert [event.finish for event in events] == [None, None, "cancelled"]
    assert events[-1].id is None
