"""The state of a training run: a stopped run goes on, and a state that does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from minisafe.errors import CheckpointError
from minisafe.finetune import Trainer, Training
from tests.finetune.test_finetune import EXAMPLES, SHORT, fresh

Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("rank", [0, 2])
def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path: Path, rank: int) -> None:
    training = Training(**{**vars(SHORT), "lora_rank": rank})
    whole = Trainer(fresh(), EXAMPLES, training)
    list(whole.run())
    state = tmp_path / "state.safetensors"
    stopped = Trainer(fresh(), EXAMPLES, training)
    next(iter(stopped.run(state, every=1)))
    again = Trainer(fresh(), EXAMPLES, training)
    reports = list(again.run(state, every=1))
    assert [report.step for report in reports] == [4, 6]
    for name, value in whole.parameters.items():
        assert torch.equal(again.parameters[name], value), name


def test_the_state_of_another_run_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    list(Trainer(fresh(), EXAMPLES, SHORT).run(state))
    other = Training(**{**vars(SHORT), "seed": 1})
    with pytest.raises(CheckpointError, match="other settings"):
        list(Trainer(fresh(), EXAMPLES, other).run(state))
    state.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="cannot be read"):
        list(Trainer(fresh(), EXAMPLES, SHORT).run(state))


def test_state_holds_the_settings_of_its_run(tmp_path: Path) -> None:
    from safetensors import safe_open

    state = tmp_path / "state.safetensors"
    list(Trainer(fresh(), EXAMPLES, SHORT).run(state))
    with safe_open(state, framework="pt") as file:
        assert json.loads(file.metadata()["training"])["steps"] == SHORT.steps
        assert file.metadata()["step"] == "6"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a state after 4 of 6 steps."""
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    run = Trainer(fresh(), EXAMPLES, SHORT).run(path, every=2)
    next(run), next(run)
    with safe_open(path, framework="pt") as file:
        return load_file(path), dict(file.metadata())


def refused(path: Path) -> str:
    trainer = Trainer(fresh(), EXAMPLES, SHORT)
    before = {name: value.detach().clone() for name, value in trainer.parameters.items()}
    with pytest.raises(CheckpointError) as raised:
        list(trainer.run(path))
    assert trainer.loop.step == 0
    assert not trainer.loop.optimizers[0].state
    for name, value in trainer.parameters.items():
        assert torch.equal(value, before[name])  # nothing is taken of what is refused
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": None}, "its step is ''; expected 1 to 6"),
        ({"step": "x"}, "its step is 'x'"),
        ({"step": "-1"}, "its step is '-1'"),
        ({"step": "0"}, "its step is '0'"),
        ({"step": "7"}, "its step is '7'; expected 1 to 6"),
        ({"step": "9" * 5000}, "its step is '999"),
        ({"step": "٤"}, "its step is '٤'"),
        ({"step": "3"}, "is not its step, 3"),
        ({"training": "{}"}, "other settings"),
        ({"training": None}, "other settings"),
        ({"data": "0123"}, "other conversations"),
        ({"base": None}, "another base"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(
    tmp_path: Path,
    written: tuple[dict[str, Tensor], dict[str, str]],
    changes: dict[str, str | None],
    message: str,
) -> None:
    tensors, metadata = written
    merged = {key: value for key, value in (metadata | changes).items() if value is not None}
    save_file(tensors, tmp_path / "state.safetensors", merged)
    assert message in refused(tmp_path / "state.safetensors")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (f"parameter.{Q}.lora_A", lambda x: x * float("nan"), "has NaN"),
        (f"optimizer.exp_avg.{Q}.lora_A", lambda x: x + float("inf"), "has NaN or infinite"),
        (f"optimizer.exp_avg_sq.{Q}.lora_B", lambda x: x - 1, "values below 0"),
        (f"optimizer.step.{Q}.lora_B", lambda x: x + 1, "is not its step, 4"),
        (f"optimizer.step.{Q}.lora_B", lambda x: x * float("nan"), "has NaN"),
        (f"optimizer.step.{Q}.lora_B", lambda x: x[None], "expected torch.float32 ()"),
        (f"parameter.{Q}.lora_A", lambda x: x[:2], "expected torch.float32 (4, 32)"),
        (f"parameter.{Q}.lora_A", lambda x: x.half(), "is torch.float16 (4, 32)"),
        (f"parameter.{Q}.lora_A", lambda x: x.to(torch.int32), "is torch.int32"),
        (f"optimizer.exp_avg.{Q}.lora_A", None, f"lacks optimizer.exp_avg.{Q}.lora_A"),
        (f"parameter.{Q}.lora_B", None, f"lacks parameter.{Q}.lora_B"),
        ("parameter.other", lambda x: torch.ones(2), "it holds parameter.other"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path,
    written: tuple[dict[str, Tensor], dict[str, str]],
    name: str,
    change,
    message: str,
) -> None:
    tensors, metadata = dict(written[0]), written[1]
    old = tensors.pop(name, torch.empty(0))
    if change is not None:
        tensors[name] = change(old).contiguous()
    save_file(tensors, tmp_path / "state.safetensors", metadata)
    assert message in refused(tmp_path / "state.safetensors")


def test_other_conversations_or_another_base_are_another_run(
    tmp_path: Path, written: tuple[dict[str, Tensor], dict[str, str]]
) -> None:
    path = tmp_path / "state.safetensors"
    save_file(written[0], path, written[1])
    with pytest.raises(CheckpointError, match="other conversations"):
        list(Trainer(fresh(), EXAMPLES[::-1], SHORT).run(path))
    other = fresh()
    other.norm.weight.data.add_(1)
    with pytest.raises(CheckpointError, match="another base"):
        list(Trainer(other, EXAMPLES, SHORT).run(path))
    assert [each.step for each in Trainer(fresh(), EXAMPLES, SHORT).run(path)] == [6]
