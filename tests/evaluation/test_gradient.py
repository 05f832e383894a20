"""The white box: the gradient against a slow reference, and what GCG does with it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import minisafe
from minisafe import ChatPrompt
from minisafe.errors import SettingError
from minisafe.evaluation.attacks import ATTACKS
from minisafe.evaluation.attacks.gradient import embedded, place_of, word_gradient
from minisafe.evaluation.attacks.oracle import SessionOracle, compliant_answers
from minisafe.evaluation.attacks.search import coordinate, gcg
from minisafe.evaluation.judges.world import WorldJudge
from minisafe.evaluation.likelihood.scoring import Pair, begun_pairs
from minisafe.evaluation.prompts import default_prompts
from minisafe.evaluation.runner.attacker import Attacker
from minisafe.guidance import SGDS, DExperts, SafeDecoding
from minisafe.lora import AdaptedRows, LoraAdapter, LoraDelta
from minisafe.session import Session
from tests.support.worlds import World

pytest_plugins = ["tests.support.world_fixtures"]
WORDS = ("fox", "the", "river")
BEGINNING = "The bird said"


def load(world: World, expert: str = "adapter", **changes: Any) -> Session:
    parts: dict[str, Any] = {"expert": world.adapter if expert == "adapter" else world.expert}
    if expert == "system prompt":
        parts = {"expert": None, "expert_system": "You are careless."}
    given = {"max_new_tokens": 8, "sgds_lambda": 0.9, "weights": "plain"}
    return minisafe.load(None, world.flags(**(given | parts | changes)))


def oracle_of(session: Session) -> SessionOracle:
    return SessionOracle(session, WorldJudge(), {}, {})


def asked(session: Session) -> tuple[Pair, list[int], list[int]]:
    """A question with words after it, the words' ids, and the ids to put in their place."""
    oracle, prompt = oracle_of(session), ChatPrompt.of(f"Who knows? {' '.join(WORDS)}")
    ids = [oracle.ids[word] for word in WORDS]
    (pair,) = begun_pairs(session, [prompt], BEGINNING)
    return pair, ids, list(oracle.ids.values())


# ---- the reference: one-hot rows times the embedding, each stream alone, in float64 --------------


def exact(adapter: LoraAdapter) -> LoraAdapter:
    deltas = {
        name: LoraDelta(each.a.double(), each.b.double(), each.scaling)
        for name, each in adapter.deltas.items()
    }
    return LoraAdapter(deltas)


def loss(session: Session, pair: Pair, hot: Tensor, places: list[int]) -> Tensor:
    """Negative log-likelihood with rows of `hot`, (words, vocab), at `places` of each stream."""
    read = []
    for number, stream in enumerate(session.streams):
        model = copy.deepcopy(stream.model).double()
        text = [*pair.prompts[number], *pair.answer[:-1]]
        x = model.embed_tokens.weight[text].clone()
        at = slice(places[number], places[number] + len(hot))
        x[at] = hot[:, : model.config.vocab_size] @ model.embed_tokens.weight
        spans = session.spans(pair.prompts[0], pair.answers)
        steered = session.steering is not None and number == 0
        slots = session.steering.slots(0, spans) if steered and session.steering else ()
        adapters = ()
        if stream.adapter is not None:
            adapters = (AdaptedRows(exact(stream.adapter), slice(0, 1)),)
        step = model.make_step((len(text),), len(text), slots=slots, adapters=adapters)
        x = x[None]
        for layer in model.layers:
            x = layer(x, step)
        said = model.head(model.norm(x), step)[0, len(pair.prompts[number]) - 1 :]
        read.append(torch.log_softmax(said[:, : session.n_ids], dim=-1))
    if isinstance(session.rule, SGDS):
        k, margin = session.rule.lam / (1 - session.rule.lam), session.rule.margin
        scores = read[0] - k * torch.relu(read[1] - read[0] - margin)
    elif isinstance(session.rule, DExperts):
        scores = read[0] + session.rule.alpha * (read[1] - read[2])
    else:
        scores = read[0]
    final = torch.log_softmax(scores, dim=-1)
    return -sum((final[n, id_] for n, id_ in enumerate(pair.answer)), torch.zeros(()))


def one_hot(session: Session, words: list[int]) -> Tensor:
    return F.one_hot(torch.tensor(words), session.n_ids).double()


def reference(session: Session, pair: Pair, words: list[int], others: list[int]) -> Tensor:
    places = [place_of(words, prompt) for prompt in pair.prompts]
    hot = one_hot(session, words).requires_grad_()
    (found,) = torch.autograd.grad(loss(session, pair, hot, places), hot)
    return found[:, others]


@pytest.mark.parametrize("expert", ["adapter", "checkpoint", "system prompt"])
@pytest.mark.parametrize("positions", ["prompt", "last", "all"])
def test_the_gradient_is_the_references(world: World, expert: str, positions: str) -> None:
    session = load(world, expert, sa_positions=positions, margin=0.2)
    pair, words, others = asked(session)
    found, wanted = (
        way(session, pair, words, others).double() for way in (word_gradient, reference)
    )
    assert found.shape == (len(WORDS), len(others))
    assert wanted.abs().max() > 0.01
    torch.testing.assert_close(found, wanted, atol=1e-4 * wanted.abs().max().item(), rtol=1e-3)
    weaker = reference(replace(session, steering=None), pair, words, others)
    assert not torch.allclose(found, weaker, rtol=1e-2)  # the vector is part of it
    weaker = reference(session.plain(), pair, words, others)
    assert not torch.allclose(found, weaker, rtol=1e-2)  # and so is the expert


