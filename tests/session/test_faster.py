"""Fast paths: each setting's value has one, and `put_in` takes the one that is asked for."""

from __future__ import annotations

import pytest

from minisafe.linear import WEIGHTS
from minisafe.lockstep import Stream
from minisafe.model import Llama
from minisafe.session.faster import FAST_PATHS, put_in
from tests.support.tiny import random_model, tiny_config


def test_every_value_has_a_path() -> None:
    assert set(FAST_PATHS) == {*WEIGHTS, "compile"}


def test_plain_models_stay_as_they_are() -> None:
    model = random_model(tiny_config())
    modules = [(each, type(each)) for each in model.modules()]
    put_in((Stream(model),), "plain", compiled=False)
    assert type(model) is Llama
    assert [(each, type(each)) for each in model.modules()] == modules


def test_weights_are_stored_as_asked() -> None:
    model, other = random_model(tiny_config()), random_model(tiny_config(), 1)
    put_in((Stream(model), Stream(other), Stream(model)), "int8", compiled=False)
    assert model.weights == other.weights == "int8"


@pytest.mark.parametrize(
    ("weights", "compiled", "path"),
    [("auto", False, "auto"), ("packed", False, "packed"), ("auto", True, "compile")],
)
def test_one_path_is_taken(
    monkeypatch: pytest.MonkeyPatch, weights: str, compiled: bool, path: str
) -> None:
    taken, streams = [], (Stream(random_model(tiny_config())),)
    for name in FAST_PATHS:
        put = lambda given, name=name: taken.append((name, given))  # noqa: E731
        monkeypatch.setitem(FAST_PATHS, name, put)
    put_in(streams, weights, compiled)
    assert taken == [(path, streams)]
