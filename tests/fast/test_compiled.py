"""The compiled decoding step is the eager one, for all that it takes; the rest it leaves alone.

Tolerances: float32 1e-4, as between any two orders of summation. bf16: the graph keeps sums in
float32 that the eager step rounds, so a tenth of the logits' spread, as in test_prepare.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from minisafe.engine import Generation, Request
from minisafe.errors import SettingError
from minisafe.fast.compiled import Graphs, check_compile, compile_step
from minisafe.fast.prepare import prepare, quicken
from minisafe.guidance import SGDS
from minisafe.lockstep import Lockstep, Stream
from minisafe.lora import AdaptedRows, LoraAdapter
from minisafe.model import Llama
from minisafe.session import load as loading
from minisafe.slots import Add, Patch, Slot
from minisafe.step import Step
from minisafe.vectors import Steering
from tests.support.tiny import (
    EVERY_FEATURE,
    TOLERANCE,
    cache_for,
    random_adapter,
    random_ids,
    random_model,
    tiny_config,
)

CONFIG = EVERY_FEATURE
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler"
)


BF16 = pytest.param(torch.bfloat16, marks=pytest.mark.slow)  # a second compilation


@pytest.fixture(scope="module", params=[torch.float32, BF16], ids=["float32", "bf16"])
def pair(request: pytest.FixtureRequest) -> tuple[Llama, Llama, LoraAdapter]:
    """An eager model, a compiled one of the same weights, and an adapter of both."""
    eager = random_model(CONFIG, 5, request.param)
    adapter = random_adapter(eager)
    return eager, compile_step(copy.deepcopy(eager), (adapter,), rows=2), adapter


def logits_of(
    model: Llama, starts: Sequence[int], slots: Sequence[Slot] = (),
    adapters: tuple[AdaptedRows, ...] = (), width: int = 1,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Logits of one more block, and the cache's keys, for rows that hold `starts` tokens."""
    rows = len(starts)
    with torch.inference_mode():
        cache = cache_for(model, rows, max(starts) + width + 3)
        ids = random_ids(model, rows, max(starts) + width, seed=1)
        model(ids[:, : max(starts)], cache, counts=starts)
        block = ids[:, max(starts) :]
        return model(block, cache, slots=slots, adapters=adapters), cache.keys


