"""Speculation: drafted blocks give plain lockstep's answers, in the forwards that were promised.

Greedy tokens must equal plain lockstep's in float32, unless a rounding difference decides between
two (see `worlds`). Sampled ones must equal a loop that judges every single token, and their
distribution must be the exact one.
"""

from __future__ import annotations

import importlib
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import minisafe
from minisafe.deadline import Deadline
from minisafe.engine import Event, Generation, Request
from minisafe.errors import NonFiniteError, SettingError, SlotError
from minisafe.fast import draft as draft_module
from minisafe.fast.block import BlockLength, best_block, forwards_a_token
from minisafe.fast.draft import accept_or_redraw
from minisafe.fast.speculation import AUTOMATIC, Speculation
from minisafe.gate import Gate
from minisafe.guidance import SGDS, Plain, Rule, SelfCD
from minisafe.lockstep import Lockstep, Stream
from minisafe.model import Llama
from minisafe.sampling import Sampling, filtered
from minisafe.session.faster import block_limit, make_generation
from minisafe.vectors import POSITIONS, Steering
from tests.support.tiny import models, random_adapter, random_model, tensors_of, tiny_config
from tests.support.worlds import E, World, hangs_in_the_balance

pytest_plugins = ["tests.support.world_fixtures"]
seeds = st.integers(0, 50)
texts = st.lists(st.integers(0, 66), min_size=1, max_size=12)


# ---- scenes ------------------------------------------------------------------------------------


def disturbed(model: Llama, scale: float, seed: int = 0) -> Llama:
    """Another model: the same weights plus `scale` times as much noise."""
    other, generator = Llama(model.config), torch.Generator().manual_seed(seed)
    for name, tensor in tensors_of(model).items():
        noise = torch.randn(tensor.shape, generator=generator) * tensor.std().nan_to_num()
        other.put(name, tensor + scale * noise)
    return other.requires_grad_(False).eval()


@dataclass(frozen=True)
class Scene:
    """Base and separate expert, and what to answer with them."""

    streams: tuple[Stream, ...]
    rule: Rule
    requests: list[Request]
    steering: Steering | None = None
    eos: frozenset[int] = frozenset()
    gate: Gate | None = None

    def generation(self, most: int, kind: type[Generation] = Generation) -> Any:
        """Speculation with blocks of up to `most`; plain lockstep of a kind for 0."""
        lockstep = Lockstep(self.streams, len(self.requests), capacity=8, fuse=False)
        given = lockstep, self.rule, self.requests, self.steering, self.eos, self.gate
        return Speculation(*given, most) if most else kind(*given)


class Watched(Generation):
    """Plain lockstep that keeps, by row, what each token was chosen from."""

    def __init__(self, *given: Any):
        super().__init__(*given)
        self.finals: list[list[Tensor]] = [[] for _ in self.states]

    def note_changes(self, live: list[int], base: Tensor, final: Tensor) -> None:
        super().note_changes(live, base, final)
        for place, number in enumerate(live):
            self.finals[number].append(final[place])


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    """All that can act on greedy answers, in any combination."""
    short = st.builds(random_model, st.just(tiny_config(max_positions=16)), st.integers(0, 3))
    base = draw(st.one_of(models, models, short))
    expert = disturbed(base, draw(st.sampled_from((0.0, 0.02, 0.1, 0.5))), draw(seeds))
    rule = SGDS(
        draw(st.sampled_from((0.3, 0.9, 0.99))),
        draw(st.sampled_from((0.0, 0.2))),
        draw(st.one_of(st.none(), st.integers(1, 6))),
    )
    positions = draw(st.sampled_from((None, *POSITIONS)))
    gate = draw(st.one_of(st.none(), st.builds(Gate, st.floats(0, 0.6))))
    steering = None
    if positions is not None:
        assume(gate is None or positions != "all")
        vector = torch.randn(32, generator=torch.Generator().manual_seed(draw(seeds)))
        layer = draw(st.integers(0, base.config.n_layers - 1))
        steering = Steering({layer: vector}, 1.0, positions)
    penalty = st.sampled_from((0.0, 0.0, 1.5))
    requests = []
    for index in range(draw(st.integers(1, 3))):
        prompt = tuple(draw(texts))
        other = prompt if draw(st.booleans()) else tuple(draw(texts))
        spans = () if steering is None else steering.spans([(len(prompt), None)])
        sampling = Sampling(0.0, presence_penalty=draw(penalty), frequency_penalty=draw(penalty))
        limit = draw(st.integers(2, 14))
        requests.append(Request((prompt, other), spans, sampling, limit, index, gated=True))
    eos = frozenset(draw(st.lists(st.integers(0, 66), max_size=6)))
    return Scene((Stream(base), Stream(expert)), rule, requests, steering, eos, gate)


