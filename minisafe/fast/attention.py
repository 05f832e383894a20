"""Attention without needless masks, and without copies of keys and values."""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor

from minisafe.cache import Placement
from minisafe.step import Step, Window


def is_causal(place: Placement) -> bool:
    """Whether the block is the whole sequence, so that its mask is the lower triangle."""
    return place.uniform and place.starts[0] == 0


def needed_windows(windows: Iterable[Window], n: int, place: Placement) -> set[Window]:
    """The windows that need a mask. With the others, queries see all n columns, or the lower
    triangle."""
    obvious = place.uniform and (place.starts[0] == 0 or place.width == 1)
    return {each for each in windows if not obvious or (each is not None and each < n)}


def attend_step(
    q: Tensor, k: Tensor, v: Tensor, step: Step, window: Window, scale: float | None
) -> Tensor:
    """`attend` with the step's mask for a window, or with none if none is needed."""
    mask = step.masks.get(window)
    return attend(q, k, v, mask, mask is None and is_causal(step.place), scale)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None = None
) -> Tensor:
    """Grouped-query attention. q: (B, n_heads, T, d), k and v: (B, n_kv_heads, n, d) -> like q.

    The query heads of a group become extra query rows of its one key-value head, so keys and
    values are neither copied nor expanded. Only a whole causal block expands them: there the
    kernel skips the upper triangle, which saves more than the copy costs. scale: of the scores;
    None is 1 / sqrt(d).
    """
    batch, n_heads, width, head_dim = q.shape
    n_kv_heads = k.shape[1]
    group = n_heads // n_kv_heads
    if causal:
        if group > 1:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    q = q.reshape(batch, n_kv_heads, group * width, head_dim)
    if mask is not None and group > 1 and width > 1:
        mask = mask.repeat(1, 1, group, 1)  # (B, 1, group * T, n)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return y.reshape(batch, n_heads, width, head_dim)
