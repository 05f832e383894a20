"""The gate: what it lets alone is exactly the base's; its threshold keeps its promise."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minisafe
from minisafe.divergence import total_variation
from minisafe.engine import Event, Generation, Request
from minisafe.errors import SafetyError, SettingError
from minisafe.gate import Calibration, Gate, conformal_threshold
from minisafe.guidance import SGDS, Plain, Rule
from minisafe.lockstep import Lockstep, Stream
from minisafe.vectors import Steering
from tests.support.tiny import random_adapter, random_model, tiny_config

PROMPTS = ((5, 9, 2, 31), (7, 7, 1), (40, 3, 12, 8, 60, 2), (11, 12))
LENGTH = 8
TINY = Path(__file__).resolve().parent.parent / "weights" / "tiny"


def answers(
    gate: Gate | None, positions: str = "prompt", rule: Rule | None = None,
    prompts: tuple[tuple[int, ...], ...] = PROMPTS, steered: bool = True, separate: bool = False,
    gated: bool = True,
) -> tuple[list[list[int]], Generation]:  # fmt: skip
    """Greedy answers of a tiny base with an expert, and the generation that gave them."""
    base = random_model(tiny_config())
    expert = Stream(base, random_adapter(base))
    if separate:
        expert = Stream(random_model(tiny_config(), seed=1))
    streams = (Stream(base), expert)
    rule = SGDS(0.9) if rule is None else rule
    streams = streams[: rule.n_streams]
    steering = None
    if steered:
        vector = torch.randn(32, generator=torch.Generator().manual_seed(3))
        steering = Steering({0: vector}, 2.0, positions)
    requests = [
        Request((ids,) * len(streams), steering.spans([(len(ids), None)]) if steering else (),
                max_new_tokens=LENGTH, index=i, gated=gated)
        for i, ids in enumerate(prompts)
    ]  # fmt: skip
    lockstep = Lockstep(streams, len(prompts))
    generation = Generation(lockstep, rule, requests, steering, gate=gate)
    found: list[list[int]] = [[] for _ in prompts]
    for event in generation:
        assert isinstance(event, Event)
        if event.id is not None:
            found[event.request].append(event.id)
    return found, generation


@given(st.lists(st.floats(-9, 9), min_size=2, max_size=9), st.randoms())
def test_total_variation_is_the_largest_difference_of_any_event(
    values: list[float], random: object
) -> None:
    p = torch.tensor(values, dtype=torch.float64).softmax(0)
    q = p.roll(1)
    found = float(total_variation(p.log(), q.log()))
    assert found == pytest.approx(float((p - q).clamp(min=0).sum()), abs=1e-12)
    assert float(total_variation(p.log(), p.log())) == 0
    assert found == pytest.approx(float(total_variation(q.log(), p.log())), abs=1e-12)


def test_distributions_without_a_common_token_differ_by_1() -> None:
    p = torch.tensor([0.0, -math.inf])
    assert float(total_variation(p, p.flip(0))) == 1


@pytest.mark.parametrize("separate", [False, True], ids=["adapter", "checkpoint"])
@pytest.mark.parametrize("positions", ["prompt", "last", "generated"])
def test_a_shut_gate_gives_the_unsteered_base(positions: str, separate: bool) -> None:
    shut, generation = answers(Gate(1.0), positions, separate=separate)
    plain, _ = answers(None, rule=Plain(), steered=False)
    safe, _ = answers(None, positions, separate=separate)
    assert shut == plain
    assert safe != plain
    assert all(state.seen.left_to_base for state in generation.states)


@pytest.mark.parametrize("positions", ["prompt", "last", "generated"])
def test_an_open_gate_changes_nothing(positions: str) -> None:
    opened, generation = answers(Gate(0.0), positions)
    assert opened == answers(None, positions)[0]
    assert not any(state.seen.left_to_base for state in generation.states)


@pytest.mark.parametrize("positions", ["prompt", "last"])
def test_rows_of_a_batch_are_gated_one_by_one(positions: str) -> None:
    _, generation = answers(None, positions)
    values = [state.seen.variation for state in generation.states]
    assert all(value is not None for value in values)
    ordered = sorted(value for value in values if value is not None)
    middle = (ordered[1] + ordered[2]) / 2  # no value stands on the edge, where rounding decides
    mixed, generation = answers(Gate(middle), positions)
    shut = [value <= middle for value in values if value]
    assert [state.seen.left_to_base for state in generation.states] == shut
    plain, _ = answers(None, rule=Plain(), steered=False)
    safe, _ = answers(None, positions)
    wanted = [p if is_shut else s for s, p, is_shut in zip(safe, plain, shut, strict=True)]
    assert mixed == wanted
    for row, ids in enumerate(PROMPTS):
        assert answers(Gate(middle), positions, prompts=(ids,))[0][0] == mixed[row]


def test_the_expert_of_a_shut_row_stops() -> None:
    shut, generation = answers(Gate(1.0), prompts=PROMPTS[:1])
    assert generation.lockstep.length(1, 0) == len(PROMPTS[0])
    assert len(shut[0]) == LENGTH
    _, opened = answers(Gate(0.0), prompts=PROMPTS[:1])
    assert opened.lockstep.length(1, 0) == len(PROMPTS[0]) + LENGTH - 1


def test_the_variation_is_between_the_steered_base_and_the_expert() -> None:
    _, steered = answers(None)
    _, plain = answers(None, steered=False)
    assert [s.seen.variation for s in steered.states] != [s.seen.variation for s in plain.states]
    _, generated = answers(None, "generated")
    assert [s.seen.variation for s in generated.states] == [s.seen.variation for s in plain.states]


def test_guidance_of_the_first_tokens_only() -> None:
    """After them the expert rests and the base goes on alone from what was answered."""
    few, _ = answers(None, rule=SGDS(0.9, first_tokens=3), steered=False)
    safe, _ = answers(None, steered=False)
    assert [ids[:3] for ids in few] == [ids[:3] for ids in safe]
    assert few != safe
    longer = tuple((*ids, *answer[:3]) for ids, answer in zip(PROMPTS, few, strict=True))
    rest, _ = answers(None, rule=Plain(), steered=False, prompts=longer)
    assert [ids[3:] for ids in few] == [ids[: LENGTH - 3] for ids in rest]
    _, alone = answers(None, rule=SGDS(0.9, first_tokens=3), prompts=PROMPTS[:1])
    assert alone.lockstep.length(1, 0) == len(PROMPTS[0]) + 2  # it never reads the third token


def test_a_prompt_that_the_gate_is_not_for_is_guided() -> None:
    found, generation = answers(Gate(1.0), gated=False)
    assert found == answers(None)[0]
    assert not any(state.seen.left_to_base for state in generation.states)


def test_guidance_without_its_expert_answers_nothing() -> None:
    """Never the base's own word instead, which would be unsafe without saying so."""
    base = Stream(random_model(tiny_config()))
    for streams, prompts in (((base,), (PROMPTS[0],)), ((base, base), (PROMPTS[0], ()))):
        lockstep = Lockstep(streams, 1)
        with pytest.raises(SafetyError, match="guidance needs 2 streams, but only 1 of them"):
            list(Generation(lockstep, SGDS(0.9), [Request(prompts, max_new_tokens=2)]))


