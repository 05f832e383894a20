"""The sampling loop: the same tokens in any batch and with any way of computing them.

Two ways to compute the same log-probability agree in float32 up to `worlds.E` = 1e-4; after
guidance, up to (1 + lambda) / (1 - lambda) times that. Tokens must be equal unless such a
difference decides (`worlds.same`), so that no test depends on a machine's order of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minisafe.engine import Event, Generation, Request
from minisafe.errors import NonFiniteError, PromptError, SlotError
from minisafe.guidance import SGDS, Plain, Rule
from minisafe.lockstep import Lockstep, Stream
from minisafe.model import Llama
from minisafe.sampling import Sampling, row_generator, sample
from minisafe.vectors import POSITIONS, Steering
from tests.support.tiny import models, random_adapter, random_model, tiny_config
from tests.support.worlds import E, Run, published, run, same, slow_log_probs

EXPERTS = ("adapter", "system prompt", "checkpoint")
prompts = st.lists(st.integers(0, 66), min_size=1, max_size=12)
lams = st.sampled_from((0.5, 0.9, 0.99))
seeds = st.integers(0, 100)


@dataclass(frozen=True)
class Scene:
    """What to decode with, and what to answer."""

    streams: tuple[Stream, ...]
    rule: SGDS
    steering: Steering | None
    requests: list[Request]

    @property
    def magnified(self) -> float:
        return (1 + self.rule.lam) / (1 - self.rule.lam)

    def run(self, requests: Sequence[Request] | None = None, **options: object) -> list[Run]:
        requests = self.requests if requests is None else requests
        steering = options.pop("steering", self.steering)
        return run(self.streams, self.rule, requests, steering, **options)


@st.composite
def scenes(
    draw: st.DrawFn, rows: int = 1, experts: Sequence[str] = EXPERTS, sampling: bool = False
) -> Scene:
    """Safe decoding of some prompts by a random tiny model and any kind of expert."""
    base = draw(models)
    kind = draw(st.sampled_from(experts))
    streams = (Stream(base), expert_of(base, kind, draw(seeds)))
    steering = draw(st.one_of(st.none(), steerings(base)))
    rule = SGDS(draw(st.just(0.5) if sampling else lams), draw(st.sampled_from((0.0, 0.2))))
    temperature = draw(st.floats(0.5, 1.5)) if sampling else 0.0
    requests = []
    for index in range(rows):
        prompt = tuple(draw(prompts))
        other = tuple(draw(prompts)) if kind == "system prompt" else prompt
        spans = () if steering is None else steering.spans([(len(prompt), None)])
        chosen = Sampling(temperature, seed=draw(seeds))
        limit = draw(st.integers(2, 8))
        requests.append(Request((prompt, other), spans, chosen, limit, index))
    return Scene(streams, rule, steering, requests)


def expert_of(base: Llama, kind: str, seed: int) -> Stream:
    if kind == "checkpoint":
        return Stream(random_model(tiny_config(hidden=16, n_layers=1), seed % 5))
    return Stream(base, random_adapter(base, seed % 5) if kind == "adapter" else None)


@st.composite
def steerings(draw: st.DrawFn, base: Llama) -> Steering:
    layer = draw(st.integers(0, base.config.n_layers - 1))
    generator = torch.Generator().manual_seed(draw(seeds))
    vector = torch.randn(base.config.hidden, generator=generator)
    return Steering({layer: vector}, draw(st.floats(0.5, 3)), draw(st.sampled_from(POSITIONS)))


# ---- the whole algorithm, slowly ---------------------------------------------------------------


@settings(max_examples=10)
@given(scenes())
def test_it_is_safe_decoding_as_published(scene: Scene) -> None:
    """Two full forwards per token, without a cache, in float64 with merged weights, and the paper's
    formula: each greedy token must be its best, or tie with the best as far as float32 can tell."""
    scene = replace(scene, rule=SGDS(scene.rule.lam))
    request, (found,) = scene.requests[0], scene.run()
    base, expert = (list(prompt) for prompt in request.prompts)
    compared = 0
    for step in found.steps:
        lb = slow_log_probs(scene.streams[0], base, scene.steering, request.spans)
        lu = slow_log_probs(scene.streams[1], expert)
        s = published(lb, lu, scene.rule.lam)
        torch.testing.assert_close(step.log_probs[0].double(), lb, atol=E, rtol=0)
        torch.testing.assert_close(step.log_probs[1].double(), lu, atol=E, rtol=0)
        assert s[step.id] >= s.max() - 2 * E * scene.magnified
        compared += bool(s.topk(2).values.diff().abs() > 2 * E * scene.magnified)
        base.append(step.id)
        expert.append(step.id)
    assert len(found.steps) == request.max_new_tokens
    assert compared  # some token was beyond doubt


@pytest.mark.parametrize("kind", EXPERTS)
def test_greedy_tokens_equal_the_slow_reference(kind: str) -> None:
    """The same with fixed weights, where no two tokens come near each other: the very same text."""
    base = random_model(tiny_config(), 47)
    scene = Scene(
        (Stream(base), expert_of(base, kind, 1)), SGDS(0.9),
        Steering({1: torch.linspace(-1, 1, 32)}, 2.0, "last"), [],
    )  # fmt: skip
    prompt, other = (3, 1, 4, 1, 5), (9, 2, 6) if kind == "system prompt" else (3, 1, 4, 1, 5)
    request = Request((prompt, other), ((4, None),), max_new_tokens=10)
    texts, expected = [list(prompt), list(other)], []
    for _ in range(10):
        lb = slow_log_probs(scene.streams[0], texts[0], scene.steering, request.spans)
        s = published(lb, slow_log_probs(scene.streams[1], texts[1]), 0.9)
        best, second = s.topk(2).values
        assert best - second > 4 * E * 19
        expected.append(int(s.argmax()))
        for text in texts:
            text.append(expected[-1])
    assert scene.run([request])[0].ids == expected
    assert len(set(expected)) > 3
    alone = replace(request, prompts=(prompt,))
    steered_only = run(scene.streams[:1], Plain(), [alone], scene.steering)[0].ids
    guided_only = scene.run([request], steering=None)[0].ids
    assert expected not in (steered_only, guided_only)


# ---- other ways to compute the same ------------------------------------------------------------


@given(scenes(rows=3), st.integers(1, 9))
def test_fused_is_separate_and_chunked_is_whole(scene: Scene, chunk: int) -> None:
    whole = scene.run()
    compared = [
        same(one, other, request, scene.magnified)
        for runs in (scene.run(fuse=False), scene.run(chunk=chunk))
        for one, other, request in zip(whole, runs, scene.requests, strict=True)
    ]
    assert sum(compared) > 0


@pytest.mark.parametrize("sampling", [False, True], ids=["greedy", "sampling"])
@given(data=st.data())
def test_a_row_of_a_batch_is_the_same_prompt_alone(sampling: bool, data: st.DataObject) -> None:
    """Greedy, and sampling with its number in the list; rows end at different lengths."""
    scene = data.draw(scenes(rows=4, sampling=sampling))
    batch = scene.run()
    for row, request in enumerate(scene.requests):
        (alone,) = scene.run([request])
        same(batch[row], alone, request, scene.magnified)


@given(scenes(rows=3, sampling=True))
def test_the_same_seed_is_the_same_text(scene: Scene) -> None:
    """The same kernels run in the same order, so this holds to the bit."""
    assert [each.ids for each in scene.run()] == [each.ids for each in scene.run()]


@given(scenes(sampling=True), seeds)
def test_draws_go_through_one_generator_a_row(scene: Scene, other: int) -> None:
    """Every token is what `sample` draws from what guidance gave, with the row's own generator."""
    request = replace(scene.requests[0], index=other)
    (found,) = scene.run([request])
    generator = row_generator(request.sampling.seed, other)
    for step in found.steps:
        assert step.id == sample(step.final, request.sampling, {}, generator)


