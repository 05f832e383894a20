"""How far two distributions are apart, by hand and against torch's own."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from minisafe.divergence import kl


def test_kl_by_hand() -> None:
    log_p = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0], [0.5, 0.5, 0.0]]).log()
    log_q = torch.tensor([[0.25, 0.75, 0.0], [0.25, 0.25, 0.5], [1.0, 0.0, 0.0]]).log()
    first = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    expected = torch.tensor([first, 0.75 * math.log(3), math.inf])
    torch.testing.assert_close(kl(log_p, log_q), expected)
    assert kl(log_q[0], log_q[0]) == 0


def test_kl_and_its_gradient_are_those_of_torch() -> None:
    torch.manual_seed(0)
    log_p = F.log_softmax(torch.randn(4, 9), -1)
    scores = torch.randn(4, 9, requires_grad=True)
    log_q = F.log_softmax(scores, -1)
    expected = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    torch.testing.assert_close(kl(log_p, log_q).mean(), expected)
    (found,) = torch.autograd.grad(kl(log_p, log_q).mean(), scores, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(expected, scores)[0])