def spied(model: Llama, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every step that the compiled graph runs."""
    seen: list[int] = []
    run = Graphs.__call__

    def spy(self: Graphs, ids: Tensor, step: Step) -> Tensor:
        seen.append(len(ids))
        return run(self, ids, step)

    monkeypatch.setattr(Graphs, "__call__", spy)
    return seen


def assert_same(
    model: Llama, found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]
) -> None:
    for one, other in zip(found, expected, strict=True):
        spread = float(other.float().std())
        limit = TOLERANCE if model.dtype == torch.float32 else 0.1 * spread
        assert (one.float() - other.float()).abs().max() <= limit


VECTOR = torch.linspace(-2, 2, CONFIG.hidden)
CASES = {
    "even rows": ((9, 9), (), False),
    "more tokens, another capacity": ((30, 30), (), False),
    "uneven rows": ((9, 3), (), False),
    "four rows, an adapter on two": ((6, 6, 2, 6), (), True),
    "a vector twice, at two layers": (
        (7, 7),
        (Add(0, rows=(0,), vector=VECTOR), Add(1, rows=(0, 1), vector=VECTOR, scale=0.5),
         Add(1, rows=(1,), vector=-VECTOR)),
        True,
    ),
}  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_eager_step(
    pair: tuple[Llama, Llama, LoraAdapter], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager, compiled, adapter = pair
    starts, slots, adapted = CASES[case]
    applied = (AdaptedRows(adapter, slice(1, 3)),) if adapted else ()
    expected = logits_of(eager, starts, slots, applied)
    seen = spied(compiled, monkeypatch)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert_same(eager, logits_of(compiled, starts, slots, applied), expected)
    assert seen == [len(starts)]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs  # no new one
    plain = logits_of(eager, starts)
    if slots or adapted:  # what the case is about is visible
        assert (plain[0] - expected[0]).abs().max() > 0.2


@needs_compiler
def test_what_it_cannot_express_runs_as_before(
    pair: tuple[Llama, Llama, LoraAdapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    eager, compiled, adapter = pair
    quickened = copy.deepcopy(eager)
    quicken(quickened)  # what a compiled model is without its graph
    seen = spied(compiled, monkeypatch)
    patch = Patch(1, rows=(1,), value=VECTOR)
    other = random_adapter(eager, seed=9)
    for slots, adapters, width, starts in (
        ((patch,), (), 1, (5, 5)),  # a slot of another kind
        ((), (AdaptedRows(other, slice(0, 1)),), 1, (5, 5)),  # an adapter that came later
        ((), (AdaptedRows(adapter, slice(0, 1)),), 3, (5, 5)),  # a block
        ((), (), 1, (5,)),  # one row, where there is a graph for several
    ):
        found = logits_of(compiled, starts, slots, adapters, width)
        expected = logits_of(quickened, starts, slots, adapters, width)
        assert torch.equal(found[0], expected[0])
    with torch.no_grad():  # the graph holds for inference mode alone
        cache = cache_for(compiled, 2)
        compiled(random_ids(compiled, 2, 1), cache)
    assert not seen
    # taken by the graph, each would show: the later adapter is neither none nor the graph's own
    plain, own, later = (
        logits_of(eager, (5, 5), (), tuple(AdaptedRows(each, slice(0, 1)) for each in adapters))[0]
        for adapters in ((), (adapter,), (other,))
    )
    assert (later - plain).abs().max() > 0.2
    assert (later - own).abs().max() > 0.2
    assert (logits_of(eager, (5, 5), (patch,))[0] - plain).abs().max() > 0.2


@needs_compiler
def test_safe_answers_are_the_same(
    pair: tuple[Llama, Llama, LoraAdapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    eager, compiled, adapter = pair
    if eager.dtype != torch.float32:
        pytest.skip("rounding may turn a near tie in bf16")
    seen = spied(compiled, monkeypatch)
    answers = []
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for model in (eager, compiled):
        lockstep = Lockstep((Stream(model), Stream(model, adapter)), rows=2, capacity=8)
        steering = Steering({0: VECTOR}, scale=0.7, positions="last")
        requests = [
            Request((ids, ids), steering.spans([(len(ids), None)]), max_new_tokens=24, index=row)
            for row, ids in enumerate([(3, 1, 4, 1, 5), (9, 2, 6)])
        ]
        events = Generation(lockstep, SGDS(0.5), requests, steering)
        answers.append([(event.request, event.id) for event in events])
    assert answers[0] == answers[1]
    assert len(seen) >= 20
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs  # the cache grew


@needs_compiler
def test_masks_come_and_go_in_one_graph(pair: tuple[Llama, Llama, LoraAdapter]) -> None:
    """Of layers with and without a window, none, some or all need a mask at a step."""
    _, compiled, _ = pair
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for starts in ((2, 2), (9, 9), (9, 5), (2, 1)):
        logits_of(compiled, starts)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize(
    ("device", "weights", "message"),
    [("cuda", "auto", "compile needs the CPU"), ("cpu", "int8", "weights is 'int8'")],
)
def test_what_does_not_go_together(device: str, weights: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        check_compile(device, weights)


def test_no_compiler_is_said_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(loading, "load_model", lambda *given: pytest.fail("loaded"))
    with pytest.raises(SettingError, match="needs a C\\+\\+ compiler, but 'no-such-compiler'"):
        loading.load(None, {"compile": True})


@needs_compiler
def test_models_that_are_not_compiled() -> None:
    prepared = prepare(copy.deepcopy(random_model(CONFIG)), "packed")
    with pytest.raises(SettingError, match="weights is 'packed'"):
        compile_step(prepared)
    with pytest.raises(SettingError, match="dtype is float16"):
        compile_step(random_model(CONFIG, 5, torch.float16))


@needs_compiler
def test_a_process_with_several_models_compiles_each_once() -> None:
    """Sizes that differ from model to model are no reason to compile a model's graph again."""
    small = tiny_config(hidden=32, intermediate=48, head_dim=8, max_positions=256)
    made = []
    for config in (small, replace(small, intermediate=64, head_dim=16)):
        eager = random_model(config, 3)
        model = compile_step(copy.deepcopy(eager))
        made.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        for length in (3, 4, 20):
            assert_same(eager, logits_of(model, [length]), logits_of(eager, [length]))
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == made[-1]
    assert made[1] == made[0] + 1


@needs_compiler
def test_a_compiler_that_fails_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("\nout of luck\nmore")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    with pytest.raises(SettingError, match=r"compiling failed \(out of luck\)"):
        compile_step(copy.deepcopy(random_model(CONFIG)))
