"""Projections: the weight on the left gives the products that `F.linear` gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import random_adapter, random_ids, random_model, tiny_config

from minisafe import linear as module
from minisafe.linear import FEW_ROWS, linear
from minisafe.lora import Applied


class Nothing:
    """A step without adapters."""

    adapters = ()


@pytest.mark.parametrize("rows", [1, 2, 3, FEW_ROWS])
@pytest.mark.parametrize("bias", [False, True])
def test_weight_on_the_left_equals_f_linear(
    monkeypatch: pytest.MonkeyPatch, rows: int, bias: bool
) -> None:
    monkeypatch.setattr(module, "has_amx", lambda: True)
    monkeypatch.setattr(module, "LARGE", 0)
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
        monkeypatch.setattr(module, "LARGE", 0)
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


def test_a_bf16_model_decodes_alike_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(tiny_config(), seed=2, dtype=torch.bfloat16)
    ids = random_ids(model, 2, 3)
    monkeypatch.setattr(module, "LARGE", 0)
    with torch.inference_mode():
        monkeypatch.setattr(module, "has_amx", lambda: False)
        plain = model(ids)
        monkeypatch.setattr(module, "has_amx", lambda: True)
        left = model(ids)
    spread = float(plain.float().std())
    assert float((left - plain).float().abs().max()) < 0.1 * spread


def test_joined_parts_stand_side_by_side() -> None:
    model = random_model(tiny_config(qkv_bias=True))
    qkv = model.layers[0].self_attn.qkv  # type: ignore[union-attr]
    x = torch.randn(2, 3, model.config.hidden, generator=torch.Generator().manual_seed(0))
    parts = qkv(x, Nothing())  # type: ignore[operator]
    assert [part.shape[-1] for part in parts] == list(qkv.sizes.values())  # type: ignore[union-attr]
    assert torch.equal(qkv.joined(x, Nothing()), torch.cat(parts, dim=-1))  # type: ignore[operator, union-attr]
    assert torch.equal(parts[1], F.linear(x, qkv.weights[1], qkv.biases[1]))  # type: ignore[index, union-attr]


@pytest.mark.parametrize("few", [False, True])
@torch.inference_mode()
def test_two_rows_read_each_weight_once(monkeypatch: pytest.MonkeyPatch, few: bool) -> None:
    """A tied head and a delta after a product with the weight on the left: a matrix with odd
    strides would make torch multiply row by row, on a copy of the weight for each."""
    monkeypatch.setattr(module, "has_amx", lambda: few)
    monkeypatch.setattr(module, "LARGE", 0)
    model = random_model(tiny_config(tied=True), dtype=torch.bfloat16)
    applied = (Applied(random_adapter(model), slice(1, 2)),)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        model(random_ids(model, 2, 1), adapters=applied)
    assert "aten::bmm" not in {event.key for event in seen.key_averages()}


def test_a_part_alone_is_what_the_projection_gives() -> None:
    """`joined` of one part: its output, adapters and all, not a copy beside others."""
    model = random_model(tiny_config(o_bias=True), 0)
    o = model.layers[0].self_attn.o  # type: ignore[union-attr]
    x = torch.randn(2, 3, o.in_features, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type, union-attr]
    step = Nothing()
    step.adapters = (Applied(random_adapter(model, 0), slice(1, 2)),)  # type: ignore[assignment]
    (alone,) = o(x, step)  # type: ignore[operator]
    assert torch.equal(o.joined(x, step), alone)  # type: ignore[operator, union-attr]
    assert not torch.equal(alone[1], o(x, Nothing())[0][1])  # type: ignore[operator]
