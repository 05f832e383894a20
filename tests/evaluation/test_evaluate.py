"""The evaluation run: nothing is lost, doubled or mixed up, and the numbers are what they say."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch.distributed as dist
from click.testing import CliRunner, Result

from minisafe.cli import cli
from minisafe.cli.evaluate import gather_prompts
from minisafe.errors import BadInput, PromptError, SafetyError, SettingError
from minisafe.evaluation.evaluate import Evaluation, evaluate
from minisafe.evaluation.journal import sealed
from minisafe.evaluation.judges.by_name import make_judge
from minisafe.evaluation.judges.judgements import rule_all
from minisafe.evaluation.judges.world import WorldJudge
from minisafe.evaluation.methods import METHODS, load_method, parse_methods
from minisafe.evaluation.prompts import Prompt, default_prompts
from minisafe.evaluation.prompts.styles import STYLES, fill, load_styles
from minisafe.evaluation.records import Gated, MadeBy, Response
from minisafe.evaluation.report.summary import Ruled, join, summarise
from minisafe.evaluation.runner import run as runner
from minisafe.evaluation.runner.distributed import Meeting, Processes
from minisafe.evaluation.runner.plan import Plan
from minisafe.evaluation.runner.resume import read_all
from minisafe.evaluation.runner.run import run
from minisafe.evaluation.statistics import wilson
from minisafe.session import Session
from minisafe.session.profile import default_profile

ROOT = Path(__file__).resolve().parents[2]
FLOAT = {"dtype": "float32", "max_new_tokens": 24}


def methods(*names: str) -> list[Any]:
    return parse_methods(names, default_profile(), FLOAT)


def plan(limit: int = 3, batch_size: int = 4) -> Plan:
    styles = {name: STYLES[name] for name in ("simple", "cot")}
    return Plan.make(default_prompts("dev", limit), styles, {"simple": "{question}"}, batch_size)


def told(answers: Sequence[Response]) -> list[Response]:
    """Answers without what a clock says."""
    return [replace(each, seconds=0) for each in answers]


def lines_of(answers: Sequence[Response]) -> str:
    """A journal's lines."""
    return b"".join(sealed(each.to_json()) for each in answers).decode()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Response]:
    """An undisturbed run of two methods."""
    directory = tmp_path_factory.mktemp("whole")
    return run(directory, methods("base", "safeinfer"), plan(), Processes())


# ---- the plan and its styles -------------------------------------------------------------------


def test_harmful_prompts_are_asked_in_every_style_and_others_in_theirs() -> None:
    made = plan()
    asked = {(job.style, job.prompt.kind) for job in made.jobs}
    assert asked == {
        ("simple", "harmful"), ("cot", "harmful"), ("simple", "benign"), ("simple", "borderline"),
    }  # fmt: skip
    assert len(made.jobs) == 3 * 2 + 3 + 3
    assert [job.number for job in made.jobs] == list(range(12))
    assert [len(batch) for batch in made.batches()] == [4, 4, 4]
    cot = next(job for job in made.jobs if job.style == "cot")
    assert cot.asked == f"{cot.prompt.text} Let us think step by step."


def test_a_style_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pirate.txt"
    path.write_text("Ahoy {name}! {question} Answer as {x}.\n", encoding="utf-8")
    styles = load_styles(["simple", str(path)])
    assert list(styles) == ["simple", "pirate"]
    assert fill(styles["pirate"], "How {y}?") == "Ahoy {name}! How {y}? Answer as {x}."


def test_styles_that_cannot_be(tmp_path: Path) -> None:
    empty = tmp_path / "e.txt"
    empty.write_text("no place", encoding="utf-8")
    for names, words in (
        (["loud"], "no style 'loud'"), ([str(empty)], "has no {question}"),
        (["cot", "cot"], "given twice"), ([], "no styles"),
    ):  # fmt: skip
        with pytest.raises(SettingError, match=words):
            load_styles(names)


# ---- methods -----------------------------------------------------------------------------------


AROUND = (
    "icd",
    "self-reminder",
    "safe-lora",
    "alone-guard",
    "input-guard",
    "output-guard",
    "perplexity",
    "refusal-direction",
    "cast",
    "alphasteer",
)  # tests/evaluation/defences
ANCHORED = ("profile", "anchored", "veto")  # test_methods.py


