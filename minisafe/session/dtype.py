"""Which dtype a model decodes in if no setting gives one."""

from __future__ import annotations

import torch

from minisafe.config import LlamaConfig
from minisafe.model import Llama

# a 16-bit model with up to this many parameters decodes in float32 on a CPU. A small model has many
# near ties, which rounding to 8 bits decides: in bf16, SmolLM2-135M does not name capitals that it
# names in float32. docs/profile.md has the cost; for larger models, time and memory would double
SMALL_MODEL = 200_000_000
NARROW = (torch.bfloat16, torch.float16)


def count_parameters(config: LlamaConfig) -> int:
    """How many parameters a model has; a tied head counts once."""
    with torch.device("meta"):
        model = Llama(config)
    return sum(each.numel() for each in model.parameters())


def decoding_dtype(stored: torch.dtype, parameters: int, device: str = "cpu") -> torch.dtype:
    """The dtype that a model with dtype `stored` decodes in, if no setting gives another."""
    small = stored in NARROW and parameters <= SMALL_MODEL
    return torch.float32 if small and torch.device(device).type == "cpu" else stored


def widen_small(model: Llama, asked: str | None, weights: str) -> Llama:
    """Convert a plain model, in place, to the dtype that it decodes in; returns it.

    asked: the setting `dtype`; if it is given, nothing changes.
    weights: the setting; with "int8" nothing changes, since int8 rounds more than the dtype does
        and is fast only in bf16. Nor does it for a model that was read with rounded weights.

    Values and fingerprint stay the same. Call it after every step that rounds to the checkpoint's
    dtype, such as an edit.
    """
    if asked is None and weights != "int8" and model.weights == "plain":
        parameters = sum(each.numel() for each in model.parameters())
        dtype = decoding_dtype(model.dtype, parameters, model.device.type)
        if dtype != model.dtype:
            model.to(dtype)
    return model
