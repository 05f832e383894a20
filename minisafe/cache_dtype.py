"""In what dtype a cache holds keys and values: the model's, or a smaller one (`CACHE_DTYPES`).

In a smaller one a block is `rounded` when it is written, and one layer at a time is `widened` when
it is read. A cache in the model's own dtype does neither.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minisafe.config import LlamaConfig
from minisafe.errors import SettingError

CACHE_DTYPES = ("auto", "float32", "bfloat16", "int8")


def stored_dtype(cache_dtype: str, dtype: torch.dtype) -> torch.dtype:
    """What `cache_dtype` means for a model of `dtype`; raises `SettingError` for another name."""
    if cache_dtype not in CACHE_DTYPES:
        raise SettingError(
            f"cache_dtype is {cache_dtype!r}; expected one of {', '.join(CACHE_DTYPES)}"
        )
    if cache_dtype == "auto":
        return dtype
    found: torch.dtype = getattr(torch, cache_dtype)
    return found


def parts(head_dim: int, stored: torch.dtype, dtype: torch.dtype) -> list[tuple[int, torch.dtype]]:
    """What is held of a token, a layer and a head, as (size, dtype): its key, its value and, for
    int8, the scale of each in the model's `dtype`."""
    key_and_value = [(head_dim, stored)] * 2
    return key_and_value + [(1, dtype)] * 2 if stored == torch.int8 else key_and_value


def bytes_per_token(config: LlamaConfig, dtype: torch.dtype, cache_dtype: str = "auto") -> int:
    """Bytes that one token of one row takes in the cache of a model of `dtype`."""
    held = parts(config.head_dim, stored_dtype(cache_dtype, dtype), dtype)
    return config.n_layers * config.n_kv_heads * sum(size * each.itemsize for size, each in held)


def rounded(k: Tensor, v: Tensor, stored: torch.dtype) -> tuple[Tensor, ...]:
    """Keys and values (..., head_dim) as `stored`; for int8 then their scales (..., 1) as well.

    int8: `x ~ q * scale`, symmetric, with a head's largest value at 127. This was measured
    (docs/log.md): about five times as exact as float8 at nearly the same size, and faster to widen.
    """
    if stored != torch.int8:
        return k.to(stored), v.to(stored)
    (k_q, k_scale), (v_q, v_scale) = quantized(k), quantized(v)
    return k_q, v_q, k_scale, v_scale


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 of x's shape, and scales (..., 1) in x's dtype; where x is not finite, they are not."""
    scale = (x.float().abs().amax(dim=-1, keepdim=True) / 127).to(x.dtype)
    scale = scale.clamp_min(torch.finfo(x.dtype).tiny)  # zeros are 0 of any scale
    q = (x.float() / scale.float()).round_().clamp_(-127, 127)
    return q.to(torch.int8), scale


def widened(held: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`rounded` keys and values in the model's dtype again."""
    keys, values = held[0].to(dtype), held[1].to(dtype)
    if len(held) == 2:
        return keys, values
    return keys.mul_(held[2]), values.mul_(held[3])
