"""Which dtype a model decodes in where nobody asked for one."""

from __future__ import annotations

import torch

from minisafe.config import LlamaConfig
from minisafe.model import Llama

# parameters up to which a 16-bit model decodes in float32 on a CPU. Rounding a small model's values
# to 8 bits decides near ties, which it has many of: SmolLM2-135M names no capital in bf16 that it
# names in float32. What it costs is in docs/profile.md; beyond, time and memory double
SMALL_MODEL = 200_000_000
NARROW = (torch.bfloat16, torch.float16)


def count_parameters(config: LlamaConfig) -> int:
    """A model's parameters, a tied head counted once."""
    with torch.device("meta"):
        model = Llama(config)
    return sum(each.numel() for each in model.parameters())


def decoding_dtype(stored: torch.dtype, parameters: int, device: str = "cpu") -> torch.dtype:
    """The dtype of a model that is `stored` in one, where no setting says another."""
    small = stored in NARROW and parameters <= SMALL_MODEL
    return torch.float32 if small and torch.device(device).type == "cpu" else stored


def widen_small(model: Llama, asked: str | None, weights: str) -> Llama:
    """Change a plain model, in place, to the dtype that it decodes in; returns it.

    asked: the setting `dtype`; if there is one, nothing changes.
    weights: the setting; int8 rounds more than the dtype does, and is quick in bf16 only.

    Values stay what they were, and so does the fingerprint. Call it after whatever rounds to the
    checkpoint's dtype, such as an edit.
    """
    if asked is None and weights != "int8":
        parameters = sum(each.numel() for each in model.parameters())
        dtype = decoding_dtype(model.dtype, parameters, model.device.type)
        if dtype != model.dtype:
            model.to(dtype)
    return model
