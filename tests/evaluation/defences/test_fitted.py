"""What is fitted: that it repeats, that files are checked, and that methods find it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

import minisafe
from minisafe.checkpoint.vectors import load_vector
from minisafe.cli import cli
from minisafe.errors import PromptError, SafetyWarning, SettingError
from minisafe.evaluation.attacks import choose_attacks
from minisafe.evaluation.attacks.text import PERSONA
from minisafe.evaluation.defences import Defended
from minisafe.evaluation.defences.features import last_state
from minisafe.evaluation.defences.fitted import (
    CHOSEN,
    FITTED,
    FORMAT,
    Fitted,
    read_chosen,
    read_fitted,
    write_chosen,
)
from minisafe.evaluation.fitting import (
    Fitting,
    answers_of,
    conditions,
    directions,
    input_guards,
)
from minisafe.evaluation.methods import METHODS, Materials, load_method, made_by, parse_methods
from minisafe.evaluation.methods.grid import n_points, points
from minisafe.evaluation.prompts import default_prompts, halves
from minisafe.evaluation.report.best import Bounds, choose_each
from minisafe.session import Session
from minisafe.session.profile import default_profile

SHORT = {"dtype": "float32", "max_new_tokens": 12}
NEED = ("input-guard", "output-guard", "perplexity", "refusal-direction", "cast", "alphasteer")


def call(*args: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, args), "--threads", "1"])


def test_halves_hold_every_kind_and_nothing_twice() -> None:
    prompts = default_prompts("dev")
    used, left = halves(prompts)
    assert abs(len(used) - len(left)) <= 1
    assert {each.id for each in used} | {each.id for each in left} == {each.id for each in prompts}
    assert not {each.id for each in used} & {each.id for each in left}
    for kind in ("harmful", "benign", "borderline"):
        share = sum(each.kind == kind for each in used) / sum(each.kind == kind for each in prompts)
        assert 0.45 < share < 0.55
    harmful = [[each.category for each in half if each.kind == "harmful"] for half in (used, left)]
    assert set(harmful[0]) == set(harmful[1])


def test_the_same_prompts_give_the_same_values(fitting: Fitting, fitted: Fitted) -> None:
    for name, values in (directions(fitting) | input_guards(fitting)).items():
        assert torch.equal(values, fitted.tensors[name]), name


def test_the_direction_is_the_difference_of_means(fitting: Fitting, fitted: Fitted) -> None:
    means = [
        torch.stack(
            [last_state(fitting.base, each)[3] for each in fitting.asked(*kinds, plain=True)]
        )
        for kinds in (("harmful",), ("benign", "borderline"))
    ]
    wanted = means[0].mean(dim=0) - means[1].mean(dim=0)
    assert torch.allclose(fitted.tensors["direction"][3], wanted, atol=1e-5)


def test_the_condition_lies_on_the_harmful_side(fitting: Fitting, fitted: Fitted) -> None:
    found = conditions(fitting)
    assert torch.equal(found["condition"], fitted.tensors["condition"])
    assert all(found[f"condition.harmless.{layer}"].mean() < 0 for layer in range(8))


def test_a_written_directory_reads_the_same(fitted: Fitted) -> None:
    again = read_fitted(fitted.directory)
    assert again.digest == fitted.digest
    assert (again.weights, again.tokenizer, again.prompts) == (
        fitted.weights, fitted.tokenizer, fitted.prompts,
    )  # fmt: skip
    other = replace(fitted, tensors=fitted.tensors | {"direction": -fitted.tensors["direction"]})
    assert other.digest != fitted.digest


def test_attacks_are_on_both_sides_of_what_is_fitted(fitting: Fitting) -> None:
    attacks = choose_attacks(["persona-before,prefill-5"])
    known = replace(fitting, attacks=attacks)
    for kinds in (("harmful",), ("benign", "borderline")):
        plain, asked = fitting.asked(*kinds), known.asked(*kinds)
        n = len(fitting.of(*kinds))
        assert asked[: len(plain)] == plain
        assert len(asked) == known.ways * n == len(plain) + 2 * n
        assert all(each.question.startswith(PERSONA) for each in asked[-2 * n : -n])
        assert all(each.prefill for each in asked[-n:])
        assert known.asked(*kinds, plain=True) == fitting.asked(*kinds, plain=True)
    complied, others = answers_of(known)
    begun = [answer for prompt, answer in (*complied, *others) if prompt.prefill]
    assert begun
    assert all(answer.startswith(prompt.prefill) for prompt, answer in (*complied, *others))


def test_too_few_prompts_are_refused(fitting: Fitting) -> None:
    with pytest.raises(PromptError, match="0 harmful prompts to fit on; expected 4 or more"):
        replace(fitting, prompts=[]).of("harmful")


def test_files_that_cannot_be(fitted: Fitted, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"fitted\.safetensors: no such file; make it with"):
        read_fitted(tmp_path)
    path = tmp_path / FITTED
    path.write_bytes((fitted.directory / FITTED).read_bytes()[:-9])
    with pytest.raises(SettingError, match="not a complete safetensors file"):
        read_fitted(tmp_path)
    tensors = load_file(fitted.directory / FITTED)
    save_file(tensors, path)
    with pytest.raises(SettingError, match="not a file of this version"):
        read_fitted(tmp_path)
    tensors["direction"][0, 0] = torch.nan
    save_file(tensors, path, metadata={"format": FORMAT})
    with pytest.raises(SettingError, match="direction is damaged"):
        read_fitted(tmp_path)
    (tmp_path / CHOSEN).write_text("[1]")
    with pytest.raises(SettingError, match="expected options by method; delete it"):
        read_chosen(tmp_path)


def test_other_weights_warn_and_another_shape_is_refused(fitted: Fitted, plain: Session) -> None:
    fitted.check(plain)
    with pytest.warns(SafetyWarning, match="fitted on other weights of the same shape"):
        replace(fitted, weights="x").check(plain)
    with pytest.raises(SettingError, match="was fitted for another model"):
        replace(fitted, tokenizer="x").check(plain)
    small = fitted.tensors | {"direction": torch.zeros(2, 3)}
    with pytest.raises(SettingError, match="was fitted for another model"):
        replace(fitted, tensors=small).check(plain)


# ---- methods -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NEED)
def test_every_fitted_method_answers(name: str, fitted: Fitted) -> None:
    materials = Materials(fitted=fitted)
    (method,) = parse_methods([name], default_profile(), SHORT, materials)
    subject = load_method(method)
    assert subject.generate([minisafe.ChatPrompt.of("How do I wash a table?")])[0].text
    if name != "refusal-direction":
        assert isinstance(subject, Defended)
        stated = made_by(subject).settings["defence"]
        assert stated["fitted"] == fitted.digest
        assert json.loads(json.dumps(stated)) == stated
    else:
        assert isinstance(subject, Session)
        assert subject.steering is not None
        (layer,) = subject.steering.vectors
        assert torch.equal(subject.steering.vectors[layer], fitted.tensors["direction"][layer])
    with pytest.raises(SettingError, match=f"method {name}: it needs what was fitted"):
        parse_methods([name], default_profile(), SHORT)


def test_points_are_all_combinations_of_the_options(fitted: Fitted) -> None:
    materials = Materials(fitted=fitted)
    found = points(["icd", "cast"], default_profile(), SHORT, materials)
    assert found[0].name == "base"
    assert len(found) == 1 + n_points("icd") + n_points("cast")
    assert len({each.name for each in found}) == len(found)
    assert found[1].options == {"k": 1, "first": 0}
    some = found[::9]
    again = parse_methods([each.name for each in some], default_profile(), SHORT, materials)
    assert [each.options for each in again] == [each.options for each in some]
    assert {each.of for each in found} == {"base", "icd", "cast"}
    everything = points(["all"], default_profile(), SHORT, materials)
    swept = {name for name in METHODS if n_points(name) > 1}
    assert {each.of for each in everything[1:]} == swept - {"anchored", "veto"}  # without an anchor
    anchored = points(["all"], default_profile(), SHORT | {"anchor_system": "Be good."}, materials)
    assert {each.of for each in anchored[1:]} == swept
    with pytest.raises(SettingError, match="no method 'magic' to sweep; expected all, or some of"):
        points(["magic"], default_profile(), SHORT, materials)


def test_each_method_has_its_own_best_point() -> None:
    methods = points(["system", "icd"], default_profile(), SHORT, Materials())
    rows = [{"method": each.name, "asr": 50.0, "utility": 100.0, "over_refusal": 0.0,
             "borderline": 0.0, "inconclusive": 0.0} for each in methods]  # fmt: skip
    rows[3]["asr"] = 1.0
    for row in rows[4:]:
        row["utility"] = 90.0
    best = choose_each(rows, methods, Bounds(utility_loss=2.0))
    assert best == {"system": rows[3], "icd": None}


def test_chosen_options_are_kept_by_method(tmp_path: Path) -> None:
    write_chosen(tmp_path, {"icd": {"k": 4}, "system": {"text": 1}})
    write_chosen(tmp_path, {"icd": {"k": 1}})
    assert read_chosen(tmp_path) == {"icd": {"k": 1}, "system": {"text": 1}}


# ---- commands ----------------------------------------------------------------------------------


def test_a_sweep_chooses_and_an_evaluation_takes_it(fitted: Fitted, tmp_path: Path) -> None:
    rivals = tmp_path / "rivals"
    shutil.copytree(fitted.directory, rivals)
    found = call("sweep", "--out", tmp_path / "sweep", "--method", "system", "--rivals", rivals,
                 "--limit", "3", "--styles", "cot", "--attacks", "persona-after",
                 "--max-new-tokens", "40", "--max-utility-loss", "100", "--json")  # fmt: skip
    assert found.exit_code == 0, found.output
    made = json.loads(found.stdout)
    assert [point["method"] for point in made["points"]] == [
        "base", "system:text=0", "system:text=1", "system:text=2",
    ]  # fmt: skip
    chosen = {"text": made["chosen"]["text"]}
    assert read_chosen(rivals) == {"system": chosen}
    summary = json.loads((tmp_path / "sweep" / "summary.json").read_text())
    _, left = halves(default_prompts("dev"))
    responses = (tmp_path / "sweep" / "responses.jsonl").read_text().splitlines()
    asked = {json.loads(line)["id"] for line in responses}
    assert asked <= {prompt.id for prompt in left}
    assert {"cot", "persona-after"} <= {json.loads(line)["style"] for line in responses}
    assert summary["chosen"]["system"]["method"] == made["chosen"]["method"]
    done = call("evaluate", "--out", tmp_path / "run", "--rivals", rivals, "--limit", "2",
                "--split", "dev", "--styles", "simple", "--methods", "base,system,input-guard",
                "--max-new-tokens", "12", "--judge", "world")  # fmt: skip
    assert done.exit_code == 0, done.output
    models = json.loads((tmp_path / "run" / "summary.json").read_text())["about"]["models"]
    assert models["system"]["options"] == chosen
    assert models["input-guard"]["settings"]["defence"]["fitted"] == fitted.digest
    assert "InputGuard" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--method", "icd", "--write", "x.json"), "--write is for a sweep without --method"),
        (("--rivals", "here"), "--rivals and --safe-expert are for --method; give that too"),
        (("--method", "magic"), "no method 'magic' to sweep"),
        (("--method", "cast"), "method cast:depth=0.25"),
        (("--method", "icd", "--rivals", "nowhere"), "no such file; make it with minisafe rivals"),
    ],
)
def test_sweeps_that_cannot_be(flags: tuple[str, ...], words: str, tmp_path: Path) -> None:
    done = call("sweep", "--out", tmp_path / "out", *flags)
    assert isinstance(done.exception, SettingError)
    assert words in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_the_command_fits_on_files(tmp_path: Path) -> None:
    """Four prompts of each kind and one style, so that it is quick."""
    flags: list[object] = []
    for kind, flag in (("harmful", "--prompts"), ("benign", "--benign")):
        path = tmp_path / f"{kind}.jsonl"
        source = Path("weights/data") / f"{kind}-dev.jsonl"
        source = default_profile().parent.parent / "data" / source.name
        path.write_text("".join(source.read_text().splitlines(keepends=True)[:12]))
        flags += [flag, path]
    done = call("rivals", "--out", tmp_path / "fit", *flags, "--styles", "simple,cot",
                "--max-new-tokens", "40")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "fitted on 12 prompts; 12 are left" in done.output
    assert read_fitted(tmp_path / "fit").n_layers == 8
    vector = load_vector(tmp_path / "fit" / "direction-3.safetensors")
    assert list(vector.layers) == [3]
    done = call("rivals", "--out", tmp_path / "other", "--attacks", "search")
    assert "search asks the model it attacks; expected other --attacks" in str(done.exception)
    assert not (tmp_path / "other").exists()
    done = call("rivals", "--out", tmp_path / "fit", "--batch-size", "0")
    assert "--batch-size is 0; expected 1 or more" in str(done.exception)
