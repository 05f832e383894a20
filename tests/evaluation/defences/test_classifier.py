"""Logistic regression: its minimum, its scaling, its balance."""

from __future__ import annotations

import pytest
import torch

from minisafe.evaluation.defences.classifier import STRENGTH, fit, named


def drawn(n: int, at: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator) + torch.tensor([at, 0.0, 0.0])


def test_it_separates_and_repeats() -> None:
    one, other = fit(drawn(40, 3.0, 0), drawn(40, -3.0, 1)), fit(drawn(40, 3.0, 0),
                                                                drawn(40, -3.0, 1))  # fmt: skip
    assert torch.equal(one.weight, other.weight)
    assert one.probability(torch.tensor([3.0, 0.0, 0.0])) > 0.9
    assert one.probability(torch.tensor([-3.0, 0.0, 0.0])) < 0.1
    assert one.weight[0] > 5 * one.weight[1:].abs().max()
    again = named(one.tensors("x"), "x")
    assert again.probability(torch.ones(3)) == one.probability(torch.ones(3))


def test_both_classes_weigh_alike_however_many_there_are() -> None:
    found = fit(drawn(10, 1.0, 0), drawn(10, 1.0, 0).repeat(9, 1) * -1)
    middle = found.probability(torch.zeros(3))
    assert middle == pytest.approx(0.5, abs=0.02)


def test_a_feature_that_never_varies_has_no_effect() -> None:
    positive, negative = drawn(20, 2.0, 0), drawn(20, -2.0, 1)
    positive[:, 2] = negative[:, 2] = 7.0
    found = fit(positive, negative)
    x = torch.tensor([1.0, 0.5, 7.0])
    assert found.probability(x) == found.probability(x + torch.tensor([0.0, 0.0, 100.0]))


def test_the_gradient_is_zero_at_what_was_found() -> None:
    positive, negative = drawn(30, 1.0, 0), drawn(15, -1.0, 1)
    found = fit(positive, negative)
    gradient = 2 * STRENGTH * found.weight
    for rows, label in ((positive, 1.0), (negative, 0.0)):
        scaled = (rows - found.mean) / found.spread
        missed = (scaled @ found.weight + found.bias).sigmoid() - label
        gradient = gradient + 0.5 / len(rows) * missed @ scaled
    assert gradient.abs().max() < 1e-5
