"""The step that is compiled ahead of time is the plain model's; what it cannot express runs as
before.

All but the slow tests run the step's own Python code in place of its machine code, so they need no
compiler and take no minute. Tolerance: float32 1e-4, as between any two orders of summation.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minisafe.engine import Generation, Request
from minisafe.fast.ahead import Ahead, AheadLlama, Bare, Joined, Lineup, Steps, joined, weights_of
from minisafe.fast.package import use_package, write_package
from minisafe.fast.prepare import quicken
from minisafe.guidance import SGDS
from minisafe.lockstep import Lockstep, Stream
from minisafe.lora import AdaptedRows
from minisafe.model import Llama
from minisafe.slots import Add, Patch, Slot
from minisafe.vectors import Steering
from tests.support.tiny import (
    EVERY_FEATURE,
    TOLERANCE,
    cache_for,
    random_adapter,
    random_ids,
    random_model,
)

CONFIG = EVERY_FEATURE
ROOT = Path(__file__).resolve().parents[2]
EAGER = random_model(CONFIG, 5)
ADAPTER, ANCHOR = random_adapter(EAGER), random_adapter(EAGER, seed=9)
LINEUPS: tuple[Lineup, ...] = ((None,), (None, ADAPTER), (None, ADAPTER, ANCHOR))
VECTOR = torch.linspace(-2, 2, CONFIG.hidden)
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler"
)


class Python:
    """A step's Python code where its machine code is expected."""

    def __init__(self, step: Ahead):
        self.bare, self.weights, self.calls = Bare(step), list(weights_of(step).values()), 0

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        self.calls += 1
        assert all(each.is_contiguous() for each in inputs)  # machine code takes it for granted
        start, n = len(self.weights), CONFIG.n_layers
        weights, first, held = inputs[:start], inputs[start : start + 6], inputs[start + 6 :]
        return [self.bare(weights, *first, held[:n], held[n:])]


def ahead(lineups: Sequence[Lineup] = LINEUPS) -> tuple[Llama, list[Python]]:
    """A model with steps for these lineups, and what runs them."""
    model = copy.deepcopy(EAGER)
    quicken(model)
    runners = [Python(Ahead(model, lineup)) for lineup in lineups]
    model.__class__ = AheadLlama
    assert isinstance(model, AheadLlama)
    code = [(each, each.weights) for each in runners]
    model.steps = Steps(model, list(zip(lineups, code, strict=True)))
    return model, runners


