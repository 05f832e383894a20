"""`check_session`: a sound session keeps all invariants, and each is named where it is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import minisafe.guidance
import minisafe.lockstep
from minisafe.cache import KVCache, Placement
from minisafe.check.drafted import error_needed
from minisafe.check.invariants import INVARIANTS, SHARES, tolerance
from minisafe.check.place import PROMPTS
from minisafe.check.run import Finding, check_session
from minisafe.convert.rounded import directory_source, round_model
from minisafe.errors import NonFiniteError, PromptError, SettingError
from minisafe.fast.draft import Draft
from minisafe.fast.norm import FastNorm
from minisafe.guidance import SGDS, safe_log_probs, safe_scores
from minisafe.lora import AdaptedRows, LoraAdapter
from minisafe.session.load import load_unprepared
from minisafe.slots import Add
from minisafe.tokenizer import TextStream
from tests.support.worlds import World, write_json

pytest_plugins = ["tests.support.world_fixtures"]
NAMES = [each.name for each in INVARIANTS]
TEXTS = ("Hello!", "How do I clean a shelf?")


def check(
    world: World, breaks: Callable[[], None] = lambda: None, **changes: Any
) -> dict[str, Finding]:
    session = load_unprepared(None, world.flags(**({"weights": "plain"} | changes)))
    breaks()
    findings = check_session(session, TEXTS, True, n_tokens=6)
    assert [each.invariant.name for each in findings] == NAMES
    return {each.invariant.name: each for each in findings}


def names(findings: dict[str, Finding], holds: bool | None) -> set[str]:
    return {name for name, each in findings.items() if each.holds is holds}


# ---- sound sessions ----------------------------------------------------------------------------


def test_a_sound_session_keeps_all(world: World) -> None:
    found = check(world, weights="packed")
    assert names(found, True) == set(NAMES)
    assert found["cached = uncached"].deviation > 0  # something was measured
    assert found["fused rows = separate forwards"].where == "all streams"
    assert found["zero steering = none"].deviation == found["zero steering = none"].tolerance == 0


@pytest.mark.parametrize(
    ("changes", "idle"),
    [
        ({}, {"fast = plain": "the weights are plain"}),
        ({"weights": "int8"}, {}),
        ({"weights": "int8", "dtype": "bfloat16", "cache_dtype": "int8"}, {}),
        ({"expert": None, "expert_system": "Be rude.", "weights": "auto"}, {}),
        ({"sa_positions": "all", "vector": None, "sa_scale": 0.0},
         {"fast = plain": "the weights are plain"}),
        ({"rule": "dexperts", "expert_kind": "safe", "anti_system": "Be rude."},
         {"fast = plain": "the weights are plain", "speculation = plain": "its rule is not sgds"}),
        ({"rule": "safedecoding", "expert_kind": "safe"},
         {"fast = plain": "the weights are plain", "speculation = plain": "its rule is not sgds",
          "lambda 0 = base": "safedecoding keeps only tokens that both models like",
          "expert = base gives base": "its rule changes the base even then"}),
        ({"rule": "anchored", "anchor_system": "Be kind."},
         {"fast = plain": "the weights are plain"}),
    ],
    ids=["plain", "int8", "bf16 and int8 cache", "system prompt", "no vector", "dexperts",
         "safedecoding", "anchored"],
)  # fmt: skip
def test_other_sessions(world: World, changes: dict[str, Any], idle: dict[str, str]) -> None:
    found = check(world, **changes)
    assert names(found, False) == set()
    assert {name: found[name].why_not for name in names(found, None)} == idle


def test_two_models(world: World) -> None:
    found = check(world, expert=world.expert, speculate=3)
    assert names(found, False) == set()
    assert found["fused rows = separate forwards"].why_not == "no two streams share weights"
    assert found["speculation = plain"].holds


def test_a_base_alone_without_its_template(world: World) -> None:
    session = load_unprepared(None, {"base": world.base, "weights": "plain"})
    found = {each.invariant.name: each for each in check_session(session, TEXTS[:1], False, 6)}
    assert names(found, True) == {
        "cached = uncached", "zero steering = none", "streaming = whole text",
    }  # fmt: skip
    assert found["batch row = alone"].why_not == "there is one prompt"
    assert found["fused rows = separate forwards"].why_not == "there is one stream"
    assert found["lambda 0 = base"].why_not == "there is no expert"


def test_it_leaves_the_session_prepared_and_says_how_far_it_is(world: World) -> None:
    session = load_unprepared(None, world.flags(weights="int8"))
    told: list[tuple[int, int]] = []
    check_session(session, TEXTS, True, 4, lambda _, done, total: told.append((done, total)))
    assert session.model.weights == "int8"
    done, totals = zip(*told, strict=True)
    assert list(done) == list(range(len(done)))
    assert set(totals) == {len(done)}


def test_what_cannot_be_checked(world: World) -> None:
    session = load_unprepared(None, {"base": world.base})
    with pytest.raises(SettingError, match="tokens is 0; expected 1 or more"):
        check_session(session, TEXTS, True, 0)
    with pytest.raises(PromptError, match="no prompts"):
        check_session(session, [], True)
    with pytest.raises(PromptError, match=r"make 551; the model's context holds 512"):
        check_session(session, ["a" * 400], False, 150)


# ---- each invariant broken ---------------------------------------------------------------------

Breaks = Callable[[pytest.MonkeyPatch], None]


def forget_the_first_column(patch: pytest.MonkeyPatch) -> None:
    """A decoding step no longer sees the text's first token."""
    write = KVCache.write

    def broken(self: KVCache, layer: int, k: Tensor, v: Tensor, place: Placement) -> Any:
        keys, values = write(self, layer, k, v, place)
        if place.width == 1:
            keys = keys.clone()
            keys[:, :, 0] = 0
        return keys, values

    patch.setattr(KVCache, "write", broken)


