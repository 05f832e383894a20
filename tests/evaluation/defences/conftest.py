"""What is fitted on a few development prompts of the shipped world."""

from __future__ import annotations

import pytest

import minisafe
from minisafe.evaluation.defences.fitted import Fitted, save_fitted
from minisafe.evaluation.fitting import Fitting, fit
from minisafe.evaluation.judges.world import WorldJudge
from minisafe.evaluation.prompts import default_prompts, halves
from minisafe.evaluation.prompts.styles import load_styles
from minisafe.session import Session


@pytest.fixture(scope="package")
def plain() -> Session:
    """The shipped base without any safety stage."""
    return minisafe.load(overrides={"dtype": "float32", "max_new_tokens": 24, "safe": False})


@pytest.fixture(scope="package")
def fitting(plain: Session) -> Fitting:
    used, _ = halves(default_prompts("dev", 22))
    return Fitting(plain, used, load_styles(["simple", "instruction"]), WorldJudge())


@pytest.fixture(scope="package")
def fitted(fitting: Fitting, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    made = fit(fitting, tmp_path_factory.mktemp("rivals"))
    save_fitted(made)
    return made
