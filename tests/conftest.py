"""What every test shares: one thread, a repeatable hypothesis, tiny models, the story model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from minisafe.checkpoint import save_model
from minisafe.model import Llama
from tests.support.tiny import random_model, tiny_config

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)

# `local` draws new examples at every run; `ci` the same ones always, so that a red run repeats.
for name, derandomize in (("local", False), ("ci", True)):
    settings.register_profile(
        name,
        deadline=None,
        max_examples=15,
        derandomize=derandomize,
        database=None,
        print_blob=not derandomize,
        suppress_health_check=[HealthCheck.too_slow],
    )
# `mutants` does not look for the smallest example: that one fails is all that is asked
settings.register_profile(
    "mutants", settings.get_profile("ci"), phases=(Phase.explicit, Phase.generate)
)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "local")
)


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Llama]:
    """`tiny_model(n_layers=3, tied=True, seed=1)`: a random Llama of that config."""

    def make(*, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: object) -> Llama:
        return random_model(tiny_config(**overrides), seed, dtype)

    return make


@pytest.fixture
def model_directory(tmp_path: Path) -> Callable[..., Path]:
    """`model_directory(model, "name")`: the model written as a Hugging Face directory."""

    def write(model: Llama, name: str = "model", extra: dict[str, object] | None = None) -> Path:
        save_model(model, tmp_path / name, extra)
        return tmp_path / name

    return write


@pytest.fixture(scope="session")
def story() -> Path:
    """The small story-telling checkpoint that lies beside the repository on some machines."""
    directory = ROOT.parent / "shared" / "models" / "story"
    if not directory.is_dir():
        pytest.skip("the story checkpoint is not beside this repository")
    return directory


@pytest.fixture
def base(tiny_model: Callable[..., Llama]) -> Llama:
    """A random Llama of 2 layers with untied heads."""
    return tiny_model()


@pytest.fixture
def directory(base: Llama, model_directory: Callable[..., Path]) -> Path:
    """The same as a good float32 directory, to be spoilt."""
    return model_directory(base)
