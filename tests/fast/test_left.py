"""The weight on the left gives the products that `F.linear` gives."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from minisafe.fast import left as module
from minisafe.fast.left import LeftLinear, linear
from minisafe.fast.llama import FastLlama
from minisafe.fast.prepare import quicken
from minisafe.fast.race import FEW_ROWS
from minisafe.lora import AdaptedRows
from minisafe.model import Llama
from tests.support.tiny import random_adapter, random_ids, random_model, tiny_config


@pytest.mark.parametrize("rows", [1, 2, 3, FEW_ROWS])
@pytest.mark.parametrize("bias", [False, True])
def test_weight_on_the_left_equals_f_linear(
    monkeypatch: pytest.MonkeyPatch, rows: int, bias: bool
) -> None:
    monkeypatch.setattr(module, "has_amx", lambda: True)
    monkeypatch.setattr(module, "MIN_WEIGHTS", 0)
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 1, 96, generator=generator).bfloat16()
    weight = torch.randn(40, 96, generator=generator).bfloat16()
    offset = torch.randn(40, generator=generator).bfloat16() if bias else None
    with torch.inference_mode():
        y = linear(x, weight, offset)
        expected = F.linear(x, weight, offset)
    # sums of 96 products in float32, rounded to bf16 once or (with a bias) twice
    torch.testing.assert_close(y, expected, atol=0.1 if bias else 0.05, rtol=2**-7)
    assert y.shape == expected.shape
    assert y.is_contiguous()  # else the next product of two rows is a slow batch of two
    exact = F.linear(x.double(), weight.double(), None if offset is None else offset.double())
    assert (y.double() - exact).abs().max() <= 2 * (expected.double() - exact).abs().max() + 0.05


def test_it_is_used_only_for_few_rows_of_bf16_without_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[int] = []
    border = [FEW_ROWS]  # up to where it won its races
    real = torch.mm
    monkeypatch.setattr(module, "has_amx", lambda: True)
    monkeypatch.setattr(module, "left_rows", lambda shape: border[0])
    monkeypatch.setattr(torch, "mm", lambda a, b: used.append(b.shape[1]) or real(a, b))
    weight = torch.randn(8, 16).bfloat16()
    with torch.inference_mode():
        linear(torch.randn(2, 16).bfloat16(), weight, None)
        monkeypatch.setattr(module, "MIN_WEIGHTS", 0)
        linear(torch.randn(FEW_ROWS + 1, 16).bfloat16(), weight, None)
        linear(torch.randn(2, 16), weight.float(), None)
        assert used == []
        linear(torch.randn(1, 16).bfloat16(), weight, None)
        assert used == [2]  # one row goes as two alike
        border[0] = 1
        linear(torch.randn(2, 16).bfloat16(), weight, None)
        assert used == [2]
        border[0] = FEW_ROWS
    linear(torch.randn(2, 16).bfloat16(), weight, None)
    assert used == [2]


def quickened(monkeypatch: pytest.MonkeyPatch, model: Llama) -> Llama:
    """A copy whose weights, however small, go left."""
    monkeypatch.setattr(module, "has_amx", lambda: True)
    monkeypatch.setattr(module, "MIN_WEIGHTS", 0)
    found = copy.deepcopy(model)
    quicken(found)
    assert isinstance(found, FastLlama)
    return found


def test_a_bf16_model_decodes_alike_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(tiny_config(qkv_bias=True), seed=2, dtype=torch.bfloat16)
    left = quickened(monkeypatch, model)
    assert (
        sum(isinstance(each, LeftLinear) for each in left.modules())
        == 7 * model.config.n_layers + 1
    )
    for name, tensor in model.tensors().items():
        assert torch.equal(left.tensors()[name], tensor)
    ids = random_ids(model, 2, 3)
    with torch.inference_mode():
        expected, found = model(ids), left(ids)
    spread = float(expected.float().std())
    assert float((found - expected).float().abs().max()) < 0.1 * spread


def test_elsewhere_nothing_goes_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_amx", lambda: False)
    found = copy.deepcopy(random_model(tiny_config(), dtype=torch.bfloat16))
    quicken(found)
    assert not any(isinstance(each, LeftLinear) for each in found.modules())


@pytest.mark.parametrize("left", [False, True])
@torch.inference_mode()
def test_two_rows_read_each_weight_once(monkeypatch: pytest.MonkeyPatch, left: bool) -> None:
    """A tied head and a delta after a product with the weight on the left: a matrix with odd
    strides would make torch multiply row by row, on a copy of the weight for each."""
    model = random_model(tiny_config(tied=True), dtype=torch.bfloat16)
    if left:
        model = quickened(monkeypatch, model)
    applied = (AdaptedRows(random_adapter(model), slice(1, 2)),)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        model(random_ids(model, 2, 1), adapters=applied)
    assert "aten::bmm" not in {event.key for event in seen.key_averages()}