def test_seeds_and_numbers_tell_texts_apart() -> None:
    base = random_model(tiny_config(), 3)
    sampled = [
        run(
            [Stream(base)],
            Plain(),
            [Request(((1, 2),), (), Sampling(1.5, seed=seed), 12, index)],
        )[0].ids
        for seed, index in ((0, 0), (0, 1), (1, 0), (0, 0))
    ]
    assert sampled[0] == sampled[3]
    assert len(set(map(tuple, sampled))) == 3


@given(scenes(), seeds, seeds)
def test_temperature_0_ignores_the_seed(scene: Scene, one: int, other: int) -> None:
    request = scene.requests[0]
    texts = [
        scene.run([replace(request, sampling=Sampling(0.0, seed=seed), index=seed)])[0].ids
        for seed in (one, other)
    ]
    assert texts[0] == texts[1]


@given(scenes(), st.floats(0.5, 5), st.floats(0.0, 5))
def test_penalties_count_the_answer_not_the_prompt(
    scene: Scene, presence: float, frequency: float
) -> None:
    chosen = Sampling(presence_penalty=presence, frequency_penalty=frequency)
    request = replace(scene.requests[0], sampling=chosen, max_new_tokens=8)
    (found,) = scene.run([request])
    for number, step in enumerate(found.steps):
        so_far = found.ids[:number]
        scores = step.final.clone()
        for token in set(so_far):
            scores[token] -= presence + frequency * so_far.count(token)
        assert scores[step.id] >= scores.max() - 1e-4


