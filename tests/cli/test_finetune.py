"""`minisafe finetune`: how long it trains, what it leaves out, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from minisafe.checkpoint import load_adapter, load_model
from minisafe.cli import cli
from minisafe.errors import BadInput, CheckpointError, PromptError, SettingError
from tests.support.worlds import World

pytest_plugins = ["tests.support.world_fixtures"]
ROWS = [{"instruction": "Who?", "input": "", "output": "Me."}] * 8


def train(world: World, tmp_path: Path, *flags: str, rows: Any = ROWS) -> Result:
    pairs = tmp_path / "pairs.json"
    pairs.write_text(json.dumps(rows))
    given = ["--base", world.base, "--out", tmp_path / "out", "--batch-size", "2", "--held-out", 0]
    return CliRunner().invoke(cli, ["finetune", str(pairs), *map(str, given), "--json", *flags])


def steps(outcome: Result) -> int:
    assert outcome.exit_code == 0, outcome.output
    last: int = json.loads(outcome.stdout.splitlines()[-1])["step"]
    return last


def test_epochs_in_place_of_steps(world: World, tmp_path: Path) -> None:
    assert steps(train(world, tmp_path, "--epochs", "0.5")) == 2
    assert steps(train(world, tmp_path, "--epochs", "2", "--accumulate", "2")) == 4
    adapter = load_adapter(tmp_path / "out", load_model(world.base))
    assert not adapter.is_zero


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (("--epochs", "1", "--steps", "3"), SettingError, "--steps with --epochs"),
        (("--epochs", "0"), SettingError, "epochs is 0.0"),
        (("--epochs", "nan"), SettingError, "epochs is nan"),
        (("--max-length", "4"), PromptError, "max_length 4, so nothing would be learned; expected"),
        (("--lora-targets", "q_proj,v_prj"), SettingError, "lora_targets has 'v_prj'"),
        (("--lora-targets", " , "), SettingError, "lora_targets is ()"),
    ],
)
def test_wrong_use_is_named_and_writes_nothing(
    world: World, tmp_path: Path, flags: tuple[str, ...], error: type[BadInput], message: str
) -> None:
    outcome = train(world, tmp_path, *flags)
    assert isinstance(outcome.exception, error)
    assert message in str(outcome.exception)
    assert not (tmp_path / "out").exists()


def test_what_is_cut_off_is_told(world: World, tmp_path: Path) -> None:
    long = {"instruction": "Who is there? " * 40, "input": "", "output": "Me."}
    outcome = train(world, tmp_path, "--steps", "1", "--max-length", "60", rows=[*ROWS, long])
    assert steps(outcome) == 1
    assert "1 of 9 examples have no answer within --max-length 60" in outcome.stderr


def test_a_damaged_state_is_refused_and_left_there(world: World, tmp_path: Path) -> None:
    state = tmp_path / "out" / "state.safetensors"
    state.parent.mkdir()
    save_file({"parameter.x": load_file(world.vector)["layer.1"]}, state, {"step": "7"})
    before = state.read_bytes()
    outcome = train(world, tmp_path, "--steps", "1")
    assert isinstance(outcome.exception, CheckpointError)
    assert "run with other settings; remove it to start again" in str(outcome.exception)
    assert state.read_bytes() == before
    assert [each.name for each in state.parent.iterdir()] == [state.name]
