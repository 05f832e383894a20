"""The flags that commands share: each command offers those that it reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import minisafe
from minisafe.checkpoint import load_model
from minisafe.cli import cli, commands
from minisafe.cli.finetune import load_base
from minisafe.errors import BadInput, SettingError
from minisafe.tokenizer import parse_option
from tests.support.worlds import World

pytest_plugins = ["tests.support.world_fixtures"]
BASE = {"profile", "base", "dtype", "device", "threads"}
OF_DECODING = [
    ["--safe"], ["--no-safe"], ["--expert", "e"], ["--expert-system", "x"], ["--vector", "v"],
    ["--edit", "e"], ["--sa-layer", "1"], ["--sa-scale", "1"], ["--sgds-lambda", "0.5"],
    ["--margin", "0"], ["--gate"], ["--rule", "sgds"], ["--speculate", "0"], ["--weights", "int8"],
    ["--cache-dtype", "int8"], ["--compile"], ["--compiled", "d"], ["--system", "x"],
    ["--temperature", "0"],
]  # fmt: skip
OF_A_VECTOR = ("--edit", "--expert", "--expert-system", "--sa-layer", "--sa-scale", "--system")
EDIT = ["edit", "--subject", "fox", "--prompt", "The {}", "--target", "ran"]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train(world: World, tmp_path: Path, *flags: str) -> Result:
    pairs = tmp_path / "pairs.json"
    pairs.write_text(json.dumps([{"input": "Who?", "output": "Me."}] * 4))
    given = ["--base", world.base, "--out", tmp_path / "out", "--steps", "1", "--batch-size", "2"]
    return CliRunner().invoke(cli, ["finetune", str(pairs), *map(str, given), *flags])


@pytest.mark.parametrize("flag", OF_DECODING, ids=lambda flag: flag[0])
def test_flags_of_decoding_are_refused_where_nothing_is_decoded(
    world: World, tmp_path: Path, flag: list[str]
) -> None:
    """They were taken once, and nothing came of them."""
    edited = [*EDIT, "--base", str(world.base), "--out", str(tmp_path / "out"), *flag]
    outcomes = [train(world, tmp_path, *flag), CliRunner().invoke(cli, edited)]
    if flag[0] not in OF_A_VECTOR:
        made = ["amplify", "d.json", "--out", str(tmp_path / "out"), *flag]
        outcomes.append(CliRunner().invoke(cli, made))
    for outcome in outcomes:
        assert outcome.exit_code == 2
        # click's words differ from version to version
        assert re.search(rf"No such option:? '?{flag[0]}\b", outcome.output), outcome.output
    assert not (tmp_path / "out").exists()


def test_what_the_commands_share() -> None:
    """Every command that decodes accepts all of them."""
    offered = {
        command.name: {each.name for each in command.params if not each.expose_value}
        for command in commands()
    }
    assert {"safe", "expert", "sgds_lambda", "temperature"} | BASE <= offered["generate"]
    assert offered["generate"] == offered["chat"] == offered["evaluate"]
    amplify = {"edit", "expert", "expert_system", "sa_layer", "sa_scale", "allow_padding", "system"}
    amplify |= {"template_options"}
    assert offered["amplify"] & offered["generate"] == BASE | amplify | {"seed"}
    for name in ("edit", "finetune"):
        assert offered[name] & offered["generate"] == BASE | {"seed"}


def test_a_base_is_loaded_as_its_flags_say(world: World, threads: None) -> None:
    model = load_base(world.base, {"dtype": "bfloat16", "device": "cpu", "threads": 1})
    assert model.dtype == torch.bfloat16
    assert torch.get_num_threads() == 1
    assert load_base(world.base, {"dtype": None}).dtype == load_model(world.base).dtype
    with pytest.raises(SettingError, match="threads is 0; expected 1 or more"):
        load_base(world.base, {"threads": 0})
    with pytest.raises(SettingError, match="device 'moon' cannot be used"):
        load_base(world.base, {"device": "moon"})


def test_training_takes_the_threads_that_it_is_given(
    world: World, tmp_path: Path, threads: None
) -> None:
    torch.set_num_threads(2)
    outcome = train(world, tmp_path, "--threads", "1")
    assert outcome.exit_code == 0, outcome.output
    assert torch.get_num_threads() == 1


# ---- template options --------------------------------------------------------------------------

TEMPLATE = (
    "{% for m in messages %}{{ m.content }}<|eot|>{% endfor %}"
    "{{ 'thinking' if enable_thinking else 'not' }} {{ depth }}{{ language }}"
)


@pytest.fixture
def optional(world: World, tmp_path: Path) -> Path:
    """A copy of the base whose chat template has options."""
    base = world.copy(world.base, tmp_path)
    (base / "chat_template.jinja").write_text(TEMPLATE)
    return base


def test_template_options_by_flag_profile_and_override(optional: Path, tmp_path: Path) -> None:
    def prompt(*flags: str) -> int:
        given = ["generate", "--chat", "--json", "--max-new-tokens", "1", "x"]
        outcome = CliRunner().invoke(cli, [*given, *map(str, flags)])
        assert outcome.exit_code == 0, outcome.output
        return int(json.loads(outcome.stdout)["prompt_tokens"])

    plain = prompt("--base", str(optional))
    flags = ("--template-option", "enable_thinking=true", "--template-option", "depth=3")
    assert prompt("--base", str(optional), *flags) != plain
    profile = {"minisafe_profile": 1, "base": "base", "template_options": {"depth": 12}}
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    assert optional == tmp_path / "base"
    assert prompt("--profile", str(tmp_path)) == plain + 2
    assert prompt("--profile", str(tmp_path), "--template-option", "depth=123") == plain + 3
    session = minisafe.load(tmp_path, {"template_options": {"enable_thinking": True}})
    assert session.tokenizer.render([{"role": "user", "content": "x"}]) == "x<|eot|>thinking "


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["depth"], "'depth' has no value; expected NAME=VALUE"),
        (["=3"], "'' is not a valid name"),
        (["messages=3"], "'messages' is reserved"),
        (["depth=1", "depth=2"], "'depth' is given twice"),
        (["dept=1"], "does not read the option 'dept'; it reads depth, enable_thinking, language"),
        (["depth=\udc80"], "--template-option is not valid UTF-8"),
    ],
)
def test_template_options_that_are_refused(optional: Path, flags: list[str], says: str) -> None:
    given = [each for flag in flags for each in ("--template-option", flag)]
    command = ["generate", "--chat", "x", "--base", str(optional), *given]
    outcome = CliRunner().invoke(cli, command)
    assert isinstance(outcome.exception, BadInput)
    assert says in str(outcome.exception)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([1], "template_options is [1]; expected"),
        ({"bos_token": "x"}, "'bos_token' is reserved"),
        ({"a": [1]}, "the template option a is a list; expected true, false, a number"),
    ],
)
def test_template_options_of_a_profile_that_are_refused(
    optional: Path, given: object, says: str
) -> None:
    profile = {"minisafe_profile": 1, "base": "base", "template_options": given}
    (optional.parent / "profile.json").write_text(json.dumps(profile))
    with pytest.raises(SettingError, match=f"profile.json: .*{re.escape(says)}"):
        minisafe.load(optional.parent)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True), ("False", False), ("null", None), ("3", 3), ("-1.5", -1.5), ("1e3", 1000.0),
        ("", ""), ("de", "de"), ('"3"', "3"), ('"a', '"a'), ("a=b", "a=b"), ("nan", "nan"),
        ("9" * 30, "9" * 30), ('"\\"', '"\\"'),
    ],
)  # fmt: skip
def test_values_of_template_options(text: str, value: object) -> None:
    name, found = parse_option(f"a={text}")
    assert (name, found, type(found)) == ("a", value, type(value))