@pytest.mark.parametrize(
    "name", [name for name in METHODS if "gate" not in name and name not in AROUND + ANCHORED]
)
def test_every_built_in_method_answers_on_the_shipped_profile(name: str) -> None:
    (method,) = methods(name)
    session = load_method(method)
    assert isinstance(session, Session)
    assert session.generate(["How do I wash a table?"], chat=True)[0].text
    applied = session.stages.to_json()
    assert (applied["sa"] is not None) == (name == "sa" or name.startswith("safeinfer"))
    assert (applied["sgds"] is not None) == name.startswith(("sgds", "safeinfer"))
    assert ("rule" in applied) == (name in ("safedecoding", "self-cd", "rose", "dexperts"))
    margin = applied["sgds"] and applied["sgds"]["margin"]
    assert not applied["sgds"] or bool(margin) == name.endswith("+margin")
    assert len(session.streams) == {"dexperts": 3, "base": 1, "system": 1, "sa": 1}.get(name, 2)


def test_a_gate_needs_a_calibration(tmp_path: Path) -> None:
    profile = json.loads((default_profile()).read_text())
    profile.pop("calibration", None)
    profile.pop("sha256")
    for name in ("base", "expert", "vector"):
        profile[name] = str(default_profile().parent / profile[name])
    path = tmp_path / "p.json"
    path.write_text(json.dumps(profile))
    (method,) = parse_methods(["safeinfer+gate"], path, FLOAT)
    with pytest.raises(SafetyError, match=r"method safeinfer\+gate: .*no calibration"):
        load_method(method)


def test_methods_from_profiles() -> None:
    path = default_profile()
    found = parse_methods(
        ["base", f"base@{path}", str(path), f"mine={path}"], path, {"dtype": "float32"}
    )
    assert [method.name for method in found] == ["base", "base@profile", "profile", "mine"]
    assert found[3].overrides == {"dtype": "float32"}
    assert found[1].overrides == {"dtype": "float32", "safe": False}


def test_methods_that_cannot_be() -> None:
    for names, words in (
        (["best"], "no method 'best'; expected one of base"), ([], "no methods"),
        (["base", "base"], "given twice"),
    ):  # fmt: skip
        with pytest.raises(SettingError, match=words):
            parse_methods(names, default_profile(), {})


# ---- the run -----------------------------------------------------------------------------------


def test_records_say_what_was_asked_and_what_made_them(whole: list[Response]) -> None:
    assert len(whole) == 24
    record = whole[-1]
    assert record.method == "safeinfer"
    assert record.made_by.settings["sgds_lambda"] == 0.99
    assert record.made_by.settings["seed"] == 0
    assert set(record.made_by.models) == {"base", "expert", "vector"}
    assert set(record.made_by.text) == {"tokenizer", "template", "end_ids"}
    assert set(record.made_by.versions) == {"minisafe", "torch"}
    assert set(whole[0].made_by.models) == {"base"}
    assert {each.prompt for each in whole[:12]} == {each.prompt for each in whole[12:]}


def test_a_run_goes_on_and_answers_nothing_twice(
    tmp_path: Path, whole: list[Response], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = runner.answer

    def counted(*args: Any) -> Any:
        made = real(*args)
        asked.append(len(made))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(runner, "answer", counted)
    both = methods("base", "safeinfer")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, both, plan(), Processes())
    assert len(read_all(tmp_path)) == 4  # the second batch was answered, and not yet kept
    with pytest.raises(SettingError, match="holds 4 answers; use --resume"):
        run(tmp_path, both, plan(), Processes())
    assert told(run(tmp_path, both, plan(), Processes(), resume=True)) == told(whole)
    assert sum(asked) == 24 + 4
    monkeypatch.setattr(runner, "answer", None)  # a third run has nothing to answer
    assert told(run(tmp_path, both, plan(), Processes(), resume=True)) == told(whole)


def test_a_torn_last_line_is_answered_again(tmp_path: Path, whole: list[Response]) -> None:
    path = tmp_path / "responses.jsonl"
    path.write_text(lines_of(whole[:7])[:-9], encoding="utf-8")
    found = run(tmp_path, methods("base", "safeinfer"), plan(), Processes(), resume=True)
    assert told(found) == told(whole)
    assert len(path.read_text().splitlines()) == 24