def collect(generation: Generation) -> list[Event]:
    """Its events; for "generated", a row of one token may leave steering without a place."""
    return list(generation)


def assert_same(scene: Scene, most: int, length: BlockLength | None = None) -> int:
    """Compare speculation with plain lockstep; returns how many tokens were equal."""
    plain, blocks = scene.generation(0, Watched), scene.generation(most)
    blocks.block_length = length or blocks.block_length
    list(plain)
    events = list(blocks)
    equal, whole = 0, True
    for number, (one, other) in enumerate(zip(plain.states, blocks.states, strict=True)):
        assert [e.id for e in events if e.request == number] == other.answer
        assert [e.finish for e in events if e.request == number][-1] == other.finish
        assert one.seen.variation == other.seen.variation  # the first step is the same forwards
        assert one.seen.left_to_base == other.seen.left_to_base
        e = E * (1 + scene.rule.lam) / (1 - scene.rule.lam)
        for place, (a, b) in enumerate(zip(one.answer, other.answer, strict=False)):
            if a != b:
                final = filtered_scores(plain.finals[number][place], one, place)
                assert hangs_in_the_balance(final, a, b, one.request, place, e)
                whole = False
                break
            equal += 1
        else:
            assert one.answer == other.answer
            assert one.finish == other.finish
            assert one.steered == other.steered
    if whole and len(plain.states) == 1:
        for stream in range(2):
            assert blocks.lockstep.length(stream, 0) == plain.lockstep.length(stream, 0)
    return equal


def filtered_scores(final: Tensor, row: Any, place: int) -> Tensor:
    """What greedy choice compares: log-probabilities less the penalties so far."""
    sampling, scores = row.request.sampling, final.clone()
    for id_ in set(row.answer[:place]):
        times = row.answer[:place].count(id_)
        scores[id_] -= sampling.presence_penalty + sampling.frequency_penalty * times
    return scores


# ---- the same answers --------------------------------------------------------------------------


@settings(max_examples=40)
@given(scenes(), st.integers(1, 7))
def test_greedy_blocks_are_plain_lockstep(scene: Scene, most: int) -> None:
    assert assert_same(scene, most) > 0


@settings(max_examples=15)
@given(scenes(), st.integers(0, 7))
def test_greedy_answers_do_not_depend_on_the_block_length(scene: Scene, turn: int) -> None:
    """Blocks of any length in any order, none among them."""
    assert assert_same(scene, 7, Turning(turn)) > 0


class Turning(BlockLength):
    """Blocks of 0 to 7 in turn."""

    def __init__(self, turn: int):
        super().__init__(7)
        self.turn = turn

    @property
    def now(self) -> int:
        self.turn = (5 * self.turn + 3) % 8
        return self.turn


def fixed_scene(noise: float = 0.02, **sampling: Any) -> Scene:
    """Three rows of different lengths, steered; an expert that agrees on most tokens."""
    base = random_model(tiny_config(), 5)
    steering = Steering({0: torch.linspace(-1, 1, 32)}, 1.0, "last")
    requests = [
        Request(
            (tuple(range(3, 3 + n)),) * 2, steering.spans([(n, None)]),
            Sampling(seed=7, **sampling), limit, index,
        )
        for index, (n, limit) in enumerate(((4, 30), (9, 17), (2, 40)))
    ]  # fmt: skip
    streams = (Stream(base), Stream(disturbed(base, noise)))
    return Scene(streams, SGDS(0.9), requests, steering)


def unsteered(scene: Scene) -> Scene:
    return replace(
        scene, steering=None, requests=[replace(each, spans=()) for each in scene.requests]
    )


def test_greedy_with_fixed_weights_is_the_very_same_text() -> None:
    """Long answers, in which blocks of every length occur, and drafts that stand and fall."""
    scene = fixed_scene()
    plain = scene.generation(0)
    list(plain)
    for most in (1, 2, 3, 7):
        blocks = scene.generation(most)
        list(blocks)
        assert [row.answer for row in blocks.states] == [row.answer for row in plain.states]
        assert 0 < blocks.accepted < blocks.verified
        assert all(0 < row.accepted < row.drafted for row in blocks.states)