def test_a_frequency_counts_every_time_a_token_comes() -> None:
    penalty = Sampling(frequency_penalty=0.5)
    request = Request(((3, 1, 4),), sampling=penalty, max_new_tokens=40)
    (found,) = run((Stream(random_model(tiny_config(), 47)),), Plain(), [request], None)
    decided = 0
    for number, step in enumerate(found.steps):
        times = torch.bincount(torch.tensor(found.ids[:number], dtype=torch.long), minlength=67)
        assert step.id == int((step.final - 0.5 * times).argmax())
        decided += step.id != int((step.final - 0.5 * times.clamp(max=1)).argmax())
    assert decided  # counted once each, another token would have come


# ---- steering ----------------------------------------------------------------------------------


@given(scenes(rows=2), st.booleans(), st.data())
def test_a_zero_vector_or_scale_is_no_steering_to_the_bit(
    scene: Scene, vector: bool, data: st.DataObject
) -> None:
    base = scene.streams[0].model
    steering = data.draw(steerings(base))
    if vector:
        steering = replace(steering, vectors={0: torch.zeros(base.config.hidden)})
    else:
        steering = replace(steering, scale=0.0)
    spans = [steering.spans([(len(r.prompts[0]), None)]) for r in scene.requests]
    requests = [replace(r, spans=s) for r, s in zip(scene.requests, spans, strict=True)]
    for one, other in zip(
        scene.run(requests, steering=steering), scene.run(steering=None), strict=True
    ):
        assert one.ids == other.ids
        for a, b in zip(one.steps, other.steps, strict=True):
            assert torch.equal(a.final, b.final)
            assert all(torch.equal(x, y) for x, y in zip(a.log_probs, b.log_probs, strict=True))


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "separate"])
@given(scene=scenes(rows=2), data=st.data())
def test_the_expert_is_never_steered(fuse: bool, scene: Scene, data: st.DataObject) -> None:
    """While both read the same text, its log-probabilities are bit-equal with and without."""
    steering = data.draw(steerings(scene.streams[0].model))
    spans = [steering.spans([(len(r.prompts[0]), None)]) for r in scene.requests]
    requests = [replace(r, spans=s) for r, s in zip(scene.requests, spans, strict=True)]
    steered = scene.run(requests, steering=steering, fuse=fuse)
    moved = False
    for one, other in zip(steered, scene.run(steering=None, fuse=fuse), strict=True):
        for a, b in zip(one.steps, other.steps, strict=True):
            assert torch.equal(a.log_probs[1], b.log_probs[1])
            moved |= not torch.equal(a.log_probs[0], b.log_probs[0])
            if a.id != b.id:
                break
    assert moved