def mix_rows(patch: pytest.MonkeyPatch) -> None:
    """A batch's rows take a little from each other."""
    log_probs_of = minisafe.lockstep.log_probs_of
    patch.setattr(
        minisafe.lockstep, "log_probs_of", lambda x: log_probs_of(0.9 * x + 0.1 * x.roll(1, 0))
    )


def adapt_the_base(patch: pytest.MonkeyPatch) -> None:
    """In a fused forward, the expert's delta acts on the base's rows, too."""

    def broken(adapter: LoraAdapter, rows: slice) -> AdaptedRows:
        return AdaptedRows(adapter, slice(0, rows.stop))

    patch.setattr(minisafe.lockstep, "AdaptedRows", broken)


def add_too_much(patch: pytest.MonkeyPatch) -> None:
    apply = Add.apply

    def broken(self: Add, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        more = replace(self, vector=self.scale * self.vector + 1e-3, scale=1.0)
        return apply(more, x, rows, columns)

    patch.setattr(Add, "apply", broken)


def never_off(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        minisafe.guidance, "safe_log_probs",
        lambda lb, lu, lam, *rest: safe_log_probs(lb, lu, max(lam, 0.1), *rest),
    )  # fmt: skip


def lower_one(patch: pytest.MonkeyPatch) -> None:
    """One token is lowered whatever the expert says."""

    def broken(*given: Any) -> Tensor:
        scores = safe_scores(*given).clone()
        scores[..., 0] -= 0.1
        return scores

    patch.setattr(minisafe.guidance, "safe_scores", broken)


def lose_characters(patch: pytest.MonkeyPatch) -> None:
    emit = TextStream._emit
    patch.setattr(TextStream, "_emit", lambda self, text: emit(self, text)[1:])


def take_the_neighbour(patch: pytest.MonkeyPatch) -> None:
    """The token beside the right one is put in the place of a draft."""
    verify = Draft.verify
    patch.setattr(Draft, "verify", lambda self, place, target: verify(self, place, target) ^ 1)


def stretch_norms(patch: pytest.MonkeyPatch) -> None:
    forward = FastNorm.forward
    patch.setattr(FastNorm, "forward", lambda self, x: 1.01 * forward(self, x))


@pytest.mark.parametrize(
    ("breaks", "broken"),
    [
        (forget_the_first_column, {"cached = uncached"}),
        (mix_rows, {"batch row = alone", "fused rows = separate forwards"}),
        (adapt_the_base, {"fused rows = separate forwards"}),
        (add_too_much, {"zero steering = none"}),
        (never_off, {"lambda 0 = base"}),
        (lower_one, {"expert = base gives base"}),
        (lose_characters, {"streaming = whole text"}),
        (take_the_neighbour, {"speculation = plain"}),
        (stretch_norms, {"fast = plain"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_broken_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch, breaks: Breaks, broken: set[str]
) -> None:
    weights = "packed" if breaks is stretch_norms else "plain"
    found = check(world, lambda: breaks(monkeypatch), weights=weights)
    assert names(found, False) == broken
    for name in broken:
        assert found[name].deviation > found[name].tolerance
        assert found[name].where


def test_logits_that_are_not_finite_are_a_deviation(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where only one way of reading breaks down, it is named, and the rest is still measured."""
    forward = FastNorm.forward
    monkeypatch.setattr(FastNorm, "forward", lambda self, x: forward(self, x) * float("nan"))
    session = load_unprepared(None, world.flags(weights="packed"))
    try:
        found = {each.invariant.name: each for each in check_session(session, TEXTS, True, 4)}
    except NonFiniteError:
        pytest.fail("the check itself broke down")
    assert found["fast = plain"].deviation == float("inf")
    assert json.loads(json.dumps(found["fast = plain"].to_json()))["deviation"] is None
    assert found["fast = plain"].holds is False


# ---- tolerances, and drafts that nearly agree ---------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_tolerance_is_that_of_the_numbers_in_play(world: World, dtype: str) -> None:
    found = check(world, dtype=dtype)["cached = uncached"]
    like = tolerance(torch.tensor([[-1.0, 1.0]]), SHARES[dtype])
    assert 0.5 * like < found.tolerance < 20 * like


@pytest.mark.parametrize("gap", [0.001, 0.5])
def test_the_error_that_explains_another_token(gap: float) -> None:
    """Two tokens that the expert likes less: half of their distance on each."""
    lb = torch.log_softmax(torch.tensor([2.0 + gap, 2.0, 0.0]), -1)
    lu = lb - torch.tensor([9.0, 9.0, -0.1])
    assert error_needed(SGDS(0.99), lb, lu, 0, 1) == pytest.approx(gap / 2, abs=1e-4)
    # a token that the expert likes more by a nat: half of that on either side
    lu = lb + torch.tensor([-9.0, 1.0, -9.0])
    assert error_needed(SGDS(0.99), lb, lu, 0, 1) == pytest.approx((99 + gap) / 200, abs=1e-4)


def test_prompts_are_mild_and_differ_in_length() -> None:
    assert len({len(each.split()) for each in PROMPTS}) == len(PROMPTS) > 2


def test_a_profile(world: World, tmp_path: Path) -> None:
    """As `minisafe check PROFILE` loads it, with a greedy answer or a drawn one."""
    flags = {name: str(value) for name, value in world.flags().items()}
    path = write_json(
        tmp_path / "p.json", {"minisafe_profile": 1, "temperature": 0.9, "stop": ["e"], **flags}
    )
    findings = check_session(load_unprepared(path), TEXTS, True, 6)
    assert all(each.holds is not False for each in findings)


def test_weights_that_were_read_rounded(world: World, tmp_path: Path) -> None:
    """There are no plain ones to hold them against; all else is measured."""
    source = directory_source(world.base)
    round_model(source, tmp_path / "int8", "int8", 0, None, lambda done, total: None)
    found = check(world, base=tmp_path / "int8", weights="auto")
    assert found["fast = plain"].why_not == "weights were read rounded"
    assert found["cached = uncached"].deviation is not None