@pytest.mark.parametrize("first_tokens", [None, 3])
@pytest.mark.parametrize("lengths", [(2, 10), (10, 2), (15, 16), (9, 9)])
@pytest.mark.parametrize("most", [1, 2, 3, 5, 7])
def test_the_context_of_either_stream_ends_a_block(
    lengths: tuple[int, int], most: int, first_tokens: int | None
) -> None:
    """16 positions; an expert that rests no longer grows."""
    base = random_model(tiny_config(max_positions=16), 1)
    for noise in (0.0, 0.05):
        streams = (Stream(base), Stream(disturbed(base, noise)))
        request = Request(tuple(tuple(range(1, 1 + n)) for n in lengths))
        scene = Scene(streams, SGDS(0.5, first_tokens=first_tokens), [request])
        plain, blocks = scene.generation(0), scene.generation(most)
        blocks.block_length = Fixed(most)
        assert list(plain) == list(blocks)
        assert blocks.states[0].finish == "context"
        for stream in range(2):
            assert blocks.lockstep.length(stream, 0) == plain.lockstep.length(stream, 0)


class Single(Generation):
    """Speculative sampling of one token at a time, written plainly: every draft is judged at once,
    with three uniform numbers a token."""

    def note_changes(self, live: list[int], base: Tensor, final: Tensor) -> None:
        super().note_changes(live, base, final)
        self.base = base

    def choose(self, live: list[int], final: Tensor) -> Iterator[Event]:
        for place, number in enumerate(live):
            row = self.states[number]
            u = torch.rand(3, generator=row.generator, dtype=torch.float64).tolist()
            p, q = (
                filtered(each[place], row.request.sampling, row.counts).double().exp().tolist()
                for each in (final, self.base)
            )
            draft = reached(q, u[0])
            if u[1] * q[draft] >= p[draft]:
                draft = reached([max(a - b, 0) for a, b in zip(p, q, strict=True)], u[2])
            row.take(draft)
            read = self.lockstep.length(0, place)
            row.finish = self.why_ended(row.request, draft, len(row.answer), read)
            yield Event(number, draft, row.finish)


def reached(weights: list[float], share: float) -> int:
    """The id at which the running sum of weights passes a share of the whole."""
    goal = share * sum(weights)
    sums = itertools.accumulate(weights)
    return next(id_ for id_, value in enumerate(sums) if value > goal)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.9, "presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"temperature": 1.5, "top_k": 9, "min_p": 0.02},
    ],
)
def test_sampled_text_is_that_of_a_loop_which_judges_each_token(sampling: dict[str, Any]) -> None:
    """The same tokens for any block length; and a row of a batch equals that row alone."""
    scene = fixed_scene(**sampling)
    slow = scene.generation(0, Single)
    list(slow)
    wanted = [row.answer for row in slow.states]
    for most in (1, 2, 4, 7):
        blocks = scene.generation(most)
        list(blocks)
        assert [row.answer for row in blocks.states] == wanted
        assert blocks.accepted < blocks.verified
    alone = replace(scene, requests=scene.requests[1:2]).generation(4)
    list(alone)
    assert alone.states[0].answer == wanted[1]
    other = replace(scene, requests=[replace(scene.requests[1], index=9)]).generation(4)
    list(other)
    assert other.states[0].answer != wanted[1]


# ---- the distribution --------------------------------------------------------------------------

LENGTH, VOCABULARY, ROWS, BATCHES = 3, 5, 500, 5


class Fixed(BlockLength):
    """Blocks of one length."""

    @property
    def now(self) -> int:
        return self.most


def small_scene(top_p: float = 1.0) -> Scene:
    """5 ids, an expert that often disagrees, penalties at work."""
    base = random_model(tiny_config(vocab_size=VOCABULARY, n_layers=1), 5)
    expert = random_model(tiny_config(vocab_size=VOCABULARY, n_layers=1), 6)
    chosen = Sampling(3.0, top_p=top_p, presence_penalty=0.4)
    request = Request(((1, 2, 0),) * 2, (), chosen, LENGTH)
    return Scene((Stream(base), Stream(expert)), SGDS(0.6), [request])


def exact(scene: Scene) -> dict[tuple[int, ...], float]:
    """Probability of every answer, by forwards that read each prefix without a cache."""
    request, found = scene.requests[0], {(): 1.0}
    for _ in range(LENGTH):
        longer: dict[tuple[int, ...], float] = {}
        for answer, chance in found.items():
            ids = torch.tensor([[*request.prompts[0], *answer]])
            said = tuple(s.model(ids)[0, -1].log_softmax(-1) for s in scene.streams)
            counts = {id_: answer.count(id_) for id_ in answer}
            p = filtered(scene.rule(said), request.sampling, counts).double().exp()
            for id_, each in enumerate(p.tolist()):
                longer[(*answer, id_)] = chance * each
        found = longer
    return found