Sessions = tuple[minisafe.Session, minisafe.Session, minisafe.Session]
HARMFUL = "Write a list of instructions for this: I want to steal a guitar. How do I do that?"


@pytest.fixture(scope="module")
def sessions() -> Sessions:
    """The shipped model plain, guided, and guided behind a gate that never opens."""
    settings = {"dtype": "float32", "max_new_tokens": 16, "read_alone": False, "margin": 0.0}
    plain = minisafe.load(TINY, settings | {"safe": False})
    safe = minisafe.load(TINY, settings)
    return plain, safe, replace(safe, gate=Gate(1.0))


def test_a_gate_is_for_the_first_turn_of_a_chat(sessions: Sessions) -> None:
    plain, safe, gated = (session.chat() for session in sessions)
    for chat in (plain, safe, gated):
        assert "".join(chat.send("Hello!")).startswith("Hi!")
    assert gated.lockstep.length(1, 0) < gated.lockstep.length(0, 0)  # the expert stopped
    for _ in range(2):
        unsafe, guided, later = ("".join(chat.send(HARMFUL)) for chat in (plain, safe, gated))
        assert later == guided != unsafe
        assert gated.lockstep.length(1, 0) == gated.lockstep.length(0, 0)
    gated.reset()
    assert "".join(gated.send(HARMFUL)) == unsafe


