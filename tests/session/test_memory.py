"""Memory that is planned before a model is read, and settings that keep below a limit."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import minisafe
from minisafe.errors import PromptError, SettingError
from minisafe.files.sizes import parse_size, size_words
from minisafe.lockstep import Lockstep
from minisafe.session import beginnings, memory
from minisafe.session.asked import gather
from minisafe.session.memory import fitted, plan_of, smaller
from minisafe.session.settings import Settings
from tests.support.worlds import World

pytest_plugins = ["tests.support.world_fixtures"]
ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "weights" / "tiny"

MEASURE = """
import json, sys
from pathlib import Path
import minisafe

def peak():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024

session = minisafe.load(sys.argv[1], json.loads(sys.argv[2]))
ids = session.tokenizer.encode("How do I wash a table in a quiet town? " * 400)
whole, most, half = (
    session.tokenizer.decode(ids[: session.limit - n]) for n in (8, 80, session.limit // 2)
)
session.generate([whole, "Hello"])
chat = session.chat()
"".join(chat.send(most))
chat.reset()
"".join(chat.send("Hello"))
"".join(chat.send(half))
print(json.dumps([session.limit, session.settings.cache_dtype, peak()]))
"""


# ---- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1, 1), ("900MB", 900_000_000), ("900 mb", 900_000_000), ("1.5GiB", 3 * 2**29),
        ("2G", 2_000_000_000), ("512k", 512_000), ("64Ki", 65536), ("7", 7), (" 3 B ", 3),
    ],
)  # fmt: skip
def test_sizes(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1TB", "1e9", "0", 0, -3, "1,5G", "٣MB", "0.1"])
def test_what_is_no_size(world: World, text: int | str) -> None:
    with pytest.raises(SettingError, match=r"memory_limit is .*; expected a size such as 900MB"):
        minisafe.load(None, world.flags(memory_limit=text))


@given(st.integers(1, 10**15 - 1))
def test_a_number_of_bytes_is_itself(size: int) -> None:
    assert parse_size(size) == parse_size(str(size)) == parse_size(f"{size}B") == size


def test_a_size_in_words() -> None:
    assert size_words(1_234_567_890) == "1,235 MB"


# ---- what is chosen ----------------------------------------------------------------------------


def asked_of(world: World, **changes: Any) -> Settings:
    return gather(None, world.flags(sa_scale=1.5, sgds_lambda=0.9, **changes)).settings


@pytest.fixture
def nothing_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that holds nothing: a limit is then for what is planned."""
    monkeypatch.setattr(memory, "resident", lambda: 0)
    monkeypatch.setattr(memory, "TOKENIZER", 0)
    monkeypatch.setattr(memory, "STEP", 16)


def most_that_fits(settings: Settings, room: int, most: int, step: int) -> int:
    """The same as `longest`, one context after another."""
    fits = [
        n
        for n in {most, *range(step, most, step)}
        if plan_of(replace(settings, context=n)).memory.total * memory.SPARE < room + 1
    ]
    return max(fits, default=0)  # fmt: skip


@pytest.mark.usefixtures("nothing_yet")
@pytest.mark.parametrize("usual", [64, 200, 2048])
@pytest.mark.parametrize("share", [0.90, 0.96, 0.98, 0.99, 0.999, 1.0, 2.0])
def test_the_first_settings_that_fit_are_chosen(
    world: World, monkeypatch: pytest.MonkeyPatch, share: float, usual: int
) -> None:
    """Against a search through every form and every context, one after another."""
    monkeypatch.setattr(memory, "USUAL", usual)
    monkeypatch.setattr(memory, "LEAST", 32)
    settings = asked_of(world)
    limit = int(plan_of(settings).memory.total * memory.SPARE * share) + 1
    settings = replace(settings, memory_limit=limit)
    expected = None
    for form in smaller(settings):
        found = most_that_fits(form, limit, 512, 16)
        if found >= min(usual, 512):
            expected = replace(form, context=found)
            break
    else:
        if found >= 32:
            expected = replace(form, context=found)
    if expected is None:
        with pytest.raises(SettingError, match=r"memory_limit is .* but 32 tokens need about"):
            fitted(settings)
    else:
        assert fitted(settings) == expected


@pytest.mark.usefixtures("nothing_yet")
def test_what_is_set_is_not_changed(world: World) -> None:
    settings = asked_of(world, cache_dtype="bfloat16", weights="plain", context=300)
    whole = int(plan_of(settings).memory.total * memory.SPARE) + 1
    assert fitted(replace(settings, memory_limit=whole)) == replace(settings, memory_limit=whole)
    with pytest.raises(SettingError, match="but 300 tokens need about"):
        fitted(replace(settings, memory_limit=whole - 2))


def test_smaller_caches_come_after_exact_ones(world: World) -> None:
    forms = [each.cache_dtype for each in smaller(asked_of(world))]
    assert forms == ["auto", "bfloat16", "int8"]
    assert [each.cache_dtype for each in smaller(asked_of(world, cache_dtype="int8"))] == ["int8"]
    totals = [plan_of(each).memory.total for each in smaller(asked_of(world))]
    assert totals == sorted(totals, reverse=True)


def test_without_a_limit_nothing_changes(world: World) -> None:
    settings = asked_of(world)
    assert fitted(settings) is settings


def test_what_a_limit_is_not_for(world: World) -> None:
    with pytest.raises(SettingError, match="memory_limit is for a CPU, not cuda"):
        fitted(asked_of(world, memory_limit="1GB", device="cuda"))
    session = minisafe.load(None, world.flags())
    with pytest.raises(SettingError, match="memory_limit is for a load of its own"):
        minisafe.load(None, world.flags(memory_limit="1GB"), beside=session)
    with pytest.raises(SettingError, match="a compiled step is not planned"):
        fitted(asked_of(world, memory_limit="1GB", compile=True))


# ---- what holds it -----------------------------------------------------------------------------


def test_no_text_is_longer_than_the_context(world: World) -> None:
    session = minisafe.load(None, world.flags(context=24, max_new_tokens=100))
    assert session.limit == 24
    with pytest.raises(PromptError, match="the model's context holds 24"):
        session.generate(["The fox runs home. " * 20])
    result = session.generate(["The fox"])[0]
    if result.finish_reason == "context":
        assert result.prompt_tokens + len(result.tokens) == 25  # the last one is not read
    chat = minisafe.load(None, world.flags(context=48, max_new_tokens=100)).chat()
    "".join(chat.send("Hi"))
    assert chat.lockstep.limit == 48
    assert all(group.cache.capacity <= 48 for group in chat.lockstep.groups)


def test_the_context_of_the_model_holds_beside_it(world: World) -> None:
    assert minisafe.load(None, world.flags(context=10**6)).limit == 512


def test_under_a_limit_one_prompt_is_answered_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = minisafe.load(None, world.flags(memory_limit="8GB", max_new_tokens=4))
    free = minisafe.load(None, world.flags(max_new_tokens=4))
    rows: list[int] = []
    made = Lockstep.__init__

    def counting(self: Lockstep, streams: Any, n: int = 1, *a: Any, **k: Any) -> None:
        rows.append(n)
        made(self, streams, n, *a, **k)

    monkeypatch.setattr(Lockstep, "__init__", counting)
    texts = ["The fox", "Hello there", "The river"]
    found = session.generate(texts, batch_size=3)
    assert rows == [1, 1, 1]
    assert [each.tokens for each in found] == [each.tokens for each in free.generate(texts)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(("more", "fits"), [(45, False), (95, True), (160, True)])
def test_a_process_stays_below_its_limit(more: int, fits: bool) -> None:
    """A prompt of the whole context, a chat, and parts read alone, in a fresh process. The limit is
    what the libraries take, and `more` MB."""
    code = "import minisafe, torch; from minisafe.session import memory; print(memory.resident())"
    own = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                             check=True, cwd=ROOT).stdout)  # fmt: skip
    limit = own + more * 10**6
    asked = json.dumps({"memory_limit": limit, "max_new_tokens": 4, "threads": 1})
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(SHIPPED), asked], capture_output=True, text=True,
        cwd=ROOT, check=False,
    )  # fmt: skip
    assert ("memory_limit is" in run.stderr) is not fits
    if not fits:
        return
    assert run.returncode == 0, run.stderr
    context, _, peak = json.loads(run.stdout)
    assert memory.LEAST <= context <= 2048
    assert peak <= limit