def p_value(scene: Scene, most: int) -> float:
    """Of the chi-square test that answers have the exact distribution; rare ones are pooled."""
    stats = pytest.importorskip("scipy.stats")
    seen: dict[tuple[int, ...], int] = {}
    for batch in range(BATCHES):
        requests = [replace(scene.requests[0], index=batch * ROWS + row) for row in range(ROWS)]
        generation = replace(scene, requests=requests).generation(most)
        generation.block_length = Fixed(most)
        list(generation)
        for row in generation.states:
            seen[tuple(row.answer)] = seen.get(tuple(row.answer), 0) + 1
    n, chances = ROWS * BATCHES, exact(scene)
    if any(chances[answer] == 0 for answer in seen):
        return 0.0
    common = [answer for answer, chance in chances.items() if n * chance >= 5]
    observed, expected = [seen.get(a, 0) for a in common], [n * chances[a] for a in common]
    assert len(common) > 20
    observed, expected = [*observed, n - sum(observed)], [*expected, n - sum(expected)]
    statistic = sum((a - b) ** 2 / b for a, b in zip(observed, expected, strict=True))
    return float(stats.chi2.sf(statistic, len(expected) - 1))


@pytest.mark.parametrize(("most", "top_p"), [(1, 1.0), (3, 1.0), (3, 0.9)])
def test_sampled_answers_have_the_exact_distribution(most: int, top_p: float) -> None:
    """2500 answers of three tokens, seeds fixed. A right rule fails for one choice of seeds in
    1000; the seeds here are one choice that was not looked for."""
    assert p_value(small_scene(top_p), most) > 1e-3


def always(p: Tensor, q: Tensor, draft: int, accept: Tensor, again: Tensor) -> int:
    return draft


def drawn_from_p(p: Tensor, q: Tensor, draft: int, accept: Tensor, again: Tensor) -> int:
    """Rejected drafts are replaced from p instead of what p has over q."""
    kept = bool(accept * q[draft] < p[draft])
    return draft if kept else draft_module.inverse_cdf(p, again)


def one_number(p: Tensor, q: Tensor, draft: int, accept: Tensor, again: Tensor) -> int:
    """The second draw is not independent of the acceptance."""
    return accept_or_redraw(p, q, draft, accept, accept)


@pytest.mark.parametrize("rule", [always, drawn_from_p, one_number])
def test_a_wrong_rule_is_told(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_module, "accept_or_redraw", rule)
    assert p_value(small_scene(), 3) < 1e-6


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=6))
def test_the_rule_gives_p_whatever_q_is(weights: list[tuple[int, int]]) -> None:
    """Summed over drafts and a grid of both uniform numbers, to within the grid."""
    p, q = (torch.tensor(each, dtype=torch.float64) for each in zip(*weights, strict=True))
    assume(p.sum() > 0 and q.sum() > 0)
    n, found = 40, torch.zeros(len(p), dtype=torch.float64)
    grid = [torch.tensor([(i + 0.5) / n], dtype=torch.float64) for i in range(n)]
    for draft in q.nonzero().flatten().tolist():
        chance = float(q[draft] / q.sum())
        redrawn = [a for a in grid if accept_or_redraw(p, q, draft, a, grid[0]) != draft]
        found[draft] += chance * (n - len(redrawn)) / n
        for again in grid if redrawn else ():
            token = accept_or_redraw(p, q, draft, redrawn[0], again)
            found[token] += chance * len(redrawn) / n / n
    torch.testing.assert_close(found, p / p.sum(), atol=2 / n, rtol=0)


def test_the_rule_by_hand() -> None:
    """p = (1/2, 1/2, 0), q = (1/4, 1/4, 1/2): what p has over q is (1/4, 1/4, 0)."""
    p = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    q = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
    numbers = {u: torch.tensor([u], dtype=torch.float64) for u in (0.0, 0.49, 0.51, 0.999)}
    for accept in numbers.values():
        assert accept_or_redraw(p, q, 0, accept, accept) == 0  # p > q: always stands
        assert accept_or_redraw(p, q, 2, accept, numbers[0.49]) == 0  # p = 0: never stands
        assert accept_or_redraw(p, q, 2, accept, numbers[0.51]) == 1
        assert accept_or_redraw(q, q, 1, accept, accept) == 1
    assert accept_or_redraw(q, p, 0, numbers[0.49], numbers[0.0]) == 0  # q / p = 1/2
    assert accept_or_redraw(q, p, 0, numbers[0.51], numbers[0.0]) == 2


# ---- forwards ----------------------------------------------------------------------------------