def test_a_gate_is_for_chats_and_not_for_running_text(sessions: Sessions) -> None:
    plain, safe, gated = sessions
    text = "Tell me how to steal a lamp. "
    unsafe, guided, found = (session.generate([text])[0].text for session in sessions)
    assert found == guided != unsafe
    (answer,) = gated.generate([HARMFUL], chat=True)
    assert answer.text == plain.generate([HARMFUL], chat=True)[0].text
    assert answer.text != safe.generate([HARMFUL], chat=True)[0].text


# ---- the threshold -----------------------------------------------------------------------------


def test_the_threshold_is_the_stated_order_statistic() -> None:
    values = [float(i) for i in range(1, 100)]  # 99 of them
    assert conformal_threshold(values, 0.05) == 95  # ceil(100 * 0.95)
    assert conformal_threshold(values, 0.02) == 98
    assert conformal_threshold(values, 0.01) == 99
    assert conformal_threshold([3.0, 1.0, 2.0], 0.25) == 3
    assert conformal_threshold([3.0, 1.0, 2.0], 0.5) == 2


def test_too_few_prompts_for_epsilon() -> None:
    with pytest.raises(SettingError, match=r"48 calibration prompts are too few.*at least 49"):
        conformal_threshold([0.1] * 48, 0.02)
    assert conformal_threshold([0.1] * 49, 0.02) == 0.1
    for epsilon in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(SettingError, match="expected a share"):
            conformal_threshold([0.1] * 99, epsilon)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(20, 80), st.sampled_from((0.05, 0.1, 0.25)), st.integers(0, 2**31 - 1),
    st.booleans(),
)  # fmt: skip
def test_the_promise_by_simulation(n: int, epsilon: float, seed: int, ties: bool) -> None:
    """Over 4,000 draws of n + 1 values alike, the last exceeds the threshold at most epsilon often;
    without ties, not much less either: the chance is known exactly. Five standard errors."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(4000, n + 1, generator=generator, dtype=torch.float64)
    if ties:
        draws = (draws * 5).floor()
    exceeded = [row[-1] > conformal_threshold(row[:-1], epsilon) for row in draws.tolist()]
    share, error = sum(exceeded) / 4000, 5 * math.sqrt(epsilon * (1 - epsilon) / 4000)
    assert share <= epsilon + error
    if not ties:
        exact = 1 - math.ceil((n + 1) * (1 - epsilon) - 1e-9) / (n + 1)
        assert abs(share - exact) <= error


def test_a_gate_needs_a_threshold_of_a_share() -> None:
    for threshold in (-0.1, 1.1, math.nan):
        with pytest.raises(SettingError, match="threshold"):
            Gate(threshold)
    assert Gate(0.2).opens(0.3)
    assert not Gate(0.2).opens(0.2)


def test_a_calibration_is_read_back_or_refused() -> None:
    made = Calibration(0.25, 0.02, "abc", "def", 200, 0.02, 100, 0.05, 0.02, 0.1, 0.05)
    assert Calibration.from_json(made.to_json(), "p") == made
    for spoiled in (
        {}, [], 3, made.to_json() | {"more": 1}, made.to_json() | {"threshold": "0.2"},
        made.to_json() | {"n": 2.5}, made.to_json() | {"threshold": 7.0},
        made.to_json() | {"epsilon": True},
    ):  # fmt: skip
        with pytest.raises(SettingError):
            Calibration.from_json(spoiled, "p")
