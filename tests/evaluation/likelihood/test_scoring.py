"""Given answers under a method: what is scored is what decoding would have said, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import minisafe
from minisafe.errors import PromptError, SettingError
from minisafe.evaluation.likelihood import scoring
from minisafe.evaluation.likelihood.scoring import (
    Pair,
    Scored,
    begun_pairs,
    changes,
    encode_pair,
    following,
    score,
    score_pairs,
    surprise,
)
from minisafe.gate import Gate
from minisafe.guidance import SafeDecoding
from minisafe.lockstep import Lockstep
from minisafe.session import Session
from minisafe.session.chat_prompt import ChatPrompt
from minisafe.slots import covered
from tests.support.worlds import E, World, published, slow_log_probs

pytest_plugins = ["tests.support.world_fixtures"]
PROMPTS = ["The fox", "What is the name of the river?", "Once there was a small fox who"]
EXPERTS = ("none", "adapter", "checkpoint", "system prompt")
LAM = 0.75  # k = 3: guidance magnifies what base and expert differ by at most (1 + lam)/(1 - lam)
MAGNIFIED = 7 * E


def load(world: World, expert: str = "adapter", **changes: Any) -> Session:
    parts: dict[str, Any] = {"expert": world.adapter if expert == "adapter" else world.expert}
    if expert == "system prompt":
        parts = {"expert": None, "expert_system": "You are careless."}
    given = {"max_new_tokens": 8, "sgds_lambda": 0.0 if expert == "none" else LAM}
    return minisafe.load(None, world.flags(**(given | parts | changes)))


def stepwise(session: Session, prompts: Sequence[Sequence[int]], answer: Sequence[int]) -> Tensor:
    """(T, n_ids) log-probabilities that decoding would choose each of an answer's tokens from."""
    lockstep = Lockstep(session.streams, 1, 8, session.n_ids, fuse=False)
    spans, steering = session.spans(prompts[0]), session.steering
    pending, found = [list(prompt) for prompt in prompts], []
    for token in answer:
        start = lockstep.length(0, 0)
        act = covered(spans, start, start + len(pending[0]))
        slots = [steering.slots(0, spans) if steering and act else [], *([] for _ in prompts[1:])]
        said = lockstep.feed([[ids] for ids in pending], slots)
        found.append(session.rule(tuple(each for each in said if each is not None))[0])
        pending = [[token] for _ in prompts]
    return torch.stack(found)