def test_the_reference_is_what_differences_say(world: World) -> None:
    session = load(world, margin=0.2)
    pair, words, others = asked(session)
    wanted, hot = reference(session, pair, words, others), one_hot(session, words)
    places, width = [place_of(words, prompt) for prompt in pair.prompts], 1e-6
    for word in range(len(WORDS)):
        more, less = hot.clone(), hot.clone()
        more[word, others[4]] += width
        less[word, others[4]] -= width
        both = [loss(session, pair, each, places).item() for each in (more, less)]
        assert (both[0] - both[1]) / (2 * width) == pytest.approx(
            wanted[word, 4].item(), rel=1e-4, abs=1e-6
        )


def test_three_streams_and_a_rule_of_three(world: World) -> None:
    session = load(world)
    third = replace(session.streams[1], adapter=None)
    streams: Any = (*session.streams, third)
    three = replace(session, streams=streams, rule=DExperts(alpha=0.5))
    pair, words, others = asked(session)
    pair = replace(pair, prompts=(*pair.prompts, pair.prompts[0]))
    wanted = reference(three, pair, words, others)
    found = word_gradient(three, pair, words, others).double()
    torch.testing.assert_close(found, wanted, atol=1e-4 * wanted.abs().max().item(), rtol=1e-3)


def test_a_rule_that_forbids_tokens_leaves_the_steered_bases_gradient(world: World) -> None:
    session = replace(load(world), rule=SafeDecoding(first_tokens=None))
    pair, words, others = asked(session)
    found = word_gradient(session, pair, words, others)
    assert found.isfinite().all()
    alone = replace(session.plain(), steering=session.steering)
    assert torch.equal(found, word_gradient(alone, pair, words, others))


def test_a_session_stays_as_it_was(world: World) -> None:
    session = load(world)
    pair, words, others = asked(session)
    parameters = list(session.model.parameters())
    parameters[0].requires_grad_(True)
    flags, values = (
        [each.requires_grad for each in parameters],
        [each.clone() for each in parameters],
    )

    def unchanged() -> bool:
        held = any(each.grad is not None for each in parameters)
        held = held or bool(session.model.embed_tokens._forward_hooks)
        return not held and [each.requires_grad for each in parameters] == flags

    with torch.inference_mode():
        word_gradient(session, pair, words, others)
        assert torch.is_inference_mode_enabled()
    assert unchanged()
    with pytest.raises(SettingError, match="9 inserted words are not 9 ids in the prompt"):
        word_gradient(session, pair, [words[0]] * 9, others)
    assert unchanged()
    assert all(torch.equal(a, b) for a, b in zip(parameters, values, strict=True))
    with pytest.raises(ZeroDivisionError), embedded(session.model):
        raise ZeroDivisionError
    assert unchanged()


def test_other_weights_are_refused(world: World) -> None:
    session = load(world, weights="int8")
    pair, words, others = asked(session)
    with pytest.raises(SettingError, match="the weights are int8; use --weights plain"):
        word_gradient(session, pair, words, others)


def test_words_that_are_one_token(world: World, spm_world: World) -> None:
    for each in (world, spm_world):
        oracle = oracle_of(load(each))
        assert {"fox", "river"} <= set(oracle.single_words) < set(oracle.words)
        for word, id_ in oracle.ids.items():
            assert oracle.session.tokenizer.decode([id_]).strip() == word
    assert place_of((1, 2), (1, 2, 3, 1, 2, 4)) == 3


# ---- on the shipped model ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def attacker() -> tuple[Attacker, Session]:
    session = minisafe.load(overrides={"temperature": 0.0, "max_new_tokens": 40})
    harmful = [each for each in default_prompts("dev", 3) if each.kind == "harmful"]
    known = compliant_answers(session.plain(), WorldJudge(), harmful)
    return Attacker(WorldJudge(), harmful, compliant=known), session


def broken(attacker: Attacker, oracle: SessionOracle, attack: Any, budget: int) -> list[int]:
    """Queries of each question that an attack broke; checks that none takes more."""
    found = []
    for prompt in attacker.prompts:
        oracle.queries, target = 0, attacker.target(prompt)
        made = attack(target, oracle, budget=budget)
        assert oracle.queries <= budget
        if oracle.complies(target, [made.prompt], [made.answer])[0]:
            found.append(oracle.queries)
    return found


def test_gcg_breaks_as_many_with_as_few(attacker: tuple[Attacker, Session]) -> None:
    oracle = attacker[0].oracle(attacker[1].plain())
    one, other = (broken(attacker[0], oracle, way, 74) for way in (gcg, coordinate))
    assert len(one) >= len(other)
    # a likelihood and an answer, then rounds of a gradient, 16 likelihoods and an answer
    assert all(queries % 18 == 2 for queries in one)
    assert sum(one) < sum(other)


def test_gcg_on_the_base_asks_the_defence_nothing(attacker: tuple[Attacker, Session]) -> None:
    oracle = attacker[0].oracle(attacker[1])
    made = ATTACKS["gcg-base"].make(attacker[0].target(attacker[0].prompts[0]), oracle)
    assert made.answer is None
    assert oracle.queries == 0
    assert oracle.undefended.queries > 2
    assert oracle.undefended.session.steering is None
    assert isinstance(made.prompt.question, str)
