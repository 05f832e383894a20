"""A directory of rounded weights to a model that runs them; the plain weights are never made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from minisafe.checkpoint import EMBED, HEAD, as_dtype, fingerprint_of, sample
from minisafe.checkpoint.config import load_config
from minisafe.checkpoint.files import check_finite, read_one, short, unread
from minisafe.checkpoint.plan import tensor_shapes
from minisafe.checkpoint.rounded import (
    WEIGHTS,
    Form,
    check_stored,
    read_form,
    rounding_of,
    scales_name,
)
from minisafe.config import LlamaConfig
from minisafe.errors import CheckpointError, SettingError
from minisafe.fast.prepare import give_back_memory, replace_parts, tied_head
from minisafe.fast.quantized import RoundedLinear
from minisafe.linear import Linear
from minisafe.model import PREFIX, Llama


def load_rounded(
    directory: str | Path, dtype: str | torch.dtype | None = None, device: str = "cpu"
) -> Llama:
    """The model of a directory that `minisafe convert --weights` wrote, ready to decode.

    dtype: None, the stored one, or float32, to which bfloat16 scales widen without rounding.

    Raises `ConfigError` or `CheckpointError` for a directory that is not whole, `SettingError` for
    a device or dtype that does not fit the weights.
    """
    directory = Path(directory)
    config, form = load_config(directory), read_form(directory)
    if form is None:
        raise CheckpointError(f"{directory}: its weights are plain; expected int8 or int4")
    wanted = dtype_for(form, dtype, device, directory)
    with torch.device("meta"):
        model = Llama(config)
    for name, values, scales in checked(directory, config, form, wanted):
        if scales is None:
            model.put(name, values)
        elif name == EMBED:
            model.lm_head = RoundedLinear(tied_head(model), (values, scales))
        else:
            put_rounded(model, name, (values, scales))
    model.requires_grad_(False).eval()
    replace_parts(model, form.format)
    model.fingerprint, _ = form.identity
    give_back_memory()
    return model


def dtype_for(
    form: Form, dtype: str | torch.dtype | None, device: str, directory: Path
) -> torch.dtype:
    """The dtype to decode in; raises `SettingError` for one that would round the scales, and for a
    device without the kernels."""
    if torch.device(device).type != "cpu":
        raise SettingError(f"{directory}: {form.format} weights need a CPU, not {device}")
    stored = as_dtype(form.dtype)
    wanted = as_dtype(dtype) or stored
    assert stored is not None
    assert wanted is not None
    if wanted not in (stored, torch.float32):
        raise SettingError(
            f"{directory}: its {form.format} weights decode in {form.dtype}"
            f"{'' if stored == torch.float32 else ' or float32'}, not {short(wanted)}; for "
            f"bfloat16, convert the model again with --dtype bfloat16"
        )
    return wanted


def checked(
    directory: Path, config: LlamaConfig, form: Form, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """(name, values, scales) of every weight; None for scales if the values are not rounded.

    Raises `CheckpointError` for values that are not finite, and at the end unless the tensors are
    those that the config was written for.
    """
    stated, samples = check_stored(directory, config, form), {}
    for name, shape in tensor_shapes(config):
        values = read_one(stated[name])
        samples[name] = sample(values)
        if rounding_of(name, shape, config, form.format) is None:
            check_finite(values, name, stated[name].file)
            yield name, placed(values, name, dtype, stated[name].file), None
            continue
        scales = read_one(stated[scales_name(name)])
        samples[scales_name(name)] = sample(scales)
        check_finite(scales, scales_name(name), stated[name].file)
        # a new mapping: taking samples loaded pages of this one
        yield name, unread(values, name, stated[name].file), scales.to(dtype)
    if fingerprint_of(samples) != form.rounded:
        raise CheckpointError(
            f"{directory / WEIGHTS}: not the weights that config.json was written for; convert the "
            "model again"
        )


def placed(values: Tensor, name: str, dtype: torch.dtype, path: Path) -> Tensor:
    """Values that are not rounded, in `dtype`. Of a mapped embedding, only the rows that are looked
    up should be in memory."""
    if name == EMBED and values.dtype == dtype:
        return unread(values, name, path)
    return values.to(dtype)


def put_rounded(model: Llama, name: str, rounded: tuple[Tensor, Tensor]) -> None:
    """Replace the linear map of a weight by one that holds it rounded."""
    if name == HEAD:
        assert model.lm_head is not None
        model.lm_head = RoundedLinear(model.lm_head, rounded)
        return
    parent, _, attribute = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
    module = model.get_submodule(parent)
    plain = getattr(module, attribute)
    assert isinstance(plain, Linear)
    setattr(module, attribute, RoundedLinear(plain, rounded))