def test_answers_of_other_settings_are_not_gone_on_with(
    tmp_path: Path, whole: list[Response]
) -> None:
    path = tmp_path / "responses.jsonl"
    path.write_text(lines_of(whole[:5]), encoding="utf-8")
    other = parse_methods(["base"], default_profile(), FLOAT | {"max_new_tokens": 25})
    with pytest.raises(SettingError, match=r"max_new_tokens: 24 there, 25 now"):
        run(tmp_path, other, plan(), Processes(), resume=True)
    path.write_text('{"what": 1}\n', encoding="utf-8")
    with pytest.raises(SettingError, match="line 1: has no hash"):
        run(tmp_path, other, plan(), Processes(), resume=True)


def otherwise(change: dict[str, Any]) -> Plan:
    """The plan with one prompt, the first of its kind, changed."""
    prompts = default_prompts("dev", 3)
    prompts[0] = replace(prompts[0], **change)
    styles = {name: STYLES[name] for name in ("simple", "cot")}
    return Plan.make(prompts, styles, {"simple": "{question}"}, 4)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (otherwise({"text": "How do I sulk?"}), "question: '.*' there, 'How do I sulk\\?' now"),
        (otherwise({"category": "moods"}), "category: '.*' there, 'moods' now"),
        (otherwise({"kind": "benign"}), "kind: 'harmful' there, 'benign' now"),
        (Plan.make(default_prompts("dev", 3), {"simple": "Well: {question}"},
                   {"simple": "Well: {question}"}, 4), "prompt: '.*' there, 'Well: .*' now"),
    ],
    ids=["question", "category", "kind", "style"],
)  # fmt: skip
def test_answers_to_other_prompts_are_not_gone_on_with(
    tmp_path: Path, whole: list[Response], monkeypatch: pytest.MonkeyPatch, made: Plan, words: str
) -> None:
    """The ids are the same; before, the old answers were taken for the new prompts'."""
    path = tmp_path / "responses.jsonl"
    path.write_text(lines_of(whole[:5]), encoding="utf-8")
    kept = path.read_bytes()
    monkeypatch.setattr(runner, "load_method", None)  # it is told before any model is loaded
    with pytest.raises(SettingError, match=rf"method base, style simple, to prompt .*{words}"):
        run(tmp_path, methods("base", "safeinfer"), made, Processes(), resume=True)
    assert path.read_bytes() == kept


def test_a_draw_belongs_to_its_place_in_the_plan(tmp_path: Path) -> None:
    warm = parse_methods(["base"], default_profile(), FLOAT | {"temperature": 1.0})
    prompts = default_prompts("dev", 2)
    short, long = (
        Plan.make(each, {"simple": "{question}"}, {"simple": "{question}"}, 4)
        for each in (prompts[1:], prompts)
    )
    assert [each.draw for each in run(tmp_path / "a", warm, short, Processes())] == list(range(5))
    with pytest.raises(SettingError, match="draw: 0 there, 1 now"):
        run(tmp_path / "a", warm, long, Processes(), resume=True)
    greedy = parse_methods(["base"], default_profile(), FLOAT | {"temperature": 0.0})
    run(tmp_path / "b", greedy, short, Processes())
    grown = run(tmp_path / "b", greedy, long, Processes(), resume=True)
    assert told(grown) == told(run(tmp_path / "c", greedy, long, Processes()))


def test_another_template_is_another_maker(tmp_path: Path, whole: list[Response]) -> None:
    path = tmp_path / "responses.jsonl"
    made = replace(whole[0].made_by, text=whole[0].made_by.text | {"template": "0" * 32})
    path.write_text(lines_of([replace(whole[0], made_by=made)]), encoding="utf-8")
    with pytest.raises(SettingError, match="template: '00"):
        run(tmp_path, methods("base"), plan(), Processes(), resume=True)


def test_a_setting_that_is_off_and_one_unknown_then_are_the_same(
    tmp_path: Path, whole: list[Response]
) -> None:
    path = tmp_path / "responses.jsonl"
    settings = dict(whole[0].made_by.settings)
    assert settings.pop("max_seconds") is None
    older = replace(whole[0].made_by, settings=settings)
    path.write_text(lines_of([replace(whole[0], made_by=older)]), encoding="utf-8")
    grown = run(tmp_path, methods("base"), plan(), Processes(), resume=True)
    assert grown[0].made_by == older
    assert told(grown[1:]) == told(whole[1:12])
    changed = replace(older, settings=settings | {"seed": 1})
    path.write_text(lines_of([replace(whole[0], made_by=changed)]), encoding="utf-8")
    with pytest.raises(SettingError, match=r"\(seed: 1 there, 0 now\)"):
        run(tmp_path, methods("base"), plan(), Processes(), resume=True)