@pytest.mark.parametrize(
    ("positions", "fed"),
    [("prompt", [2]), ("last", [2, 3, 4, 5]), ("generated", [3, 4, 5]), ("all", list(range(6)))],
)
def test_which_positions_are_steered(positions: str, fed: list[int]) -> None:
    """Three prompt tokens, and three of four answer tokens that are read again."""
    base = random_model(tiny_config(), 2)
    steering = Steering({0: torch.ones(32)}, 1.0, positions)
    seen: list[int] = []
    lockstep = Lockstep([Stream(base)])
    generation = Generation(
        lockstep, Plain(), [Request(((4, 5, 6),), steering.spans([(3, None)]), max_new_tokens=4)],
        steering,
    )  # fmt: skip
    plain = lockstep.feed

    def spied(tokens: list, slots: list) -> object:
        start = lockstep.length(0, 0)
        for slot in slots[0]:
            for position in range(start, start + len(tokens[0][0])):
                if any(a <= position and (b is None or position < b) for a, b in slot.spans):
                    seen.append(position)
        return plain(tokens, slots)

    lockstep.feed = spied  # type: ignore[method-assign]
    assert len(list(generation)) == 4
    assert seen == fed


def test_steering_that_never_took_place() -> None:
    base = random_model(tiny_config())
    steering = Steering({0: torch.ones(32)}, 1.0, "prompt")
    for spans in ((), ((40, None),)):
        request = Request(((1, 2, 3),), spans, max_new_tokens=2)
        with pytest.raises(SlotError, match="never applied"):
            run([Stream(base)], Plain(), [request], steering)
    good = Request(((1, 2, 3),), ((2, 3),), max_new_tokens=2)
    with pytest.raises(SlotError, match="never applied"):  # one row is not enough
        run([Stream(base)], Plain(), [good, request], steering)
    run([Stream(base)], Plain(), [good], steering)
    run([Stream(base)], Plain(), [request], replace(steering, scale=0.0))


def test_one_token_leaves_nothing_generated_to_steer() -> None:
    base = random_model(tiny_config())
    steering = Steering({0: torch.ones(32)}, 1.0, "generated")
    request = Request(((1, 2),), steering.spans([(2, None)]), max_new_tokens=1)
    assert run([Stream(base)], Plain(), [request], steering)[0].finish == "length"


# ---- rows that end -----------------------------------------------------------------------------


@given(scenes(rows=4), st.data())
def test_rows_that_end_leave_the_others_untouched(scene: Scene, data: st.DataObject) -> None:
    """By length, by end token and by cancelling, in any order, against each row alone."""
    requests = [replace(r, max_new_tokens=8) for r in scene.requests]
    free = scene.run(requests)
    eos = frozenset(data.draw(st.lists(st.sampled_from(free[0].ids), max_size=2)))
    cancel = data.draw(st.dictionaries(st.integers(1, 3), st.integers(1, 7), max_size=3))
    limits = [data.draw(st.integers(1, 8)) for _ in requests]
    requests = [replace(r, max_new_tokens=n) for r, n in zip(requests, limits, strict=True)]
    if scene.steering is not None and scene.steering.positions == "generated":
        assume(all(n > 1 for n in cancel.values()))
    batch = scene.run(requests, eos=eos, cancel=cancel)
    for row, request in enumerate(requests):
        alone_cancel = {0: cancel[row]} if row in cancel else None
        (alone,) = scene.run([request], eos=eos, cancel=alone_cancel)
        same(batch[row], alone, request, scene.magnified)
        last, n = batch[row].ids[-1], len(batch[row].ids)
        if last in eos:
            assert batch[row].finish == "stop"
        elif n == request.max_new_tokens:
            assert batch[row].finish == "length"
        else:
            assert batch[row].finish == "cancelled"
            assert n == cancel[row]
        assert not eos & set(batch[row].ids[:-1])


def plain_generation(requests: list[Request], eos: frozenset[int] = frozenset()) -> Generation:
    base = random_model(tiny_config(max_positions=16), 1)
    return Generation(Lockstep([Stream(base)], len(requests), 4), Plain(), requests, None, eos)


def test_cancelled_rows_get_no_more_tokens() -> None:
    requests = [Request(((n, n + 1),), max_new_tokens=4) for n in range(3)]
    generation = plain_generation(requests)
    events: list[Event] = []
    for event in generation:
        events.append(event)
        if event.request == 0 and len(events) == 1:
            generation.cancel(1)  # whose turn comes later in the same step
            generation.cancel(2, "stop_string")  # the caller knows, so it hears nothing
    assert [e.request for e in events if e.id is not None] == [0, 0, 0, 0]
    assert [e for e in events if e.id is None] == [Event(1, None, "cancelled")]
    assert [row.finish for row in generation.states] == ["length", "cancelled", "stop_string"]


