"""minisafe behind lm-evaluation-harness: requests as it makes them, and whole tasks where it is."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import minisafe
from minisafe.errors import PromptError, SettingError
from minisafe.evaluation import harness
from minisafe.evaluation.harness import MinisafeLM, generation_settings
from minisafe.evaluation.likelihood.scoring import Pair, score
from minisafe.session import Session
from tests.support.worlds import E, World

pytest_plugins = ["tests.support.world_fixtures"]


def load(world: World, **changes: Any) -> Session:
    return minisafe.load(None, world.flags(**{"sgds_lambda": 0.75, "max_new_tokens": 6} | changes))


def lm_of(world: World, **changes: Any) -> MinisafeLM:
    return MinisafeLM(load(world, **changes), batch_size=2)


def requests(*args: Any) -> list[Any]:
    """What the harness hands over, as far as it is read."""
    return [SimpleNamespace(args=each) for each in args]


# ---- log-likelihoods ---------------------------------------------------------------------------


def test_loglikelihood_is_the_score(world: World) -> None:
    lm = lm_of(world)
    pairs = [("The fox", " sat down"), ("The fox ", "ran"), ("A", " b")]
    found = lm.loglikelihood(requests(*pairs))
    expected = score(lm.session, [a for a, _ in pairs], [b for _, b in pairs])
    for (total, greedy), each in zip(found, expected, strict=True):
        assert total == pytest.approx(each.total, abs=10 * E)
        assert greedy == each.greedy
    assert len({total for total, _ in found}) == 3


def test_what_is_greedy_is_said_to_be(world: World) -> None:
    lm = lm_of(world, safe=False)
    ids = lm.session.generate(["The fox"])[0].tokens[:3]
    (text,) = lm.generate_until(requests(("The fox", {"max_gen_toks": 3})))
    pair = lm.pair("The fox", text)
    if pair.answer == ids:  # else the text reads as other tokens than it was made of
        assert lm.loglikelihood(requests(("The fox", text)))[0][1]
    assert not lm.loglikelihood(requests(("The fox", "zzzz")))[0][1]


def test_without_a_context_bos_stands_before(world: World) -> None:
    lm = lm_of(world)
    known = lm.session.tokenizer
    bos = known.id_of(known.special["bos_token"])
    ids = tuple(known.backend.encode("sat", add_special_tokens=False).ids)
    assert lm.pair("", "sat") == Pair(((bos,), (bos,)), ids)
    assert lm.pair("", known.special["bos_token"] + "sat") == Pair(((bos,), (bos,)), ids)
    with pytest.raises(PromptError, match="is empty"):
        lm.loglikelihood(requests(("", "")))


def test_long_contexts_lose_their_beginning(world: World, caplog: Any) -> None:
    lm = lm_of(world)
    long = "The fox ran on. " * 100
    with caplog.at_level(logging.WARNING):
        pair = lm.fitted(lm.pair(long, " And sat."))
    whole = lm.pair(long, " And sat.")
    room = 512 + 1 - len(pair.answer)
    assert pair == Pair(tuple(prompt[-room:] for prompt in whole.prompts), whole.answer)
    assert "was cut to its last" in caplog.text
    ((total, _),) = lm.loglikelihood(requests((long, " And sat.")))
    assert total < 0
    with pytest.raises(PromptError, match="the model's context"):
        lm.loglikelihood(requests(("The", " fox" * 600)))


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 9, 20])
def test_rolling_windows_predict_every_token_once(
    world: World, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    lm = lm_of(world)
    monkeypatch.setattr(MinisafeLM, "limit", limit)
    text = "The fox s"
    ids = tuple(lm.session.tokenizer.backend.encode(text, add_special_tokens=False).ids)
    whole = (lm.prefix_id, *ids)
    found = list(lm.windows(text))
    assert sum((pair.answer for pair in found), ()) == ids
    read = 1
    for pair in found:
        (prompt, other), answer = pair.prompts, pair.answer
        read += len(answer)
        assert prompt == other
        assert (*prompt, *answer) == whole[read - len(prompt) - len(answer) : read]
        assert len(prompt) + len(answer) - 1 == min(limit, read - 1)  # as much as fits
    if harness.INSTALLED:
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows = get_rolling_token_windows(list(ids), whole[0], limit, 1)
        theirs = [tuple(map(tuple, make_disjoint_window(window))) for window in windows]
        assert [(pair.prompts[0], pair.answer) for pair in found] == theirs


def test_rolling_adds_up(world: World) -> None:
    lm = lm_of(world)
    text = "The fox sat down."
    (found, nothing) = lm.loglikelihood_rolling(requests((text,), ("",)))
    assert found == pytest.approx(lm.loglikelihood(requests(("", text)))[0][0], abs=10 * E)
    assert nothing == 0


# ---- answers -----------------------------------------------------------------------------------


def test_answers_are_the_sessions(world: World) -> None:
    lm = lm_of(world)
    prompts = ["The fox", "Once", "What is it?"]
    expected = [result.text for result in lm.session.generate(prompts)]
    greedy = {"until": [], "do_sample": False, "temperature": 0.9}
    assert lm.generate_until(requests(*[(prompt, greedy) for prompt in prompts])) == expected
    assert len(set(expected)) == 3


def test_answers_stop_and_end_as_the_task_asks(world: World) -> None:
    lm = lm_of(world)
    (whole,) = lm.generate_until(requests(("The fox", {"max_gen_toks": 12})))
    (short,) = lm.generate_until(requests(("The fox", {"max_gen_toks": 3})))
    assert whole.startswith(short)
    assert len(short) < len(whole)
    stop = whole[4:6]
    options = {"max_gen_toks": 12, "until": [stop, ""]}
    mixed = requests(("The fox", options), ("The fox", {"max_gen_toks": 3}), ("The fox", options))
    before = whole[: whole.index(stop)]
    assert lm.generate_until(mixed) == [before, short, before]
    assert lm.generate_until(requests(("The fox", options | {"until": stop}))) == [before]


def test_samples_depend_on_the_seed_and_not_on_the_batch(world: World) -> None:
    one, three = (MinisafeLM(load(world), size) for size in (1, "3"))
    options = {"temperature": 1.0, "do_sample": True}
    asked = requests(*[("The fox", options)] * 3)
    found = one.generate_until(asked)
    assert found == three.generate_until(asked)
    assert len(set(found)) > 1
    assert found != one.generate_until(requests(*[("The fox", options | {"seed": 5})] * 3))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"temperature": 0.0, "stop": ()}),
        ({"until": "\n", "max_tokens": 5}, {"stop": ("\n",), "max_new_tokens": 5}),
        ({"max_gen_toks": 4, "max_tokens": 5}, {"max_new_tokens": 4}),
        ({"temperature": 0.5}, {"temperature": 0.5}),
        ({"temperature": 0.5, "do_sample": False}, {"temperature": 0.0}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": None, "until": None, "top_p": 0.9}, {"temperature": 0.0, "top_p": 0.9}),
    ],
)
def test_generation_kwargs_become_settings(options: Any, expected: Any) -> None:
    assert generation_settings(options) == {"temperature": 0.0, "stop": ()} | expected


def test_generation_kwargs_that_nothing_reads() -> None:
    with pytest.raises(SettingError, match="num_beams: unknown; expected until, do_sample"):
        generation_settings({"num_beams": 4, "until": []})


def test_long_prompts_leave_room_for_the_answer(world: World, caplog: Any) -> None:
    lm = lm_of(world)
    long = "The fox ran on. " * 100
    (prompt, _) = lm.prompts(long, lm.session)
    assert prompt == lm.session.encode(long, False)[0][-506:]
    assert len(lm.generate_until(requests((long, {"max_gen_toks": 9})))[0]) > 0
    with pytest.raises(SettingError, match="max_gen_toks is 512"):
        lm.generate_until(requests((long, {"max_gen_toks": 512})))


def test_answers_without_a_prompt(world: World) -> None:
    lm = lm_of(world)
    assert lm.prompts("", lm.session) == ((lm.prefix_id,),) * 2
    assert lm.generate_until(requests(("", {"max_gen_toks": 3})))[0]


# ---- chats -------------------------------------------------------------------------------------

HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is it a fox?<|eot|>"},
]


@pytest.mark.parametrize("kind", ["world", "spm_world"])
def test_a_chat_is_encoded_from_its_messages(request: pytest.FixtureRequest, kind: str) -> None:
    lm = lm_of(request.getfixturevalue(kind))
    text = lm.apply_chat_template(HISTORY)
    assert text == lm.session.tokenizer.render(HISTORY)
    ids = lm.session.tokenizer.encode_chat(HISTORY).ids
    pair = lm.pair(text, "Yes")
    assert pair.prompts == (ids, ids)
    assert lm.session.tokenizer.decode(pair.answer).strip() == "Yes"
    (answer,) = lm.generate_until(requests((text, {})))
    expected = lm.session.with_settings({"system": "Be brief."}).generate(
        ["Is it a fox?<|eot|>"], chat=True
    )
    assert answer == expected[0].text


def test_an_answer_that_has_begun(world: World) -> None:
    lm = lm_of(world)
    history = [*HISTORY, {"role": "assistant", "content": "It is"}]
    text = lm.apply_chat_template(history, add_generation_prompt=False)
    assert text.endswith("assistant<|end_header|>\n\nIt is")
    prompt = lm.session.tokenizer.encode_chat(HISTORY).ids
    pair = lm.pair(text, " a fox")
    whole = lm.session.tokenizer.backend.encode("It is a fox", add_special_tokens=False).ids
    assert [*pair.prompts[0][len(prompt) :], *pair.answer] == whole
    assert lm.session.tokenizer.decode(pair.answer) == " a fox"


def test_an_expert_gets_its_own_system_prompt(world: World) -> None:
    lm = lm_of(world, expert=None, expert_system="You are careless.")
    text = lm.apply_chat_template(HISTORY)
    base, expert = lm.pair(text, "Yes").prompts
    folded = [{"role": "user", "content": "Be brief.\n\nIs it a fox?<|eot|>"}]
    careless = [{"role": "system", "content": "You are careless."}, *folded]
    assert base == lm.session.tokenizer.encode_chat(folded).ids
    assert expert == lm.session.tokenizer.encode_chat(careless).ids
    with pytest.raises(PromptError, match="needs the chat template"):
        lm.loglikelihood(requests(("Is it?", " Yes")))


def test_what_the_harness_logs(world: World) -> None:
    lm = lm_of(world)
    assert lm.tokenizer_name == f"minisafe-{lm.session.tokenizer.fingerprint}"
    assert lm.chat_template(True) == lm.session.tokenizer.template_source
    assert lm.chat_template(False) == ""
    assert lm.get_model_info()["applied"]["sgds"]["lambda"] == 0.75
    json.dumps(lm.get_model_info())


@pytest.mark.parametrize("size", ["auto", "auto:4", -1, 2.5])
def test_batch_sizes_that_are_none(world: World, size: Any) -> None:
    with pytest.raises(SettingError, match="batch_size is"):
        MinisafeLM(load(world), size)


@pytest.mark.parametrize("device", [None, "cpu", "cuda:0"])
def test_from_model_arguments(
    world: World, monkeypatch: pytest.MonkeyPatch, device: str | None
) -> None:
    """Without a GPU, the harness's own default is none."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    lm = MinisafeLM.create_from_arg_obj(
        {"profile": str(world.profile), "sgds_lambda": 0.5},
        {"batch_size": 4, "max_batch_size": 64, "device": device},
    )
    assert lm.batch_size == 4
    assert lm.session.stages.to_json()["sgds"]["lambda"] == 0.5
    assert lm.session.settings.max_new_tokens == 12  # the profile's
    with pytest.raises(SettingError, match="unknown setting 'pretrained'"):
        MinisafeLM.create_from_arg_obj({"pretrained": "x"})


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "INSTALLED", False)
    with pytest.raises(SystemExit, match=r"pip install 'minisafe\[eval\]'"):
        harness.main()