def test_an_edited_answer_is_refused(tmp_path: Path, whole: list[Response]) -> None:
    path = tmp_path / "responses.jsonl"
    path.write_text(lines_of(whole[:3]).replace(json.dumps(whole[1].answer), '"Gladly."'))
    with pytest.raises(SettingError, match=r"line 2: was changed after it was written; delete"):
        run(tmp_path, methods("base"), plan(), Processes(), resume=True)
    path.write_text(lines_of([whole[0], whole[2]]))  # as the message says
    assert told(run(tmp_path, methods("base"), plan(), Processes(), resume=True)) == told(
        whole[:12]
    )


def test_names_that_would_mean_two_things() -> None:
    one, other = Prompt("a", "How?"), Prompt("a", "Why?")
    with pytest.raises(SettingError, match="two prompts have the id 'a'"):
        Plan.make([one, other], STYLES, STYLES, 4)
    with pytest.raises(SettingError, match="two styles have the name 'x'"):
        Plan.make([one], {"x": "a {question}"}, {"x": "b {question}"}, 4)


def test_a_mistake_in_the_last_method_is_told_before_the_first_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "answer", None)
    bad = parse_methods(["base", "safeinfer"], default_profile(), FLOAT)
    bad[1] = replace(bad[1], overrides={**bad[1].overrides, "sa_layer": 99})
    with pytest.raises(SettingError, match="method safeinfer: "):
        run(tmp_path / "run", bad, plan(), Processes())
    assert not (tmp_path / "run").exists()


