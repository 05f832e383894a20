"""Activation checkpointing."""

from __future__ import annotations

import torch

from minisafe.finetune.recompute import recompute
from minisafe.model import Llama
from tests.support.tiny import random_ids, random_model, tiny_config


def test_activation_checkpointing_changes_nothing() -> None:
    """Values and gradients are the same when layers are run again."""
    config = tiny_config()
    gradients = []
    for again in (False, True):
        model = Llama(config)
        model.load_state_dict(random_model(config).state_dict())
        if again:
            recompute(model)
        model(random_ids(model, 2, 8)).square().sum().backward()
        gradients.append(model.embed_tokens.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[0].abs().max() > 0
