"""The training of the shipped weights: Muon, and a run that was stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from minisafe.errors import CheckpointError
from minisafe.model import Llama

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
if not (WEIGHTS / "train.py").is_file():
    pytest.skip("the weights' scripts are not here", allow_module_level=True)
sys.path.insert(0, str(WEIGHTS))

import lexicon  # noqa: E402
import train  # noqa: E402
from world import Turn  # noqa: E402

SETTINGS = train.Settings(batch_tokens=24, lr=3e-3, warmup=2, muon=0.02)
DOCUMENTS = [
    train.Encoded(tuple(range(1, 4 + n % 5)), (0.0, *(0.1 if n % 2 else 1.0,) * (2 + n % 5)))
    for n in range(24)
]


class Stopped(Exception):
    """Raised in the middle of a run."""


def small() -> Llama:
    """A model of the shipped shape that knows few words."""
    model = Llama(train.config(16))
    train.initialise(model, 0)
    return model


def trained(state: Path, settings: train.Settings = SETTINGS, stop: int = 0) -> Llama:
    """A model after a run that is stopped after so many steps, with 0 after its end."""
    model = small()

    original: Callable[..., None] = train.Loop.save

    def save(loop: train.Loop, path: Path) -> None:
        original(loop, path)
        if loop.step == stop:
            raise Stopped

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train.Loop, "save", save)
        with pytest.raises(Stopped) if stop else nullcontext():
            train.train("a", model, DOCUMENTS, settings, state, save_every=1, say=lambda _: None)
    return model


def test_a_stopped_run_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole.safetensors")
    state = tmp_path / "state.safetensors"
    trained(state, stop=3)
    again = trained(state)
    before = dict(small().named_parameters())
    for (name, one), two in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two), name
        assert not torch.equal(one, before[name]), name


def test_a_state_of_other_settings_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    trained(state, stop=1)
    with pytest.raises(CheckpointError, match="other settings"):
        trained(state, train.Settings(**{**vars(SETTINGS), "muon": 0.01}))


def test_an_orthogonal_step_has_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 8, 4), (2, 4, 8)):
        values = torch.linalg.svdvals(train.orthogonal(torch.randn(shape)))
        assert values.min() > 0.3
        assert values.max() < 1.6


def test_only_what_is_to_be_learned_has_weight() -> None:
    """Neither a history nor what an answer was begun with; and no token is lost."""
    tokenizer = lexicon.train_tokenizer(["Do it? No, I will not. First, make a plan."] * 50)
    turns = (
        Turn("Do it?", "First, make a plan.", "harmful", "", learned=False),
        Turn("Do it?", " No, I will not.", "harmful", "", begun="First, make"),
    )
    (encoded,) = train.encode(tokenizer, [train.Document("", turns)], user=0.0)
    learned = [i for i, weight in zip(encoded.ids, encoded.weights, strict=True) if weight]
    assert tokenizer.decode(learned, skip_special_tokens=False) == " No, I will not.<|end|>"
    text = tokenizer.decode(encoded.ids, skip_special_tokens=False)
    assert text.endswith("<|user|>Do it?<|end|><|assistant|>First, make No, I will not.<|end|>")