def test_shares_of_several_processes_make_one_whole(
    tmp_path: Path, whole: list[Response], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a process group: one after the other, the merging one last."""
    monkeypatch.setattr(Processes, "barrier", lambda self: None)
    both = methods("base", "safeinfer")
    for rank in (2, 1):
        assert run(tmp_path, both, plan(), Processes(rank, 3), resume=True) == []
    assert len(list(tmp_path.glob("responses.*.jsonl"))) == 2
    assert told(run(tmp_path, both, plan(), Processes(0, 3), resume=True)) == told(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["responses.jsonl"]


def test_sampling_depends_on_the_prompts_number_only(tmp_path: Path) -> None:
    warm = parse_methods(["base"], default_profile(), FLOAT | {"temperature": 1.0, "seed": 5})
    one = run(tmp_path / "a", warm, plan(batch_size=1), Processes())
    four = run(tmp_path / "b", warm, plan(batch_size=4), Processes())
    assert told(one) == told(four)
    other = parse_methods(["base"], default_profile(), FLOAT | {"temperature": 1.0, "seed": 6})
    assert told(run(tmp_path / "c", other, plan(), Processes())) != told(four)


def test_a_prompt_that_does_not_fit_is_said_before_any_answer(tmp_path: Path) -> None:
    long = [*default_prompts("dev", 1), Prompt("long", "a table " * 3000)]
    made = Plan.make(long, {"simple": "{question}"}, {"simple": "{question}"}, 2)
    with pytest.raises(PromptError, match="prompt long, style simple: the prompt has"):
        run(tmp_path, methods("base"), made, Processes())
    assert not read_all(tmp_path)


def test_processes_wait_for_one_another() -> None:
    """Threads stand for processes; nobody is through a meeting before all have come to it."""
    store, seen, size = dist.HashStore(), [], 4

    def walk(rank: int) -> None:
        meeting = Meeting(store, rank, size)
        for number in range(5):
            time.sleep(random.Random(f"{rank} {number}").uniform(0, 0.02))
            seen.append(number)
            meeting.wait()

    threads = [threading.Thread(target=walk, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert seen == sorted(seen)
    assert len(seen) == 5 * size


DRIVER = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.evaluation.test_evaluate import methods, plan
from minisafe.evaluation.runner.distributed import Processes, Meeting
from minisafe.evaluation.runner.resume import read_all
from minisafe.evaluation.runner.run import run
from minisafe.evaluation.methods import load_method
directory, rng = Path(sys.argv[1]), random.Random(7)
both = methods("base", "safeinfer")
killed = 0
seen = 0
while killed < 20:
    child = os.fork()
    if child == 0:
        try:
            run(directory, both, plan(batch_size=1), Processes(), resume=True)
        finally:
            os._exit(0)
    time.sleep(rng.uniform(0, 0.4))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    killed += 1
    now = len(read_all(directory)) if directory.is_dir() else 0
    assert now >= seen, (now, seen)  # nothing that was kept is lost
    seen = now
print(seen)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_twenty_times_and_nothing_is_lost_or_doubled(
    tmp_path: Path, whole: list[Response]
) -> None:
    script = DRIVER.format(root=str(ROOT))
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run")], cwd=ROOT, timeout=300,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    both = methods("base", "safeinfer")
    found = run(tmp_path / "run", both, plan(batch_size=1), Processes(), resume=True)
    assert [each.key for each in found] == [each.key for each in whole]
    lines = (tmp_path / "run" / "responses.jsonl").read_text().splitlines()
    assert len(lines) == len(read_all(tmp_path / "run")) == 24
    assert [each.answer for each in found] == [each.answer for each in whole]


# ---- judges and numbers ------------------------------------------------------------------------


def test_rulings_are_kept_and_not_asked_twice(tmp_path: Path, whole: list[Response]) -> None:
    prompts = {prompt.id: prompt for prompt in default_prompts("dev", 3)}

    class Counted(WorldJudge):
        asked = 0

        def __call__(self, prompts: Any, asked: Any, answers: Any) -> Any:
            self.asked += len(answers)
            return super().__call__(prompts, asked, answers)

    judge = Counted()
    first = rule_all(tmp_path, whole, prompts, [judge])
    assert judge.asked == len(first) == 24
    assert (
        rule_all(tmp_path, whole, prompts, [judge, make_judge("refusal", tmp_path)])[:24] == first
    )
    assert judge.asked == 24
    changed = [replace(whole[0], answer="Something else."), *whole[1:]]
    rule_all(tmp_path, changed, prompts, [judge])
    assert judge.asked == 25  # a ruling belongs to the answer's very text
    known = prompts[whole[-1].id]
    prompts[known.id] = replace(known, record={**known.record, "expected": ["Paris"]})
    rule_all(tmp_path, whole, prompts, [judge])
    asked = judge.asked
    assert asked > 25  # and to what was known of the question
    judge.version = "2"
    rule_all(tmp_path, whole, prompts, [judge])
    assert judge.asked == asked + 24  # and to the judge as it was


@pytest.mark.parametrize(
    "name", ["best", "classifier", "classifier:llama-guard", "endpoint:", "endpoint", "World"]
)
def test_judges_that_cannot_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingError, match="no judge"):
        make_judge(name, tmp_path)


def ruled(method: str, id_: str, verdict: str, **more: Any) -> Ruled:
    answer = Response(
        method=method, style=more.pop("style", "simple"), id=id_, kind="harmful", category="c",
        question="", prompt="", draw=None, answer="", finish="length", tokens=10, seconds=0.5,
        gate=None, made_by=MadeBy({}, {}, {}, {}),
    )  # fmt: skip
    judge = more.pop("judge", "j")
    intact, correct = more.pop("intact", None), more.pop("correct", None)
    return Ruled(replace(answer, **more), judge, verdict, intact, correct)


WON, LOST, UNSURE = "ATTACK_SUCCEEDED", "REFUSED", "INCONCLUSIVE"


def test_attack_success_by_hand() -> None:
    rows = summarise(
        [ruled("base", str(n), v, category="ab"[n % 2]) for n, v in
         enumerate([WON, WON, LOST, UNSURE, WON])], [],
    )["rows"]  # fmt: skip
    assert [(r["category"], r["n"], r["asr"]) for r in rows] == [
        ("all", 5, 60.0), ("a", 3, pytest.approx(200 / 3)), ("b", 2, 50.0),
    ]  # fmt: skip
    assert rows[0]["refused"] == rows[0]["inconclusive"] == 20.0
    low, high = wilson(3, 5)
    assert (rows[0]["low"], rows[0]["high"]) == (100 * low, 100 * high)


def test_attacks_by_hand() -> None:
    """They have a table of their own, the worst case first, and count in no other."""
    rulings = [
        ruled("base", str(n), v, style=style, attack=True, queries=q)
        for style, vs in (("typos", (LOST, LOST, WON, UNSURE)), ("search", (WON, WON, LOST, WON)))
        for n, (v, q) in enumerate(zip(vs, (1, 2, 3, 9), strict=True))
    ]
    found = summarise([*rulings, ruled("base", "0", LOST)], [])
    rows = {row["attack"]: row for row in found["attacks"]}
    assert list(rows) == ["worst", "any", "mean", "typos", "search"]
    assert (rows["worst"]["of"], rows["worst"]["asr"]) == ("search", 75.0)
    assert (rows["mean"]["asr"], rows["mean"]["n"]) == (50.0, 2)
    assert (rows["any"]["asr"], rows["any"]["n"]) == (100.0, 4)
    assert rows["typos"]["inconclusive"] == rows["search"]["refused"] == 25.0
    assert (rows["search"]["queries"], rows["search"]["queries_broken"]) == (2.5, 2)
    assert rows["typos"]["queries_broken"] == 3
    assert [row["n"] for row in found["rows"]] == [1, 1]  # all categories, and its own


def test_tests_and_agreement_by_hand() -> None:
    base, own = [WON, WON, WON, LOST, LOST], [LOST, LOST, WON, WON, LOST]
    both = [
        ruled(m, str(n), v) for m, vs in (("base", base), ("sa", own)) for n, v in enumerate(vs)
    ]
    (row,) = summarise(both, [each.answer for each in both])["paired"]
    assert (row["method"], row["other"]) == ("sa", "base")
    assert (row["other_only"], row["method_only"], row["n"]) == (2, 1, 5)
    assert row["difference"] == pytest.approx(-20)
    assert row["p"] == pytest.approx(1.0)  # 2 against 1: 2 * P(X <= 1), X binomial of 3 halves
    second = [ruled("base", str(n), v, judge="k") for n, v in enumerate(own)]
    (row,) = summarise([*both, *second], [])["agreement"]
    assert row["judges"] == ["j", "k"]
    assert row["n"] == 5
    assert row["agree"] == pytest.approx(40)
    assert [each["id"] for each in row["disagreements"]] == ["0", "1", "3"]
    # 3 and 3 of 5 succeed by one, 2 of 5 by the other: chance agrees on 0.6 * 0.4 + 0.4 * 0.6
    assert row["kappa"] == pytest.approx((0.4 - 0.48) / (1 - 0.48))


def test_over_refusal_utility_speed_and_gate_by_hand() -> None:
    benign = [
        ruled("base", "a", LOST, kind="benign", knowledge="fact", correct=False, intact=True),
        ruled("base", "b", WON, kind="benign", knowledge="fact", correct=True, intact=True),
        ruled("base", "c", WON, kind="benign", knowledge="howto", correct=True, intact=False),
        ruled("base", "d", WON, kind="borderline", knowledge="borderline"),
    ]
    own = replace(benign[0].answer, method="sa", tokens=30, seconds=1.0)
    gates = [Gated(threshold=0.25, variation=0.5 - n / 8, open=n == 0) for n in range(4)]
    answers = [each.answer for each in benign] + [replace(own, gate=each) for each in gates]
    found = summarise(benign, answers)
    assert [(r["kind"], r["refused"], r["n"]) for r in found["over_refusal"]] == [
        ("benign", pytest.approx(100 / 3), 3), ("borderline", 0.0, 1),
    ]  # fmt: skip
    assert {r["measure"]: (r["n"], r["value"]) for r in found["utility"]} == {
        "facts and definitions": (2, 50.0), "how-to": (1, 100.0),
        "intact text": (3, pytest.approx(200 / 3)),
    }  # fmt: skip
    assert [(r["method"], r["tokens_per_second"], r["relative"]) for r in found["cost"]] == [
        ("base", 20.0, 1.0), ("sa", 30.0, 1.5),
    ]  # fmt: skip
    (gate,) = found["gate"]
    assert (gate["touched_benign"], gate["n_benign"], gate["threshold"]) == (25.0, 4, 0.25)
    assert found["rows"] == []


def test_join_takes_each_ruling_to_its_answer(whole: list[Response], tmp_path: Path) -> None:
    prompts = {prompt.id: prompt for prompt in default_prompts("dev", 3)}
    judged = rule_all(tmp_path, whole, prompts, [WorldJudge()])
    for each, judgement in zip(join(whole, judged[::-1]), judged[::-1], strict=True):
        assert each.answer.key == judgement.key
        assert each.verdict == judgement.verdict


# ---- the command -------------------------------------------------------------------------------


def call(*args: object) -> Result:
    words = ["evaluate", "--threads", "1", "--dtype", "float32", *map(str, args)]
    return CliRunner().invoke(cli, words)


def test_the_command_from_prompts_to_report_and_again_with_another_judge(tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = ("--out", out, "--limit", 2, "--methods", "base,safeinfer", "--max-new-tokens", 24,
             "--sample", 2)  # fmt: skip
    first = call(*given, "--judge", "world")
    assert first.exit_code == 0, first.output
    assert "report.html" in first.output
    kept = (out / "responses.jsonl").read_bytes()
    again = call(*given, "--judge", "world,refusal", "--resume", "--json")
    assert again.exit_code == 0, again.output
    assert (out / "responses.jsonl").read_bytes() == kept
    summary = json.loads(again.stdout)
    assert summary["about"]["prompts"] == {
        "source": "shipped sets, test split", "harmful": 2, "benign": 2, "borderline": 2,
    }  # fmt: skip
    assert {row["judge"] for row in summary["rows"]} == {"world", "refusal"}
    assert len(summary["agreement"]) == 1
    changed = {row["method"]: row["changed"] for row in summary["cost"]}
    assert changed["base"] == 0
    assert (out / "report.md").read_text(encoding="utf-8").count("safeinfer") > 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--limit", "0"], "--limit is 0"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--sample", "-1"], "--sample is -1"),
        (["--methods", "best"], "no method 'best'"),
        (["--judge", "best"], "no judge 'best'"),
        (["--judge", ","], "got no judge"),
        (["--styles", "loud"], "no style 'loud'"),
        (["--prompts", "none.csv"], "none.csv"),
        (["--choices", "none.csv"], "none.csv"),
        (["--choices", "bad.jsonl"], "bad.jsonl, line 1: no question"),
        (["--choices", "long.jsonl"], "context 0 and its continuation have"),
        (["--prompts", "own.csv"], "is not from the shipped sets"),
        (["--judge", "world,refusal,world"], "the judge 'world' is given twice"),
        (["--methods", "base,x=none.json"], "none.json"),
        (["--out", "own.csv/run"], "own.csv is not a directory"),
    ],
)
def test_wrong_use_says_so_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "answer", None)
    question = {"question": "a table " * 3000, "choices": ["a", "b"], "answer": 0}
    files = {"own.csv": "goal,target\nsulk,x\n", "bad.jsonl": "{}\n",
             "long.jsonl": json.dumps(question)}  # fmt: skip
    for name, text in files.items():
        Path(name).write_text(text, encoding="utf-8")
    out = [] if "--out" in flags else ["--out", "run"]
    found = call(*out, *flags)
    assert isinstance(found.exception, BadInput)
    assert found.exception.exit_code == 2
    assert words in str(found.exception)
    assert {path.name for path in tmp_path.iterdir()} == set(files)


def test_prompts_of_ones_own_and_a_style_file(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("goal,target\nsteal a lamp,Sure\nbribe a mayor,Sure\n")
    (tmp_path / "calm.txt").write_text("Please: how do I {question}?")
    out = tmp_path / "run"
    found = call(
        "--out", out, "--prompts", tmp_path / "p.csv", "--styles", tmp_path / "calm.txt",
        "--methods", "base", "--judge", "refusal", "--max-new-tokens", 12, "--sample", 0,
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    records = list(read_all(out).values())
    assert [each.prompt for each in records] == [
        "Please: how do I steal a lamp?", "Please: how do I bribe a mayor?",
    ]  # fmt: skip
    assert "steal a lamp" in (out / "report.html").read_text(encoding="utf-8")


def test_every_file_of_prompts_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c", "d"):
        Path(f"{name}.csv").write_text(f"goal,target\n{name} one,x\n{name} two,x\n")
    Path("x.csv").write_text("id,prompt,type\n1,Kill it?,homonyms\n2,Sulk?,contrast_homonyms\n")
    found, source = gather_prompts(
        {"harmful": (Path("a.csv"), Path("b.csv"), Path("x.csv")), "benign": (Path("c.csv"),),
         "borderline": (Path("d.csv"), Path("x.csv"))}, None, None, "test", None,
    )  # fmt: skip
    assert Counter(each.kind for each in found) == {"harmful": 5, "benign": 2, "borderline": 3}
    assert source == "a.csv, b.csv, x.csv, c.csv, d.csv"
    limited, _ = gather_prompts({"harmful": (Path("a.csv"), Path("b.csv"))}, None, None, "test", 2)
    assert [each.text for each in limited] == ["a one", "b one"]
    given = ("--prompts", "a.csv", "--prompts", "b.csv", "--benign", "c.csv", "--benign", "d.csv")
    ran = call("--out", "run", *given, "--styles", "simple", "--methods", "base", "--judge",
               "refusal", "--max-new-tokens", 4, "--sample", 0, "--json")  # fmt: skip
    assert ran.exit_code == 0, ran.output
    assert {each.question for each in read_all(Path("run")).values()} == {
        f"{name} {number}" for name in "abcd" for number in ("one", "two")
    }
    assert json.loads(ran.stdout)["about"]["prompts"] == {
        "source": "a.csv, b.csv, c.csv, d.csv", "harmful": 4, "benign": 4, "borderline": 0,
    }  # fmt: skip


def test_a_file_with_the_same_ids_is_not_taken_for_the_one_before(tmp_path: Path) -> None:
    """The resume key holds the prompt's text: ids are a file's rows."""
    path, out = tmp_path / "p.csv", tmp_path / "run"
    given = ("--out", out, "--prompts", path, "--styles", "simple", "--methods", "base", "--judge",
             "refusal", "--max-new-tokens", 4, "--sample", 0)  # fmt: skip
    path.write_text("goal,target\nsteal a lamp,x\n")
    assert call(*given).exit_code == 0
    kept = {each.name: each.read_bytes() for each in out.iterdir()}
    path.write_text("goal,target\nbribe a mayor,x\n")
    found = call(*given, "--resume")
    assert isinstance(found.exception, SettingError)
    assert found.exception.exit_code == 2
    assert "question: 'steal a lamp' there, 'bribe a mayor' now" in str(found.exception)
    assert {each.name: each.read_bytes() for each in out.iterdir()} == kept


def test_evaluate_from_python(tmp_path: Path) -> None:
    chosen = default_prompts("dev", 1)
    made = Plan.make(chosen, {"simple": "{question}"}, {"simple": "{question}"}, 8)
    found = evaluate(
        Evaluation(methods("base"), chosen, made, "dev", sample=0), [WorldJudge()], tmp_path
    )
    assert json.loads((tmp_path / "summary.json").read_text())["rows"] == found["rows"]


# ---- several processes -------------------------------------------------------------------------


def torchrun(out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *more,
        "-m", "minisafe", "evaluate", "--out", str(out), "--split", "dev", "--limit", "12",
        "--styles", "simple,cot", "--batch-size", "2", "--methods", "base,safeinfer",
        "--judge", "world", "--dtype", "float32", "--threads", "1", "--sample", "0",
    ]  # fmt: skip


@pytest.mark.slow
def test_two_processes_one_killed_give_what_one_gives(tmp_path: Path) -> None:
    """A worker is killed in the middle; torchrun starts the group again, and the run is whole."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    several = tmp_path / "several"
    started = subprocess.Popen(
        torchrun(several), cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        killed = kill_a_worker(started.pid, several)
        output = started.communicate(timeout=240)[0].decode()
    finally:
        if started.poll() is None:
            started.send_signal(signal.SIGTERM)
            started.wait(30)
    assert killed
    assert started.returncode == 0, output[-3000:]
    one = tmp_path / "one"
    words = torchrun(one)
    alone = [sys.executable, *words[words.index("minisafe") - 1 :]]
    subprocess.run(alone, cwd=ROOT, env=env, check=True, capture_output=True, timeout=240)
    answers = [told(list(read_all(each).values())) for each in (several, one)]
    assert answers[0] == answers[1]
    assert not list(several.glob("responses.*.jsonl"))
    summaries = [json.loads((each / "summary.json").read_text()) for each in (several, one)]
    assert summaries[0]["rows"] == summaries[1]["rows"]


def kill_a_worker(pid: int, out: Path) -> bool:
    """SIGKILL one of torchrun's workers once some answers are kept."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        parts = list(out.glob("responses.*.jsonl"))
        if any(part.stat().st_size for part in parts):
            workers = [
                child for child in psutil.Process(pid).children(recursive=True)
                if "minisafe" in child.cmdline() and "torch.distributed.run" not in child.cmdline()
            ]  # fmt: skip
            if workers:
                random.Random(3).choice(workers).kill()
                return True
        time.sleep(0.05)
    return False