def logits_of(
    model: Llama, starts: Sequence[int], slots: Sequence[Slot] = (),
    adapters: tuple[AdaptedRows, ...] = (), width: int = 1, capacity: int = 64,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Logits of one more block, and the cache's keys, for rows that hold `starts` tokens."""
    with torch.inference_mode():
        cache = cache_for(model, len(starts), capacity)
        ids = random_ids(model, len(starts), max(starts) + width, seed=1)
        model(ids[:, : max(starts)], cache, counts=starts)
        block = ids[:, max(starts) :]
        return model(block, cache, slots=slots, adapters=adapters), cache.keys


def adapted(rows: int) -> tuple[AdaptedRows, ...]:
    """The adapters of a lineup of this many rows."""
    given = zip(range(1, rows), (ADAPTER, ANCHOR), strict=False)
    return tuple(AdaptedRows(adapter, slice(row, row + 1)) for row, adapter in given)


ADDED = (Add(0, rows=(0,), vector=VECTOR), Add(1, rows=(0,), vector=-VECTOR, scale=0.5))
CASES: dict[str, tuple[tuple[int, ...], tuple[Slot, ...]]] = {
    "the base alone": ((9,), ()),
    "the base alone, steered": ((9,), ADDED),
    "base and expert": ((30, 30), ()),
    "rows of different lengths, steered": ((9, 3), ADDED),
    "with an anchor": ((5, 6, 11), ()),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_eager_step(case: str) -> None:
    starts, slots = CASES[case]
    model, runners = ahead()
    expected = logits_of(EAGER, starts, slots, adapted(len(starts)))
    found = logits_of(model, starts, slots, adapted(len(starts)))
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= TOLERANCE
    assert [each.calls for each in runners] == [len(starts) == rows for rows in (1, 2, 3)]
    if slots or len(starts) > 1:  # what the case is about is visible
        assert (logits_of(EAGER, starts)[0] - expected[0]).abs().max() > 0.2


OTHER = random_adapter(EAGER, seed=11)


@pytest.mark.parametrize(
    ("starts", "slots", "adapters", "width", "capacity"),
    [
        ((5, 5), (Patch(1, rows=(1,), value=VECTOR),), adapted(2), 1, 64),
        ((5, 5), (), (AdaptedRows(OTHER, slice(1, 2)),), 1, 64),
        ((5, 5), (), (AdaptedRows(ADAPTER, slice(0, 1)),), 1, 64),
        ((5,), (), (AdaptedRows(ADAPTER, slice(0, 1)),), 1, 64),
        ((5, 5, 5, 5), (), (), 1, 64),
        ((5, 5), (), adapted(2), 3, 64),
        ((5, 5), (), adapted(2), 1, 6),
    ],
    ids=["another slot", "another adapter", "another row", "the expert alone", "two prompts",
         "a block", "a full cache"],
)  # fmt: skip
def test_what_it_cannot_express_runs_as_before(
    starts: tuple[int, ...], slots: tuple[Slot, ...], adapters: tuple[AdaptedRows, ...],
    width: int, capacity: int,
) -> None:  # fmt: skip
    model, runners = ahead()
    quickened = copy.deepcopy(EAGER)
    quicken(quickened)  # what the model is without its steps
    found = logits_of(model, starts, slots, adapters, width, capacity)[0]
    assert torch.equal(found, logits_of(quickened, starts, slots, adapters, width, capacity)[0])
    assert not any(each.calls for each in runners)


def answers(model: Llama) -> list[tuple[int, int | None]]:
    """A safe, steered greedy answer."""
    lockstep = Lockstep((Stream(model), Stream(model, ADAPTER)), capacity=8)
    steering = Steering({0: VECTOR}, scale=0.7, positions="last")
    ids = (3, 1, 4, 1, 5)
    request = Request((ids, ids), steering.spans([(len(ids), None)]), max_new_tokens=24)
    events = Generation(lockstep, SGDS(0.5), [request], steering)
    return [(event.request, event.id) for event in events]


def test_safe_answers_are_the_same() -> None:
    model, runners = ahead()
    assert answers(model) == answers(EAGER)
    assert runners[1].calls >= 20  # also after the cache has grown


def test_joined_weights_are_the_models_own() -> None:
    attention = copy.deepcopy(EAGER).layers[0].self_attn
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)  # type: ignore[union-attr]
    before = [part.weight.detach().clone() for part in parts]  # type: ignore[union-attr]
    whole = joined(parts)  # type: ignore[arg-type]
    assert torch.equal(whole, torch.cat(before))
    assert joined(parts).data_ptr() == whole.data_ptr()  # type: ignore[arg-type]
    whole += 1
    for part, weight in zip(parts, before, strict=True):
        assert torch.equal(part.weight, weight + 1)  # type: ignore[union-attr]


def test_rows_without_an_adapter_stay_as_they_are() -> None:
    part = copy.deepcopy(EAGER).layers[0].self_attn.q_proj  # type: ignore[union-attr]
    x = torch.randn(3, CONFIG.hidden)
    plain, some = Joined((part,), (None,) * 3)(x, ()), Joined((part,), (None, ADAPTER, None))(x, ())
    assert torch.equal(some[::2], plain[::2])
    assert (some[1] - plain[1]).abs().max() > 0.01


# ---- machine code ------------------------------------------------------------------------------

CODE = """
import json, sys, torch
from pathlib import Path
from minisafe.fast.package import use_package
from tests.fast import test_ahead as here
model = here.copy.deepcopy(here.EAGER)
use_package(Path(sys.argv[1]), (here.Stream(model), here.Stream(model, here.ADAPTER)))
ran, run = [], type(model.steps).run
type(model.steps).run = lambda *given: ran.append(1) or run(*given)
told = {"answers": here.answers(model), "ran": len(ran)}
model.norm.weight.data.zero_()  # machine code reads the model's own weights
told["zero"] = here.logits_of(model, (4,))[0].abs().max().item()
print(json.dumps(told | {"inductor": "torch._inductor.compile_fx" in sys.modules}))
"""


@needs_compiler
@pytest.mark.slow
def test_a_machine_without_a_compiler_runs_it(tmp_path: Path) -> None:
    """An empty PATH, no CXX, no cache; the same tokens, from the model's own weights."""
    model = copy.deepcopy(EAGER)
    write_package((Stream(model), Stream(model, ADAPTER)), tmp_path / "package")
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "package")], cwd=ROOT, check=False,
        capture_output=True, text=True,
        env={"PATH": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [tuple(each) for each in told["answers"]] == answers(EAGER)
    assert told["ran"] >= 20
    assert told["zero"] == 0
    assert not told["inductor"]
    use_package(tmp_path / "package", (Stream(model),))  # the very model that it was made from
    for one, other in zip(logits_of(model, (9,)), logits_of(EAGER, (9,)), strict=True):
        assert (one - other).abs().max() <= TOLERANCE