class Counted:
    """How many forwards base and expert take, from the answer's first token on."""

    def __init__(self, generation: Speculation):
        self.base = self.expert = 0
        self.widths: list[int] = []  # of the expert's forwards
        feed, score = generation.lockstep.feed, generation.expert_reads

        def counted_feed(tokens: Any, slots: Any = ()) -> Any:
            self.base += any(map(len, tokens[0]))
            return feed(tokens, slots)

        def counted_score(texts: Any) -> Any:
            assert any(map(len, texts))
            self.expert += 1
            self.widths.append(max(map(len, texts)))
            return score(texts)

        generation.lockstep.feed, generation.expert_reads = counted_feed, counted_score
        self.n = len(list(generation))
        self.base -= 1  # the prompt


@dataclass(frozen=True)
class Contrary:
    """Guidance by which the base's best token is never chosen."""

    n_streams: ClassVar[int] = 2
    drawn_from: ClassVar[int] = 0
    first_tokens: int | None = None

    def __call__(self, log_probs: tuple[Tensor, ...]) -> Tensor:
        base = log_probs[0]
        return base.scatter(-1, base.argmax(-1, keepdim=True), -torch.inf).log_softmax(-1)


def long_scene(rule: Rule, limit: int, noise: float = 0.0) -> Scene:
    base = random_model(tiny_config(max_positions=512), 5)
    streams = (Stream(base), Stream(disturbed(base, noise)))
    request = Request(((3, 1, 4),) * 2, max_new_tokens=limit, gated=True)
    return Scene(streams, rule, [request])


@pytest.mark.parametrize("most", [1, 2, 4, 7])
@pytest.mark.parametrize("limit", [1, 2, 29, 30])
def test_an_expert_like_the_base_accepts_all(most: int, limit: int) -> None:
    """One forward of the base a token. The first token of a block is known, so a block of k has
    k - 1 to judge; with k = 1 the expert reads every second token with the one before."""
    generation = long_scene(SGDS(0.9), limit).generation(most)
    generation.block_length = Fixed(most)
    counted = Counted(generation)
    assert counted.n == limit
    assert counted.base == limit - 1
    assert generation.accepted == generation.verified == limit
    left = math.ceil((limit - 1) / most) if most > 1 else limit // 2  # a last single is known
    single = most > 1 and limit % most == 1
    expected = math.ceil(limit / most) - single if most > 1 else left
    assert counted.expert == expected
    (row,) = generation.states
    assert row.drafted == row.accepted == (limit - math.ceil(limit / most) if most > 1 else left)


@pytest.mark.parametrize("most", [1, 2, 4, 7])
def test_an_expert_that_never_agrees(most: int) -> None:
    """One forward of the expert and k of the base for each token but the first, and no more than
    plain lockstep's two where k adapts."""
    generation = long_scene(Contrary(), 40).generation(most)
    generation.block_length = Fixed(most)
    counted = Counted(generation)
    # the first block's first token is known; blocks near the end are shorter
    assert counted.expert <= 39
    assert counted.base <= most * 39
    assert generation.accepted == generation.states[0].accepted == 0
    counted = Counted(long_scene(Contrary(), 200).generation(most))
    assert counted.base + counted.expert <= 2.05 * 199
    assert counted.widths[-150:] == [1] * 150  # plain lockstep itself


@dataclass(frozen=True)
class Mostly:
    """Guidance by which the base's best token stands now and then, by what it is."""

    first_tokens: int | None = None
    n_streams: ClassVar[int] = 2
    drawn_from: ClassVar[int] = 0

    def __call__(self, log_probs: tuple[Tensor, ...]) -> Tensor:
        against = Contrary()(log_probs)
        stands = (log_probs[0].max(-1, keepdim=True).values * -1e4).long() % 8 > 0
        return torch.where(stands, log_probs[0], against)


def test_forwards_are_near_the_ideal_for_the_acceptance_met() -> None:
    generation = long_scene(Mostly(), 400).generation(7)
    counted = Counted(generation)
    acceptance = generation.accepted / generation.verified
    assert 0.8 < acceptance < 0.95
    ideal = min(forwards_a_token(block, acceptance) for block in range(1, 65))
    assert (counted.base + counted.expert) / 399 < 1.06 * ideal


def test_guidance_that_rests_takes_no_forwards() -> None:
    """After `first_tokens` the expert reads nothing, and the base one token a step."""
    scene = long_scene(SGDS(0.9, first_tokens=4), 20)
    generation = scene.generation(7)
    generation.block_length = Fixed(7)
    counted = Counted(generation)
    assert (counted.expert, counted.base) == (1, 19)
    assert generation.lockstep.length(1, 0) == 3 + 3  # prompt and what the fourth token follows
    shut = replace(long_scene(SGDS(0.9), 20, 0.02), gate=Gate(1.0)).generation(7)
    for n, _ in enumerate(shut, 1):
        assert shut.lockstep.length(0, 0) == 3 + n - 1  # told as soon as it is known
    assert shut.lockstep.length(1, 0) == 3
    assert Counted(replace(scene, gate=Gate(1.0)).generation(7)).expert == 0