# ---- the harness itself ------------------------------------------------------------------------

CHOICE_TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
ANSWER_TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{target}}}}"
generation_kwargs: {{until: ["\\n\\n"], do_sample: false, max_gen_toks: 6}}
metric_list: [{{metric: exact_match}}]
"""
QUESTIONS = ["Is it a fox?", "Where does the river end?", "What is a stone?"]
CHOICES = ["yes", "no, it is not", "a stone"]
Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture
def evaluate(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """`evaluate(lm, **options)`: results of two local tasks, whose right answers are the model's
    own but for the first question's; nothing is fetched."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    def run(lm: Any, chat: bool, **options: Any) -> dict[str, Any]:
        session = load(world)
        rows = []
        for question in QUESTIONS:
            texts = CHOICES if chat else [" " + text for text in CHOICES]
            totals = [each.total for each in score(session, [question] * 3, texts, chat)]
            best = totals.index(max(totals))
            (result,) = session.generate([question], chat=chat)
            rows.append({"question": question, "choices": CHOICES, "answer": best,
                         "target": result.text})  # fmt: skip
        rows[0] |= {"answer": (rows[0]["answer"] + 1) % 3, "target": "never said"}
        data = tmp_path / "data.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for name, task in (("choice", CHOICE_TASK), ("answer", ANSWER_TASK)):
            text = task.format(name=f"minisafe_{name}", data=data)
            (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
        found = lm_eval.simple_evaluate(
            model=lm, tasks=["minisafe_choice", "minisafe_answer"], task_manager=manager,
            apply_chat_template=chat, bootstrap_iters=0, **options,
        )  # fmt: skip
        assert found is not None
        return found

    return run


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_the_harness_runs_tasks(world: World, evaluate: Evaluate, chat: bool) -> None:
    found = evaluate(lm_of(world), chat)
    results = found["results"]
    assert results["minisafe_choice"]["acc,none"] == pytest.approx(2 / 3)
    assert results["minisafe_answer"]["exact_match,none"] == pytest.approx(2 / 3)
    assert found["config"]["applied"]["sgds"]["lambda"] == 0.75


def test_the_harness_knows_the_model_by_its_name(world: World, evaluate: Evaluate) -> None:
    arguments = f"profile={world.profile},sgds_lambda=0.75,max_new_tokens=6"
    found = evaluate("minisafe", False, model_args=arguments, batch_size=2)
    assert found["results"]["minisafe_choice"]["acc,none"] == pytest.approx(2 / 3)
    assert found["config"]["applied"]["sgds"]["lambda"] == 0.75


def test_the_command_line_knows_the_model(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what the user got wrong is one line and exit code 2, not a traceback."""
    command = pytest.importorskip("lm_eval.__main__")
    from lm_eval.api.registry import get_model

    def evaluate(arguments: str) -> None:
        get_model("minisafe").create_from_arg_string(arguments, {"batch_size": 1})

    monkeypatch.setattr(command, "cli_evaluate", lambda: evaluate(f"profile={world.profile}"))
    harness.main()
    monkeypatch.setattr(command, "cli_evaluate", lambda: evaluate("profile=none_such"))
    with pytest.raises(SystemExit) as error:
        harness.main()
    assert error.value.code == 2
    assert capsys.readouterr().err.startswith("error: none_such")
