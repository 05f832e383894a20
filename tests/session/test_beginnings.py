"""How answers begin is the same whether prompts are read together or one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import minisafe
from minisafe.lockstep import Lockstep
from minisafe.probe import Probe
from minisafe.session.beginnings import PADDED, batches, beginnings, first_steered, harm
from minisafe.session.shared import WORTH, shared
from tests.support.tiny import TOLERANCE
from tests.support.worlds import World

pytest_plugins = ["tests.support.world_fixtures"]
SYSTEM = "Once upon a time the quiet river told a long story."  # the head that all prompts share
TEXTS = ("The fox", "What is the name of the river?", "Hello there", "The fox runs home")
SETTINGS = (
    {},
    {"sa_positions": "all"},  # the shared part is steered, so it is not read apart
    {"expert_system": "Be rude."},  # its prompts begin otherwise than the base's
    {"anchor_system": "Be kind. " * 3, "rule": "anchored", "sa_streams": "both"},
)


def first_tokens(session: minisafe.Session, size: int) -> torch.Tensor:
    found: dict[int, torch.Tensor] = {}
    for numbers, first in beginnings(session, TEXTS, batch_size=size):
        found |= dict(zip(numbers, first, strict=True))
    return torch.stack([found[n] for n in range(len(TEXTS))])


@pytest.mark.parametrize("changes", SETTINGS)
def test_a_shared_head_changes_no_log_probability(world: World, changes: dict[str, Any]) -> None:
    given = {"system": SYSTEM, "sgds_lambda": 0.9, "sa_scale": 1.5} | changes
    flags = world.flags(**given)
    if "expert_system" in changes:
        flags.pop("expert", None)
    session = minisafe.load(None, flags)
    one_by_one, together = first_tokens(session, 1), first_tokens(session, len(TEXTS))
    assert one_by_one.shape == together.shape
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=TOLERANCE)


def test_a_shared_head_is_read_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    feed = Lockstep.feed

    def counting(self: Lockstep, tokens: Any, slots: Any = ()) -> Any:
        fed.append(sum(len(ids) for ids in tokens[0]))
        return feed(self, tokens, slots)

    monkeypatch.setattr(Lockstep, "feed", counting)
    session = minisafe.load(None, world.flags(system=SYSTEM, sgds_lambda=0.9, sa_scale=1.5))
    requests = [session.new_request(session.encode_prompt(text, True)) for text in TEXTS]
    prompts = [request.prompts[0] for request in requests]
    common = shared(prompts)
    assert common >= WORTH
    first_tokens(session, len(TEXTS))
    assert fed[-2:] == [common, sum(map(len, prompts)) - common * len(prompts)]


def test_the_first_steered_token_is_that_of_each_stream(world: World) -> None:
    flags = world.flags(system=SYSTEM, sgds_lambda=0.9, sa_scale=1.5, expert_system="Be rude.")
    flags.pop("expert", None)
    session = minisafe.load(None, flags)
    requests = [session.new_request(session.encode_prompt(text, True)) for text in TEXTS]
    base, expert = first_steered(requests)
    lengths = [[len(ids) for ids in request.prompts] for request in requests]
    assert base == min(own[0] for own in lengths) - 1
    assert expert == base + min(own[1] - own[0] for own in lengths)


def test_each_text_keeps_its_own_variation_whatever_their_lengths(world: World) -> None:
    session = minisafe.load(None, world.flags(sgds_lambda=0.9, sa_scale=1.5))
    texts = sorted(TEXTS, key=len, reverse=True)
    wanted = [session.variations([text])[0] for text in texts]
    assert session.variations(texts, batch_size=2) == pytest.approx(wanted, abs=TOLERANCE)
    assert len(set(wanted)) == len(texts)


def test_each_text_keeps_its_own_harm_whatever_their_lengths(world: World) -> None:
    session = minisafe.load(None, world.flags(sgds_lambda=0.9, sa_scale=1.5))
    (size,) = {first.shape[1:] for _, first in beginnings(session, TEXTS)}
    weight = torch.randn(size, generator=torch.Generator().manual_seed(0))
    session = replace(session, probe=Probe(weight, torch.zeros(1)))
    texts = sorted(TEXTS, key=len, reverse=True)
    wanted = [harm(session, [text])[0] for text in texts]
    assert harm(session, texts) == pytest.approx(wanted, abs=TOLERANCE)
    assert len(set(wanted)) == len(texts)


@given(st.lists(st.integers(1, 3000), max_size=40), st.integers(1, 12))
def test_batches_hold_every_text_once_and_little_padding(lengths: list[int], most: int) -> None:
    found = list(batches(lengths, most))
    assert sorted(number for batch in found for number in batch) == list(range(len(lengths)))
    for batch in found:
        assert 1 <= len(batch) <= most
        assert len(batch) == 1 or len(batch) * max(lengths[n] for n in batch) <= PADDED


def test_a_long_message_is_read_in_a_batch_of_its_own(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms: list[tuple[int, int]] = []
    made = Lockstep.__init__

    def counting(self: Lockstep, streams: Any, rows: int, capacity: int, *a: Any, **k: Any) -> None:
        rooms.append((rows, capacity))
        made(self, streams, rows, capacity, *a, **k)

    monkeypatch.setattr(Lockstep, "__init__", counting)
    monkeypatch.setattr("minisafe.session.beginnings.PADDED", 60)
    session = minisafe.load(None, world.flags(sgds_lambda=0.9, sa_scale=0.0))
    texts = [*TEXTS, "The fox runs home. " * 6]
    rooms.clear()  # of the check at load
    list(beginnings(session, texts, batch_size=8))
    assert rooms[-1][0] == 1
    assert sum(rows for rows, _ in rooms) == len(texts)