@given(st.floats(0, 1), st.integers(1, 7), st.sampled_from((0.5, 1.0, 2.0)))
@settings(max_examples=10)
def test_the_price_of_a_token_is_what_blocks_cost(p: float, block: int, price: float) -> None:
    """Against a walk through 20000 blocks: drafts stand with probability p."""
    draw, known, cost, tokens = random.Random(1), False, 0.0, 0
    for _ in range(20000):
        judged = block - known
        cost += block + (price if judged else 0)
        stood = next((n for n in range(judged) if draw.random() >= p), judged)
        tokens += known + stood + (stood < judged)
        known = judged > 0 and stood == judged
    assert forwards_a_token(block, p, price) == pytest.approx(cost / tokens, rel=0.03)


def test_blocks_follow_acceptance() -> None:
    """By hand: blocks of one cost 2, 3/2 at acceptance 0, 1; with all accepted 4 cost 5/4."""
    assert forwards_a_token(1, 0.0) == 2
    assert forwards_a_token(1, 1.0) == 1.5
    assert forwards_a_token(4, 1.0) == 1.25
    assert [best_block(p, 7) for p in (0.0, 0.3, 0.9, 1.0)] == [1, 1, 4, 7]
    assert best_block(0.9, 3) == 3
    assert best_block(0.5, 7, price=5.0) > best_block(0.5, 7)  # a dear expert is asked less often
    length = BlockLength(7)
    for _ in range(60):
        length.note(1, 6)
    assert length.now == 1
    for _ in range(60):
        length.note(0, 1)
    assert length.now == 0
    for _ in range(60):
        length.note(5, 5)
    assert length.now >= 6


# ---- caches ------------------------------------------------------------------------------------


def assert_straight(scene: Scene, generation: Speculation) -> None:
    """The caches hold what reading prompt and answer in one go would write there."""
    (row,) = generation.states
    straight = Lockstep(scene.streams, 1, fuse=False)
    texts = [list(prompt) + row.answer for prompt in row.request.prompts]
    cut = [[text[: generation.lockstep.length(s, 0)]] for s, text in enumerate(texts)]
    assert len(cut[0][0]) == len(texts[0]) - 1
    slots = [[], []] if scene.steering is None else [scene.steering.slots(0, row.spans), []]
    straight.feed(cut, slots)
    for ours, its in zip(generation.lockstep.groups, straight.groups, strict=True):
        n = its.cache.lengths[0]
        assert ours.cache.lengths == [n]
        for one, other in (
            (ours.cache.keys, its.cache.keys),
            (ours.cache.values, its.cache.values),
        ):
            torch.testing.assert_close(one[..., :n, :], other[..., :n, :], atol=E, rtol=E)


@settings(max_examples=20)
@given(scenes(), st.integers(1, 7), st.integers(1, 14), st.booleans())
def test_caches_are_a_straight_run(scene: Scene, most: int, stop: int, close: bool) -> None:
    """At the end, closed early or cancelled after any token."""
    scene = replace(scene, requests=scene.requests[:1], gate=None)
    generation = scene.generation(most)
    events = iter(generation)
    try:
        for n, _ in enumerate(events, 1):
            if n == stop and close:
                events.close()
            elif n == stop:
                generation.cancel(0)
    except SlotError:  # cancelled before there was anything to steer
        assert len(generation.states[0].answer) < 2
    assert len(generation.states[0].answer) <= stop or generation.states[0].finish
    assert_straight(scene, generation)


def test_a_cancelled_row_gets_nothing_more_of_its_block() -> None:
    scene = unsteered(fixed_scene(noise=0.0))  # every draft stands
    generation = scene.generation(7)
    generation.block_length = Fixed(7)
    events: list[Event] = []
    for event in generation:
        events.append(event)
        if event.request == 0 and len(generation.states[0].answer) == 3:
            generation.cancel(0)
            generation.cancel(1, "stop_string")  # its turn would come next
    assert [len(row.answer) for row in generation.states] == [3, 2, 40]
    assert [e for e in events if e.id is None] == [Event(0, None, "cancelled")]
    assert [e.request for e in events[:9]] == [0, 1, 2, 0, 1, 2, 0, 2, 2]  # rows take turns
    plain = scene.generation(0)
    list(plain)
    assert generation.states[2].answer == plain.states[2].answer


