"""The flags that commands share: each command offers those that it reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from worlds import World

from minisafe.checkpoint import load_model
from minisafe.cli import COMMANDS, cli
from minisafe.cli.finetune import load_base
from minisafe.errors import SettingError

pytest_plugins = ["world_fixtures"]
BASE = {"profile", "base", "dtype", "device", "threads"}
OF_DECODING = [
    ["--safe"], ["--no-safe"], ["--expert", "e"], ["--expert-system", "x"], ["--vector", "v"],
    ["--edit", "e"], ["--sa-layer", "1"], ["--sa-scale", "1"], ["--sgds-lambda", "0.5"],
    ["--margin", "0"], ["--gate"], ["--rule", "sgds"], ["--speculate", "0"], ["--weights", "int8"],
    ["--cache-dtype", "int8"], ["--compile"], ["--system", "x"], ["--temperature", "0"],
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
    """Whatever decodes takes all of it."""
    offered = {
        command.name: {each.name for each in command.params if not each.expose_value}
        for command in COMMANDS
    }
    assert {"safe", "expert", "sgds_lambda", "temperature"} | BASE <= offered["generate"]
    assert offered["generate"] == offered["chat"] == offered["evaluate"]
    amplify = {"edit", "expert", "expert_system", "sa_layer", "sa_scale", "allow_padding", "system"}
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