def test_a_chat_under_a_limit_holds_no_more_caches_than_planned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Caches alive at once, in tokens: those of the context, and one batch of parts."""
    session = minisafe.load(SHIPPED, {"memory_limit": "8GB", "context": 512, "max_new_tokens": 4})
    monkeypatch.setattr(beginnings, "PADDED", 64)
    monkeypatch.setattr(beginnings, "TOGETHER", 2)
    alive: weakref.WeakSet[Lockstep] = weakref.WeakSet()
    held: list[int] = []
    made = Lockstep.__init__

    def counting(self: Lockstep, *args: Any, **more: Any) -> None:
        made(self, *args, **more)
        alive.add(self)
        assert self.rows <= 2
        held.append(sum(each.rows * each.groups[0].cache.capacity for each in alive))

    monkeypatch.setattr(Lockstep, "__init__", counting)
    long = "How do I wash a table in a quiet town? " * 20
    chat = session.chat()
    for message in ("Hello", long, "Hello again"):
        "".join(chat.send(message))
        assert chat.messages[-2]["content"] == message
    chat.reset()
    "".join(chat.send(long))
    assert len(held) >= 8
    assert 512 <= max(held) <= 512 + 64
    del chat
    held.clear()
    session.generate(["Hello", long, "Hello"], batch_size=32)
    assert max(held) <= 512 + 64


def test_a_chat_without_a_limit_keeps_its_cache_before_a_long_message() -> None:
    chat = minisafe.load(SHIPPED, {"max_new_tokens": 4}).chat()
    "".join(chat.send("Hello"))
    before = chat.lockstep
    "".join(chat.send("How do I wash a table in a quiet town? " * 10))
    assert chat.lockstep is before
    assert chat.reused > 0


@pytest.mark.parametrize(("day", "settings"), [("2026-11-22", 20), ("2026-11-23", 22)])
def test_what_a_limit_reckons_with_is_above_every_measured_peak(
    monkeypatch: pytest.MonkeyPatch, day: str, settings: int
) -> None:
    """The rows of `python bench/limits.py --part plan --context 600`."""
    file = ROOT / "bench" / "results" / f"{day}-plan.json"
    rows = {each["name"]: each["value"] for each in json.loads(file.read_text("utf-8"))["rows"]}
    planned = {name: rows[name] for name in rows if name.endswith("planned peak")}
    assert len(planned) == settings
    for name, mib in planned.items():
        weights = "int4" if "int4" in name else "stored"
        plan = SimpleNamespace(weights=weights, memory=SimpleNamespace(total=mib * 2**20))
        monkeypatch.setattr(memory, "plan_of", lambda _, plan=plan: plan)
        measured = rows[name.replace("planned", "measured")] * 2**20
        assert measured <= memory.peak(Settings()), name


def test_parts_that_are_read_alone_are_planned(world: World) -> None:
    plain = asked_of(world)
    alone = replace(plain, read_alone=True)
    assert plan_of(plain).memory.alone == 0
    assert plan_of(alone).memory.total > plan_of(plain).memory.total
