"""A linear map, and adapters' deltas on some rows of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from minisafe.linear import Linear
from minisafe.lora import AdaptedRows
from tests.support.tiny import random_adapter, random_model, tiny_config


def test_a_delta_acts_on_its_rows_alone() -> None:
    model = random_model(tiny_config(o_bias=True), 0)
    o_proj = model.layers[0].self_attn.o_proj  # type: ignore[union-attr]
    assert isinstance(o_proj, Linear)
    adapter = random_adapter(model, 0)
    x = torch.randn(3, 2, model.config.hidden, generator=torch.Generator().manual_seed(0))
    plain = o_proj(x, ())
    assert torch.equal(plain, F.linear(x, o_proj.weight, o_proj.bias))
    found = o_proj(x, (AdaptedRows(adapter, slice(1, 2)), AdaptedRows(adapter, slice(2, 2))))
    assert torch.equal(found[[0, 2]], plain[[0, 2]])
    delta = adapter.deltas["model.layers.0.self_attn.o_proj"]
    torch.testing.assert_close(found[1], plain[1] + delta(x[1]))
    assert not torch.equal(found[1], plain[1])