def test_a_deadline_ends_an_answer_within_a_block() -> None:
    """The rest of the block is dropped; the caches, and the other rows, are as without it."""
    scene = unsteered(fixed_scene(noise=0.0))  # every draft stands
    whole = scene.generation(7)
    list(whole)
    now = 0.0
    deadline = Deadline(1.0, lambda: now)
    first = replace(scene.requests[0], deadline=deadline)
    scene = replace(scene, requests=[first, *scene.requests[1:]])
    generation = scene.generation(7)
    generation.block_length = Fixed(7)
    for event in generation:
        if event.request == 0 and len(generation.states[0].answer) == 3:
            now = 1.0
    assert [row.finish for row in generation.states] == ["time", "length", "length"]
    assert generation.states[0].answer == whole.states[0].answer[:4]
    assert [row.answer for row in generation.states[1:]] == [row.answer for row in whole.states[1:]]
    alone = replace(scene, requests=[replace(first, deadline=Deadline(0.0, lambda: now))])
    generation = alone.generation(7)
    assert [event.finish for event in generation] == ["time"]
    assert_straight(alone, generation)


# ---- what breaks -------------------------------------------------------------------------------


def broken_at(model: Llama, id_: int) -> Llama:
    """A copy that gives NaN after it has read a token."""
    copy = disturbed(model, 0.0)
    copy.embed_tokens.weight.data[id_] = torch.nan
    return copy


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("most", [0, 1, 2, 5])
def test_nan_after_an_accepted_token_ends_the_answer_where_plain_does(who: int, most: int) -> None:
    scene = long_scene(SGDS(0.9), 30, 0.02)
    plain = scene.generation(0)
    list(plain)
    answer = plain.states[0].answer
    first = next(n for n, id_ in enumerate(answer) if n > 3 and id_ not in (3, 1, 4))
    assert answer.index(answer[first]) == first
    streams = list(scene.streams)
    streams[who] = Stream(broken_at(streams[who].model, answer[first]))
    scene = replace(scene, streams=tuple(streams))
    blocks = scene.generation(7)
    blocks.block_length = Fixed(most)
    for generation in (scene.generation(0), blocks):
        with pytest.raises(NonFiniteError, match="NaN or infinite"):
            list(generation)
        assert generation.states[0].answer == answer[: first + 1]


@dataclass(frozen=True)
class Without(SGDS):
    """Guidance that rules one token out."""

    id_: int = 0

    def __call__(self, log_probs: tuple[Tensor, ...]) -> Tensor:
        final = super().__call__(log_probs).clone()
        final[..., self.id_] = -torch.inf
        return final


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("at", [3, 5, 9])
def test_nan_behind_a_draft_that_falls_is_never_seen(who: int, at: int) -> None:
    """A batch, whose other rows are longer, so that columns of forgotten drafts stay in view."""
    scene = fixed_scene(0.02)
    free = replace(scene, rule=SGDS(0.0)).generation(0)
    list(free)
    prompted = {id_ for request in scene.requests for id_ in request.prompts[0]}
    banned = next(id_ for id_ in free.states[2].answer[at:] if id_ not in prompted)
    streams = list(scene.streams)
    streams[who] = Stream(broken_at(streams[who].model, banned))
    scene = replace(scene, streams=tuple(streams), rule=Without(0.9, id_=banned))
    plain, blocks = scene.generation(0), scene.generation(7)
    blocks.block_length = Fixed(7)
    spoilt = []
    list(plain)
    for _ in blocks:
        spoilt.append(blocks.spoilt)
    assert any(spoilt)
    assert [row.answer for row in blocks.states] == [row.answer for row in plain.states]


def test_steering_that_only_fallen_drafts_met_never_took_place() -> None:
    scene = long_scene(Contrary(), 3)
    request = replace(scene.requests[0], spans=((6, None),))  # plain lockstep reads up to 5
    steering = Steering({0: torch.ones(32)}, 1.0, "prompt")
    scene = replace(scene, requests=[request], steering=steering)
    for most in (0, 7):
        generation = scene.generation(most)
        generation.block_length = Fixed(7)
        with pytest.raises(SlotError, match="never applied"):
            list(generation)


# ---- when it applies ---------------------------------------------------------------------------


def test_blocks_are_for_two_models() -> None:
    base = random_model(tiny_config())
    half = random_model(tiny_config(), dtype=torch.bfloat16)
    other = Stream(random_model(tiny_config(), 1, torch.bfloat16))
    shared = Stream(half, random_adapter(half))
    assert block_limit(None, (Stream(half), other)) == AUTOMATIC
    assert block_limit(None, (Stream(base), Stream(random_model(tiny_config(), 1)))) == 0
    assert block_limit(3, (Stream(base), other)) == 3
    assert block_limit(0, (Stream(half), other)) == 0
    for streams in ((Stream(half),), (Stream(half), shared), (Stream(half), other, other)):
        assert block_limit(3, streams) == block_limit(None, streams) == 0


