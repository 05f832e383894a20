"""Which kernel multiplies a matrix of a given shape on this machine, and its results in races.

`packed` calls `packs` and `wide_rows`; `minisafe inspect --kernels` prints `choices`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from minisafe.config import LlamaConfig
from minisafe.fast.int8 import MIN_DIGITS, digit_laps, digits_fit, few_laps, few_rows
from minisafe.fast.left import left_laps, left_rows, may_go_left
from minisafe.fast.race import ROWS, Lap, Shape, border, make_trials, race

SMALL = 1 << 18  # with at most this many weights, a product costs less than its call
WIDE_ROWS = 4  # ... for up to this many rows


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch packs weights of `dtype` for the CPU, tested by doing it once."""
    if dtype == torch.float16 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    weight, x = torch.eye(16, dtype=dtype), torch.arange(32.0, dtype=dtype).view(2, 16)
    try:
        y = packed_product(x, torch.ops.mkldnn._reorder_linear_weight(weight), None)
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(y, x)


def packed_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(..., in) -> (..., out), with a weight in oneDNN's layout."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


@cache
def pack_laps(shape: Shape, dtype: torch.dtype) -> tuple[Lap, ...]:
    """Laps of a packed weight against `F.linear`; none if torch cannot pack."""
    if not can_pack(dtype):
        return ()
    laps = []
    for trial in make_trials(shape, dtype, ROWS):
        packed = torch.ops.mkldnn._reorder_linear_weight(trial.weight)
        kernel = partial(packed_product, trial.x, packed, None)
        laps.append(race("packed", trial, kernel, partial(F.linear, trial.x, trial.weight)))
    return tuple(laps)


def packs(shape: Shape, dtype: torch.dtype) -> bool:
    """Whether a weight of this shape is packed: if that is correct, and fast for any rows."""
    laps = pack_laps(shape, dtype)
    return bool(laps) and all(lap.fits for lap in laps)


@cache
def wide_laps(shape: Shape) -> tuple[Lap, ...]:
    """Laps of a bf16 weight's float32 copy against the weight itself, for few rows of bf16."""
    laps = []
    for trial in make_trials(shape, torch.bfloat16, (1, WIDE_ROWS)):
        kernel = partial(wide_product, trial.x, trial.weight.float())
        laps.append(race("float32", trial, kernel, partial(F.linear, trial.x, trial.weight)))
    return tuple(laps)


def wide_product(x: Tensor, weight: Tensor) -> Tensor:
    """(rows, in) in bf16 -> (rows, out) in bf16, with a weight in float32"""
    return F.linear(x.float(), weight).to(x.dtype)


def wide_rows(shape: Shape, dtype: torch.dtype) -> int:
    """The most rows for which a packed weight's float32 copy is used; 0: it has none."""
    if dtype != torch.bfloat16 or shape[0] * shape[1] > SMALL:
        return 0
    return border(wide_laps(shape))


# ---- all of a model ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """What multiplies the matrices of a shape. uses: the kernels by number of rows, in words. laps:
    of the kernels that were raced for it."""

    names: tuple[str, ...]
    shape: Shape
    uses: str
    laps: tuple[Lap, ...]


def choices(config: LlamaConfig, dtype: torch.dtype, weights: str) -> list[Choice]:
    """The choice for every shape of a model on the CPU. weights: "plain", "packed" or "int8"."""
    by_shape: dict[Shape, list[str]] = {}
    for name, shape in shapes_of(config, weights):
        by_shape.setdefault(shape, []).append(name)
    choose = {"plain": plain_choice, "packed": packed_choice, "int8": int8_choice}[weights]
    found = []
    for shape, names in by_shape.items():
        tied = config.tied and "lm_head" in names
        chosen = choose(shape, dtype, tied)
        found.append(Choice(tuple(names), shape, *chosen))
    return found


def shapes_of(config: LlamaConfig, weights: str) -> Iterator[tuple[str, Shape]]:
    """(name, shape) of a layer's matrices and the head. Prepared matrices of the same input are
    one."""
    hidden, intermediate = config.hidden, config.intermediate
    heads, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    if weights == "plain":
        yield "q_proj", (heads, hidden)
        yield "k_proj", (kv, hidden)
        yield "v_proj", (kv, hidden)
    else:
        yield "qkv", (heads + 2 * kv, hidden)
    yield "o_proj", (hidden, heads)
    if weights == "plain":
        yield "gate_proj", (intermediate, hidden)
        yield "up_proj", (intermediate, hidden)
    else:
        yield "gate_up", (2 * intermediate, hidden)
    yield "down_proj", (hidden, intermediate)
    yield "lm_head", (config.vocab_size, hidden)


def plain_choice(shape: Shape, dtype: torch.dtype, tied: bool) -> tuple[str, tuple[Lap, ...]]:
    """What multiplies plain weights that `prepare` keeps ("auto"), and its laps."""
    if not may_go_left(shape, dtype):
        return "F.linear", ()
    return in_words("weight on the left", left_rows(shape), "F.linear"), left_laps(shape)


def packed_choice(shape: Shape, dtype: torch.dtype, tied: bool) -> tuple[str, tuple[Lap, ...]]:
    """What multiplies packed weights, and its laps."""
    if tied:  # a tied head keeps its rows
        return plain_choice(shape, dtype, tied)
    laps = pack_laps(shape, dtype)
    if not packs(shape, dtype):
        return "F.linear", laps
    few = wide_rows(shape, dtype)
    return in_words("float32", few, "packed"), laps + (wide_laps(shape) if few else ())


def int8_choice(shape: Shape, dtype: torch.dtype, tied: bool) -> tuple[str, tuple[Lap, ...]]:
    """What multiplies int8 weights, and its laps."""
    large = not tied and shape[0] * shape[1] >= MIN_DIGITS[dtype]
    laps = digit_laps(shape, dtype) if large else ()
    if large and digits_fit(shape, dtype):
        return "digits", laps
    few = few_rows(shape, dtype)
    laps += few_laps(shape) if dtype == torch.bfloat16 else ()
    return in_words("int8 rows", few, "widened by blocks"), laps


def in_words(kernel: str, rows: int, beyond: str) -> str:
    """The words for a kernel that is used for up to `rows` rows."""
    if rows == 0:
        return beyond
    count = "1 row" if rows == 1 else f"up to {rows} rows"
    return f"{kernel} for {count}, else {beyond}"


def race_left(config: LlamaConfig, dtype: torch.dtype) -> None:
    """Run the races of a model's plain matrices now, at load, instead of in its first answer."""
    choices(config, dtype, "plain")