def test_a_row_that_ended_cannot_be_cancelled() -> None:
    generation = plain_generation([Request(((1,),), max_new_tokens=1)])
    assert [event.finish for event in generation] == ["length"]
    generation.cancel(0)
    assert generation.states[0].finish == "length"


def test_all_rows_cancelled_ends_the_generation() -> None:
    generation = plain_generation([Request(((1,),)), Request(((2,),))])
    for event in generation:
        if event.id is not None:
            generation.cancel(event.request)
    assert [row.finish for row in generation.states] == ["cancelled"] * 2
    assert [len(row.answer) for row in generation.states] == [1, 1]


def test_a_generation_closed_early_leaves_the_caches_whole() -> None:
    generation = plain_generation([Request(((1, 2),))])
    events = iter(generation)
    first = [next(events) for _ in range(3)]
    events.close()  # type: ignore[attr-defined]
    assert generation.lockstep.length(0, 0) == 4  # the last token was not read yet
    again = plain_generation([Request(((1, 2),), max_new_tokens=6)])
    whole = [event.id for event in again]
    assert [event.id for event in first] == whole[:3]
    rest = Generation(generation.lockstep, Plain(), [Request(((first[-1].id,),), max_new_tokens=3)])
    assert [event.id for event in rest] == whole[3:]


def test_end_tokens_are_part_of_the_answer() -> None:
    free = [event.id for event in plain_generation([Request(((5,),), max_new_tokens=6)])]
    eos = frozenset({free[2], 66})
    found = list(plain_generation([Request(((5,),), max_new_tokens=6)], eos))
    stop = free.index(free[2])
    assert [event.id for event in found] == free[: stop + 1]
    assert [event.finish for event in found] == [None] * stop + ["stop"]


@pytest.mark.parametrize("length", [1, 9, 16])
def test_the_context_ends_an_answer(length: int) -> None:
    """16 positions: the token after the last one can still be told, and is not read."""
    found = list(plain_generation([Request(((1,) * length,))]))
    assert len(found) == 16 - length + 1
    assert [event.finish for event in found] == [None] * (16 - length) + ["context"]


def test_the_context_of_either_stream_ends_an_answer() -> None:
    base = random_model(tiny_config(max_positions=16), 1)
    request = Request(((1,), (1, 2, 3, 4)))
    assert len(run([Stream(base)] * 2, SGDS(0.5), [request])[0].ids) == 16 - 4 + 1


def test_rows_of_a_full_context_do_not_stop_the_others() -> None:
    requests = [Request(((1,) * 16,)), Request(((2,) * 10,), max_new_tokens=3)]
    generation = plain_generation(requests)
    list(generation)
    assert [row.finish for row in generation.states] == ["context", "length"]


# ---- what cannot be answered -------------------------------------------------------------------


def test_prompts_that_cannot_be_fed() -> None:
    for prompt, message in (((), "empty"), ((1,) * 17, "17 tokens; .* 16")):
        with pytest.raises(PromptError, match=message):
            next(iter(plain_generation([Request(((1,),)), Request((prompt,))])))


def test_a_stream_reads_every_row_or_none() -> None:
    """Its log-probabilities of a row that it never read would count as certainty."""
    model = random_model(tiny_config())
    requests = [Request(((1, 2), (1, 2))), Request(((1, 2), ()))]
    lockstep = Lockstep([Stream(model), Stream(model)], 2)
    with pytest.raises(PromptError, match="stream 1 has a prompt in some requests of the batch"):
        Generation(lockstep, SGDS(0.5), requests)


def test_broken_weights_stop_the_answer() -> None:
    broken = Llama(tiny_config())
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(0.1)
        broken.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        run([Stream(broken)], Plain(), [Request(((1, 2),), max_new_tokens=3)])
    good: Rule = SGDS(0.5)
    fine = random_model(tiny_config())
    with pytest.raises(NonFiniteError):  # in the expert alone
        run([Stream(fine), Stream(broken)], good, [Request(((1,), (1,)), max_new_tokens=3)])