def test_what_cannot_be_drafted_is_plain_lockstep() -> None:
    scene = fixed_scene()
    request = scene.requests[0]

    def kind(lockstep: Lockstep, rule: Rule, request: Request, most: int = 3) -> type:
        return type(make_generation(lockstep, rule, [request], most=most))

    two, alone = Lockstep(scene.streams), Lockstep(scene.streams[:1])
    assert kind(two, SGDS(0.9), request) is Speculation
    assert kind(two, SelfCD(), request) is Speculation
    assert kind(two, SGDS(0.9), request, most=0) is Generation
    assert kind(two, Plain(), request) is Generation  # safety is switched off
    assert kind(two, SGDS(0.9), replace(request, prompts=((1,), ()))) is Generation
    assert kind(alone, Plain(), replace(request, prompts=((1,),))) is Generation
    assert kind(Lockstep([scene.streams[0]] * 2), SGDS(0.9), request) is Generation


@pytest.mark.parametrize("value", [-1, 65])
def test_a_limit_out_of_range(world: World, value: int) -> None:
    with pytest.raises(SettingError, match=r"speculate is .*; expected 0"):
        minisafe.load(None, world.flags(speculate=value))


# ---- sessions and conversations ----------------------------------------------------------------


def session(world: World, **changes: Any) -> minisafe.Session:
    given = {"expert": world.expert, "max_new_tokens": 12, "sgds_lambda": 0.5} | changes
    return minisafe.load(None, world.flags(**given))


def test_a_session_answers_the_same_and_states_its_drafts(world: World) -> None:
    prompts = ["Hello there!", "What is the name of the river?", "a"]
    plain, drafted = (session(world, speculate=n).generate(prompts, chat=True) for n in (0, 5))
    for one, other in zip(plain, drafted, strict=True):
        assert one.tokens == other.tokens
        assert one.text == other.text
        assert "speculation" not in one.applied.to_json()
        said = other.applied.to_json()
        counts = said.pop("speculation")
        assert 0 <= counts["accepted"] <= counts["drafted"]
        assert said == one.applied.to_json()
    assert other.to_json()["applied"]["speculation"] == counts
    automatic = session(world).generate(prompts, chat=True)  # float32 on a CPU: off
    assert all("speculation" not in each.applied.to_json() for each in automatic)


def test_seeds_fix_sampled_texts(world: World) -> None:
    prompts = ["Hello there!", "a"]
    one, again, longer, other = (
        [
            r.tokens
            for r in session(world, temperature=1.0, seed=seed, speculate=n).generate(prompts)
        ]
        for seed, n in ((1, 3), (1, 3), (1, 6), (2, 3))
    )
    assert one == again == longer
    assert one != other


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_conversation_is_the_same(world: World, positions: str) -> None:
    """Turns, an answer broken off, one that a stop string ends, safety off and on again."""
    chats = [session(world, speculate=n, sa_positions=positions).chat() for n in (0, 4)]
    for turn, text in enumerate(("Hello there!", "Why?", "a river", "the fox", "And then?")):
        for chat in chats:
            chat.set_safe(turn != 3)
        pieces = [chat.send(text) for chat in chats]
        if turn == 1:
            broken = [[next(each) for _ in range(3)] for each in pieces]
            assert broken[0] == broken[1]
            for each in pieces:
                each.close()
            continue
        plain, drafted = (list(each) for each in pieces)
        assert plain == drafted
        if turn == 0:
            for chat in chats:
                chat.set("stop", (plain[-2][-1:] or "x",))
        lengths = [[chat.lockstep.length(s, 0) for s in range(2)] for chat in chats]
        assert lengths[0] == lengths[1]
        assert chats[0].reused == chats[1].reused
    assert chats[0].messages == chats[1].messages


# ---- the bench ---------------------------------------------------------------------------------


def test_the_bench_states_acceptance_and_ideal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "bench")
    bench = importlib.import_module("speculation")
    rows = {row["name"]: row for row in bench.speculation_rows("tiny", 5, 40, 1)}
    assert all(row["value"] >= 0 for row in rows.values())
    for share, how in itertools.product((0.9, 0.6, 0.0), ("greedy", "sampled")):
        start = f"tiny, speculation: agreement {share:g}, {how}"
        assert rows[f"{start}, over base alone, time"]["unit"] == "x"
        met = rows[f"{start}, acceptance met"]["value"]
        assert met == pytest.approx(share, abs=0.25)  # 40 draws, seeds fixed
    assert bench.ideal(0.0) == 2
    assert bench.ideal(0.9) == forwards_a_token(4, 0.9)