def plain(session: Session, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """(T, n_ids) log-probabilities of the unsteered base, each read from scratch."""
    texts = [[*prompt, *answer[:n]] for n in range(len(answer))]
    found = Lockstep(session.streams[:1], len(texts), 8, session.n_ids).feed([texts])[0]
    assert found is not None
    return found


def check(session: Session, scored: Scored, prompts: Sequence[Sequence[int]]) -> None:
    """A score against step-by-step decoding, and what follows from it by the definitions."""
    final, base = stepwise(session, prompts, scored.ids), plain(session, prompts[0], scored.ids)
    ids = torch.tensor(scored.ids)[:, None]
    torch.testing.assert_close(scored.log_probs, final.gather(1, ids)[:, 0], atol=MAGNIFIED, rtol=0)
    torch.testing.assert_close(scored.plain_log_probs, base.gather(1, ids)[:, 0], atol=E, rtol=0)
    p, q = final.double(), base.double()
    torch.testing.assert_close(
        scored.kl.double(), (p.exp() * (p - q)).sum(-1), atol=10 * MAGNIFIED, rtol=1e-3
    )
    clear = gap(final) & gap(base)  # where rounding does not decide
    assert torch.equal(scored.changed[clear], (final.argmax(-1) != base.argmax(-1))[clear])


def gap(log_probs: Tensor) -> Tensor:
    """(T,) whether the likeliest token is so by more than rounding."""
    best = log_probs.topk(2, dim=-1).values
    return best[:, 0] - best[:, 1] > 4 * MAGNIFIED


@pytest.mark.parametrize("expert", EXPERTS)
@pytest.mark.parametrize("positions", ["off", "prompt", "last", "generated", "all"])
def test_the_greedy_answer_scores_as_it_was_decoded(
    world: World, expert: str, positions: str
) -> None:
    steering: dict[str, Any] = {"sa_positions": positions}
    if positions == "off":
        steering = {"sa_scale": 0.0} if expert != "none" else {"safe": False}
    session = load(world, expert, temperature=0.0, **steering)
    answers = [result.tokens for result in session.generate(PROMPTS, chat=True)]
    scored = score(session, PROMPTS, answers, chat=True, batch_size=2)
    for prompt, answer, each in zip(PROMPTS, answers, scored, strict=True):
        assert each.ids == answer
        assert each.greedy
        assert each.log_probs.dtype == each.kl.dtype == torch.float32
        assert each.changed.dtype == torch.bool
        check(session, each, session.encode(prompt, True))
    if expert == "none" and positions == "off":
        assert not any(each.changed.any() or each.kl.any() for each in scored)
    else:
        assert all(each.kl.any() for each in scored)


def test_the_scores_are_the_slow_reference(world: World) -> None:
    """Read from scratch for every token in float64, with merged weights."""
    session = load(world, sa_positions="last")
    steering, prompt, answer = session.steering, (7, 8, 9), (10, 11, 12, 13)
    assert steering is not None
    (found,) = score(session, [prompt], [answer])
    for place, token in enumerate(answer):
        text = [*prompt, *answer[:place]]
        base = slow_log_probs(session.streams[0], text)
        lb = slow_log_probs(session.streams[0], text, steering, ((2, None),))
        lu = slow_log_probs(session.streams[1], text)
        final = published(lb, lu, LAM).log_softmax(-1)
        assert found.log_probs[place].item() == pytest.approx(final[token].item(), abs=MAGNIFIED)
        assert found.plain_log_probs[place].item() == pytest.approx(base[token].item(), abs=E)
        kl = (final.exp() * (final - base)).sum().item()
        assert found.kl[place].item() == pytest.approx(kl, abs=10 * MAGNIFIED)
        assert found.changed[place].item() == (final.argmax() != base.argmax())


@given(
    st.data(),
    st.sampled_from(EXPERTS[:3]),
    st.sampled_from(["prompt", "last", "generated", "all"]),
    st.integers(1, 3),
)
@settings(max_examples=10)
def test_any_answer_in_any_batch_is_read_in_any_blocks(
    world: World, data: st.DataObject, expert: str, positions: str, batch_size: int
) -> None:
    session = load(world, expert, sa_positions=positions)
    ids = st.integers(0, session.n_ids - 1)
    texts = st.lists(ids, min_size=1, max_size=9).map(tuple)
    contexts = data.draw(st.lists(texts, min_size=1, max_size=4))
    answers = data.draw(st.lists(texts, min_size=len(contexts), max_size=len(contexts)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "WIDEST", data.draw(st.integers(1, 9)))
        scored = score(session, contexts, answers, batch_size=batch_size)
    for context, each in zip(contexts, scored, strict=True):
        check(session, each, [context] * len(session.streams))
        best = stepwise(session, [context] * len(session.streams), each.ids)
        if bool(gap(best).all()):
            assert each.greedy == (best.argmax(-1).tolist() == list(each.ids))


def test_answers_that_share_all_but_the_last_token_are_read_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = load(world)
    rows: list[int] = []
    read = scoring.read_batch

    def counted(session: Session, texts: Sequence[Pair], lean: bool) -> Any:
        rows.append(len(texts))
        return read(session, texts, lean)

    monkeypatch.setattr(scoring, "read_batch", counted)
    answers = [(5, 6), (5, 7), (6, 6), (5,), (9,)]
    together = score(session, [(1, 2, 3)] * 5, answers)
    assert rows == [3]
    for answer, each in zip(answers, together, strict=True):
        (alone,) = score(session, [(1, 2, 3)], [answer])
        torch.testing.assert_close(each.log_probs, alone.log_probs, atol=MAGNIFIED, rtol=0)
        assert each.ids == answer
    assert together[0].log_probs[0] == together[1].log_probs[0]
    assert together[0].log_probs[1] != together[1].log_probs[1]


@pytest.mark.parametrize("expert", EXPERTS)
@pytest.mark.parametrize("positions", ["prompt", "all"])
def test_a_beginning_that_is_read_once_changes_no_likelihood(
    world: World, expert: str, positions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = load(world, expert, sa_positions=positions, sa_scale=1.25)
    asked = [f"What is the name of the river? Once there {end}" for end in ("was a fox", "is")]
    pairs = [encode_pair(session, each, "The small fox", chat=True) for each in asked * 2]
    fed: list[int] = []
    feed = Lockstep.feed

    def counted(self: Lockstep, tokens: Any, slots: Any = ()) -> Any:
        fed.append(sum(len(ids) for rows in tokens for ids in rows))
        return feed(self, tokens, slots)

    monkeypatch.setattr(Lockstep, "feed", counted)
    whole = score_pairs(session, pairs)
    n_whole, fed[:] = sum(fed), []
    lean = score_pairs(session, pairs, lean=True)
    assert sum(fed) < 0.8 * n_whole
    for one, other in zip(whole, lean, strict=True):
        torch.testing.assert_close(one.log_probs, other.log_probs, atol=MAGNIFIED, rtol=0)
    if expert == "none":
        return
    session.gate = Gate(1.0)  # left to the base without the vector, which then reads along
    whole, lean = score_pairs(session, pairs), score_pairs(session, pairs, lean=True)
    for one, other in zip(whole, lean, strict=True):
        assert torch.equal(other.log_probs, other.plain_log_probs)
        torch.testing.assert_close(one.log_probs, other.log_probs, atol=MAGNIFIED, rtol=0)


def test_places_that_are_steered_in_some_rows_only_are_not_shared(world: World) -> None:
    session = load(world, sa_positions="all")
    head = tuple(range(20))
    one = Pair(((*head, 5, 6),) * 2, (7, 8))
    other = Pair(((*head, 6, 5),) * 2, (7, 8), answers=((12, 14), (22, None)))
    for positions in ("prompt", "last"):
        assert session.steering is not None
        session.steering = replace(session.steering, positions=positions)
        both = score_pairs(session, [one, other], lean=True)
        for pair, found in zip((one, other), both, strict=True):
            (alone,) = score_pairs(session, [pair])
            torch.testing.assert_close(found.log_probs, alone.log_probs, atol=MAGNIFIED, rtol=0)
        (bare,) = score_pairs(session, [replace(other, answers=None)])
        assert not torch.allclose(bare.log_probs, both[1].log_probs, atol=10 * MAGNIFIED)


def test_the_probabilities_of_all_next_tokens_add_up_to_one(world: World) -> None:
    session = load(world)
    every = [(id_,) for id_ in range(session.n_ids)]
    scored = score(session, [(1, 2, 3)] * len(every), every)
    assert torch.cat([each.log_probs for each in scored]).exp().sum().item() == pytest.approx(1)
    assert sum(each.greedy for each in scored) == 1
    assert scored[3].total == pytest.approx(scored[3].log_probs.sum().item())


def test_after_its_first_tokens_guidance_leaves_the_steered_base(world: World) -> None:
    session = load(world)
    base = load(world, "none")
    session.rule = SafeDecoding(first_tokens=2)
    prompt, answer = (1, 2, 3), (4, 5, 6, 7)
    (found,) = score(session, [prompt], [answer])
    (unguided,) = score(base, [prompt], [answer])
    session.rule = SafeDecoding(first_tokens=None)
    (guided,) = score(session, [prompt], [answer])
    for name in ("log_probs", "kl"):
        values = [getattr(each, name) for each in (found, guided, unguided)]
        torch.testing.assert_close(values[0][:2], values[1][:2])
        torch.testing.assert_close(values[0][2:], values[2][2:], atol=E, rtol=0)
    assert found.log_probs[:2].isneginf().any()  # such a rule rules tokens out
    assert found.kl.isfinite().all()


def test_a_gate_that_stays_shut_leaves_the_unsteered_base(world: World) -> None:
    session = load(world, temperature=0.0)
    low, middle, high = sorted(session.variations(PROMPTS))
    above = high + 1e-5  # another batch may round the same value up
    for threshold, n_open in ((0.0, 3), ((low + middle) / 2, 2), (above, 0)):
        session.gate = Gate(threshold)
        answers = [result.tokens for result in session.generate(PROMPTS, chat=True)]
        scored = score(session, PROMPTS, answers, chat=True)
        assert all(each.greedy for each in scored)
        shut = [not each.kl.any() for each in scored]
        assert shut.count(False) == n_open
        for each, is_shut in zip(scored, shut, strict=True):
            assert torch.equal(each.log_probs, each.plain_log_probs) == is_shut


def test_changes_add_up_over_answers(world: World) -> None:
    session = load(world)
    answers: list[Any] = [(5, 6, 7), "", "a stone", ()]
    prompts = [*PROMPTS, "And then?"]
    found = changes(session, prompts, answers)
    scored = score(session, prompts[::2], answers[::2], chat=True)
    flags = torch.cat([each.changed for each in scored])
    assert found.tokens == len(flags) > 3
    assert found.share_changed == pytest.approx(flags.double().mean().item())
    assert found.mean_kl == pytest.approx(torch.cat([each.kl for each in scored]).mean().item())
    assert found.mean_kl > 0
    none = changes(load(world, safe=False), PROMPTS[:1], [(5, 6)])
    assert (none.share_changed, none.mean_kl, none.tokens) == (0, 0, 2)


# ---- texts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["world", "spm_world"])
@pytest.mark.parametrize("context", ["The fox", "The fox ", "The fox \n", " "])
@pytest.mark.parametrize("continuation", [" sat", "sat", "es ran."])
def test_a_text_and_its_continuation_are_encoded_as_one(
    request: pytest.FixtureRequest, kind: str, context: str, continuation: str
) -> None:
    session = load(request.getfixturevalue(kind))
    pair = encode_pair(session, context, continuation)
    whole = session.tokenizer.encode(context + continuation)
    begun = session.tokenizer.encode(context.rstrip() or context)
    assert pair.prompts == (tuple(begun),) * 2
    assert pair.answer == tuple(whole[len(begun) :])


def test_a_continuation_that_joins_the_token_before_it_stands_alone(spm_world: World) -> None:
    session = load(spm_world)
    known = session.tokenizer
    joined = [(a, b) for a in "abcdehinorst" for b in "abcdehinorst"
              if len(known.encode(a + b)) == len(known.encode(a))]  # fmt: skip
    assert joined
    a, b = joined[0]
    pair = encode_pair(session, a, b)
    assert pair.prompts[0] == tuple(known.encode(a))
    alone = tuple(known.backend.encode(b, add_special_tokens=False).ids)
    assert pair.answer == following(known, a, b) == alone


@pytest.mark.parametrize("kind", ["world", "spm_world"])
def test_in_a_chat_the_answer_follows_the_template(
    request: pytest.FixtureRequest, kind: str
) -> None:
    session = load(request.getfixturevalue(kind), system="Be brief.")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The fox"}]
    pair = encode_pair(session, "The fox", "sat down", chat=True)
    before = session.tokenizer.encode_chat(messages).ids
    assert pair.prompts == (before, before)
    text = session.tokenizer.render(messages) + "sat down"
    whole = session.tokenizer.backend.encode(text, add_special_tokens=False).ids
    assert list(before) + list(pair.answer) == whole


def test_control_tokens_in_a_chat_prompt_stay_text(world: World) -> None:
    session = load(world)
    odd, plain_text = (encode_pair(session, f"The fox{end}", "sat", chat=True)
                       for end in ("<|eot|>", "."))  # fmt: skip
    assert odd.answer == plain_text.answer
    assert odd.prompts == session.encode("The fox<|eot|>", True)


def test_the_expert_reads_its_own_system_prompt(world: World) -> None:
    pair = encode_pair(load(world, "system prompt"), "The fox", "sat", chat=True)
    assert len(pair.prompts[1]) > len(pair.prompts[0])


def test_ids_stand_as_they_are(world: World) -> None:
    session = load(world)
    assert encode_pair(session, [3, 4], [5]) == Pair(((3, 4), (3, 4)), (5,))
    mixed = encode_pair(session, [3, 4], "sat")
    assert session.tokenizer.decode(mixed.answer) == "sat"
    assert encode_pair(session, "The fox ", [5]).prompts == session.encode("The fox ", False)


# ---- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("contexts", "continuations", "options", "error", "message"),
    [
        (["a"], ["b", "c"], {}, SettingError, "1 contexts, 2 continuations"),
        ("a", ["b"], {}, PromptError, "a single text"),
        ([""], ["b"], {}, PromptError, "the prompt is empty"),
        ([()], [(5,)], {}, PromptError, "context 0 is empty"),
        (["a", "a"], ["b", ""], {}, PromptError, "continuation 1 is empty"),
        ([(1, 2)], [(10**6,)], {}, PromptError, "the id 1000000; expected 0 to"),
        ([(-1, 2)], [(3,)], {}, PromptError, "the id -1"),
        ([(1,) * 500], [(3,) * 14], {}, PromptError, "514 tokens; expected at most 513"),
        ([(1, 2)], [(3,)], {"chat": True}, PromptError, "got token ids"),
        (["a"], ["b"], {"batch_size": 0}, SettingError, "batch_size is 0"),
    ],
)
def test_what_cannot_be_scored(
    world: World, contexts: Any, continuations: Any, options: dict[str, Any], error: Any,
    message: str,
) -> None:  # fmt: skip
    with pytest.raises(error, match=message):
        score(load(world), contexts, continuations, **options)


def test_the_context_can_be_filled(world: World) -> None:
    (found,) = score(load(world), [(1,) * 500], [(3,) * 13])
    assert found.log_probs.isfinite().all()


def test_ids_alone_do_not_do_for_an_expert_with_its_own_system_prompt(world: World) -> None:
    with pytest.raises(PromptError, match="another system prompt"):
        score(load(world, "system prompt"), [(1, 2)], [(3,)])


def test_changes_need_an_answer(world: World) -> None:
    with pytest.raises(PromptError, match="no answer has a token"):
        changes(load(world), PROMPTS, ["", "", ""])
    with pytest.raises(SettingError, match="3 contexts, 1 continuations"):
        changes(load(world), PROMPTS, ["a"])
    assert score_pairs(load(world), []) == []


def test_the_surprise_at_given_answers_by_hand(world: World) -> None:
    """The mean over all tokens of all answers, not over answers; an empty answer does not count."""
    session = load(world)
    answers = ["Once there was a fox.", "", "No"]
    scored = score(session, [PROMPTS[0], PROMPTS[2]], [answers[0], answers[2]], chat=True)
    found = surprise(session, PROMPTS, answers)
    assert found.tokens == sum(len(each.ids) for each in scored)
    assert found.nll == pytest.approx(-sum(each.total for each in scored) / found.tokens)
    with pytest.raises(PromptError, match="no answer has a token"):
        surprise(session, PROMPTS, [""] * 3)


@pytest.mark.parametrize("scale", [0.0, 1.5])
def test_in_a_chat_what_is_left_to_the_base_is_scored_as_the_base(
    world: World, scale: float
) -> None:
    """Steering or not, lean or not; what is harmful alone is scored as guided."""
    guided, base = load(world, sa_scale=scale), load(world, safe=False)
    leaving = replace(guided, settings=replace(guided.settings, gate=True))
    answers = ["Sure, here it is."] * 3
    totals = {
        name: [each.total for each in score(session, PROMPTS, answers, chat=True)]
        for name, session in {
            "base": base, "guided": guided, "left": replace(leaving, alone=Gate(1.0)),
            "held": replace(leaving, alone=Gate(0.0)),
        }.items()
    }  # fmt: skip
    assert totals["left"] == pytest.approx(totals["base"], abs=MAGNIFIED)
    assert totals["base"] != pytest.approx(totals["guided"], abs=0.1)
    assert totals["held"][0] == pytest.approx(totals["guided"][0], abs=MAGNIFIED)
    chats = [ChatPrompt.of(prompt) for prompt in PROMPTS]
    pairs = begun_pairs(replace(leaving, alone=Gate(1.0)), chats, answers)
    lean = [each.total for each in score_pairs(leaving, pairs, lean=True)]
    assert lean == pytest.approx(totals["base"], abs=MAGNIFIED)


def test_ids_are_no_chat_where_messages_are_read_alone(world: World) -> None:
    session = replace(load(world), alone=Gate(0.5))
    with pytest.raises(PromptError, match="expected a text"):
        score(session, [[1, 2]], ["No"], chat=True)
