"""The probe of how every stream would begin to answer, and the logistic regression behind it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minisafe.errors import SettingError
from minisafe.logistic import fit
from minisafe.probe import Probe, features, fit_probe, stacked


def drawn(n: int, shift: Tensor, seed: int) -> Tensor:
    """Log-probabilities (n, 2, 6) around a mean that `shift` (2, 6) moves."""
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(torch.randn(n, 2, 6, generator=generator) + shift, dim=-1)


REFUSES = torch.tensor(
    [[4.0, 0, 0, 0, 0, 0], [0, 0, 0, 4.0, 0, 0]]
)  # the base; the expert complies
COMPLIES = torch.tensor([[0, 0, 0, 4.0, 0, 0], [0, 0, 0, 4.0, 0, 0]])


def test_it_tells_texts_apart_that_the_base_would_refuse() -> None:
    probe = fit_probe(features(drawn(40, REFUSES, 0)), features(drawn(60, COMPLIES, 1)))
    assert bool((probe.harm(drawn(50, REFUSES, 2)) > 0.5).all())
    assert bool((probe.harm(drawn(50, COMPLIES, 3)) < 0.5).all())


def test_harm_is_the_logistic_function_of_square_roots() -> None:
    """Against the definition, term by term."""
    probe = Probe(
        torch.randn(2, 6, generator=torch.Generator().manual_seed(4)), torch.tensor([0.3])
    )
    (log_probs,) = drawn(1, REFUSES, 5)
    score = 0.3 + sum(
        float(probe.weight[s, v]) * math.sqrt(math.exp(float(log_probs[s, v])))
        for s in range(2)
        for v in range(6)
    )
    assert float(probe.harm(log_probs[None])) == pytest.approx(1 / (1 + math.exp(-score)), abs=1e-6)


def test_a_token_that_cannot_come_counts_as_zero() -> None:
    log_probs = torch.full((1, 2, 6), -math.inf)
    log_probs[:, :, 0] = 0.0
    probe = Probe(torch.ones(2, 6), torch.zeros(1))
    assert float(probe.harm(log_probs)) == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-6)


def test_streams_are_stacked_by_row() -> None:
    base, expert = torch.zeros(3, 5), torch.ones(3, 5)
    found = stacked([base, None, expert])
    assert found.shape == (3, 2, 5)
    assert bool((found[:, 1] == 1).all())


def test_few_examples_are_refused() -> None:
    with pytest.raises(SettingError, match="7 harmless examples to fit a probe on; expected 8"):
        fit_probe(drawn(9, REFUSES, 0), drawn(7, COMPLIES, 1))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 20), st.sampled_from([1e-3, 1e-1]))
def test_the_weights_are_the_minimum(n: int, m: int, f: int, strength: float) -> None:
    """The gradient of the stated loss is zero there, by autograd."""
    generator = torch.Generator().manual_seed(n * 100 + m * 10 + f)
    one = torch.randn(n, f, generator=generator, dtype=torch.float64) + 0.5
    other = torch.randn(m, f, generator=generator, dtype=torch.float64)
    weight, bias = fit(one, other, strength)
    w, c = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    losses = [
        torch.nn.functional.softplus(sign * (x @ w + c)).mean()
        for sign, x in ((-1, one), (1, other))
    ]
    mean = torch.cat([one, other]).mean(dim=0)
    constant = (c + mean @ w) / 10.0  # the weight of the constant feature, hardly penalised
    loss = (losses[0] + losses[1]) / 2 + strength * ((w * w).sum() + (constant**2).sum())
    loss.backward()  # type: ignore[no-untyped-call]
    assert w.grad is not None
    assert c.grad is not None
    assert float(w.grad.abs().max()) < 1e-5
    assert float(c.grad.abs().max()) < 1e-5
