"""A model directory that another program quantised: its linear maps as codes.

GPTQ, AWQ and compressed-tensors are read, with 4 or 8 bits. What a tensor is follows from its name
and shape; the config says only which program wrote it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minisafe.checkpoint import (
    EMBED,
    HEAD,
    check_tied,
    stated_tensors,
)
from minisafe.checkpoint.config import read_config
from minisafe.checkpoint.files import DTYPES, check_finite, read_one
from minisafe.checkpoint.fused import fused_modules, split_stated
from minisafe.checkpoint.header import Stated
from minisafe.checkpoint.plan import make_plan, tensor_shapes
from minisafe.checkpoint.rounded import KEY
from minisafe.config import LlamaConfig
from minisafe.convert.codes import (
    WORD,
    Codes,
    common_group,
    from_awq,
    from_gptq,
    from_int8,
    from_packed,
    run_length,
)
from minisafe.errors import CheckpointError, ConfigError
from minisafe.files import read_json
from minisafe.files.display import shown

FORMATS: dict[str, dict[str, tuple[object, ...]]] = {  # by quant_method; None: the key is missing
    "gptq": {"checkpoint_format": (None, "gptq", "gptq_v2"), "pack_dtype": (None, "int32"),
             "is_marlin_format": (None, False), "rotation": (None,)},
    "awq": {"version": (None, "gemm", "GEMM")},
    "compressed-tensors": {"format": ("pack-quantized", "int-quantized", "naive-quantized"),
                           "transform_config": (None, {}), "kv_cache_scheme": (None,)},
}  # fmt: skip
CODED = {"qweight": "int32", "weight_packed": "int32", "weight": "int8"}  # the tensors with codes
BESIDE = ("qzeros", "scales", "g_idx", "weight_scale", "weight_zero_point", "weight_shape",
          "weight_g_idx")  # fmt: skip


@dataclass(frozen=True)
class Quantised:
    """A quantised directory before its values are read.

    settings: its `quantization_config`. stated: every tensor of its files. modules: the linear maps
    that are coded, each with the shape of its weight. stored: the name in the files of every tensor
    of the model, by its own.
    """

    directory: Path
    settings: Mapping[str, Any]
    config: LlamaConfig
    stated: Mapping[str, Stated]
    modules: Mapping[str, tuple[int, int]]
    stored: Mapping[str, str]

    @property
    def n_codes(self) -> int:
        """How many weights are coded."""
        return sum(math.prod(shape) for shape in self.modules.values())

    @property
    def group(self) -> int:
        """The longest group of int4 that holds all codes; 0 if there is none."""
        runs = [run_length(*self.groups(module)) for module in self.modules]
        return common_group(math.gcd(*runs))

    @property
    def rounds_activations(self) -> bool:
        """Whether the program that wrote it also rounds what a layer reads."""
        groups = self.settings.get("config_groups")
        each = groups.values() if isinstance(groups, dict) else ()
        return any(isinstance(one, dict) and one.get("input_activations") for one in each)

    def value(self, name: str) -> Tensor | Codes:
        """A tensor of the model. Raises `CheckpointError` for one that does not fit the config or
        is not finite."""
        own = name.removesuffix(".weight")
        module, start = places(self.config).get(own, (own, 0))
        stop = start + dict(tensor_shapes(self.config))[name][0]
        if name.endswith(".weight") and module in self.modules:
            return self.codes(module).rows(start, stop)
        stated = self.stated[self.stored[name] if module == own else f"{module}.weight"]
        tensor = read_one(stated)[start:stop]
        check_finite(tensor, name, stated.file)
        return tensor

    def codes(self, module: str) -> Codes:
        """One coded linear map. Raises `CheckpointError` for parts that do not fit together."""
        n_out, n_in = self.modules[module]
        groups, n = self.groups(module)
        words = self.stated.get(f"{module}.qweight")
        if words is None:
            return self.compressed(module, groups, n)
        scales = self.part(f"{module}.scales", (n, n_out))
        if self.settings["quant_method"] == "awq":
            qweight = self.part(words.name, (n_in, words_for(n_out, 4)), "int32")
            qzeros = self.part(f"{module}.qzeros", (n, words_for(n_out, 4)), "int32")
            return from_awq(qweight, qzeros, scales, groups)
        bits = bits_of(words, words.shape[0], n_in)
        qweight = self.part(words.name, (words_for(n_in, bits), n_out), "int32")
        qzeros = self.part(f"{module}.qzeros", (n, words_for(n_out, bits)), "int32")
        less = 0 if self.settings.get("checkpoint_format") == "gptq_v2" else 1
        return from_gptq(qweight, qzeros, scales, groups, bits, less)

    def compressed(self, module: str, groups: Tensor, n: int) -> Codes:
        """One linear map of compressed-tensors, whose inputs are in these of n groups."""
        n_out, n_in = self.modules[module]
        scales = self.part(f"{module}.weight_scale", (n_out, n))
        zeros, packed = f"{module}.weight_zero_point", self.stated.get(f"{module}.weight_packed")
        if packed is None:
            weight = self.part(f"{module}.weight", (n_out, n_in), "int8")
            held = self.part(zeros, (n_out, n), "int8") if zeros in self.stated else None
            return from_int8(weight, held, scales, groups)
        bits = bits_of(packed, packed.shape[-1], n_in)
        words = self.part(packed.name, (n_out, words_for(n_in, bits)), "int32")
        said = self.part(f"{module}.weight_shape", (2,), "int64").tolist()
        if said != [n_out, n_in]:
            raise CheckpointError(
                f"{packed.file}: {module}.weight_shape is {said}; expected {[n_out, n_in]}"
            )
        shape = (words_for(n_out, bits), n)
        held = self.part(zeros, shape, "int32") if zeros in self.stated else None
        return from_packed(words, held, scales, groups, bits)

    def groups(self, module: str) -> tuple[Tensor, int]:
        """The group of each input (in,), and the number of groups. Raises `CheckpointError`."""
        old, (_, n_in) = f"{module}.qweight" in self.stated, self.modules[module]
        scales = self.stated.get(f"{module}.{'scales' if old else 'weight_scale'}")
        if scales is None:
            raise CheckpointError(f"{self.directory}: missing tensors: {module}'s scales")
        n = scales.shape[0 if old else -1] if len(scales.shape) == 2 else 0
        name = f"{module}.{'g_idx' if old else 'weight_g_idx'}"
        if name in self.stated:
            found = self.part(name, (n_in,), "int32").long()
            if int(found.min()) < 0 or int(found.max()) >= n:
                raise CheckpointError(
                    f"{self.stated[name].file}: {name} has groups {int(found.min())} to "
                    f"{int(found.max())}; expected 0 to {n - 1}"
                )
            return found, n
        if n == 0 or n_in % n:
            raise CheckpointError(
                f"{scales.file}: {scales.name} has shape {scales.shape}; expected scales of groups "
                f"that divide {n_in} inputs"
            )
        return torch.arange(n_in) // (n_in // n), n

    def part(self, name: str, shape: tuple[int, ...], dtype: str | None = None) -> Tensor:
        """One tensor of a coded map; dtype: None for finite floats."""
        stated = self.stated.get(name)
        if stated is None:
            raise CheckpointError(f"{self.directory}: missing tensors: {name}")
        fits = stated.torch_dtype == dtype if dtype else stated.torch_dtype in DTYPES
        if not fits or stated.shape != shape or not math.prod(shape):
            raise CheckpointError(
                f"{stated.file}: {name} is {stated.torch_dtype} of shape {stated.shape}; expected "
                f"{dtype or ' or '.join(DTYPES)} of {shape}"
            )
        tensor = read_one(stated)
        if dtype is None:
            check_finite(tensor, name, stated.file)
        return tensor


def read_quantised(directory: Path) -> Quantised | None:
    """All but the values of a directory that one of `FORMATS` wrote; None for another's.

    Raises `ConfigError` or `CheckpointError` for one that is not whole, or holds something else
    than linear maps of 4 or 8 bits.
    """
    path = directory / "config.json"
    data = read_json(path, "a model directory has one") if path.is_file() else {}
    settings = data.pop(KEY, None)
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if not isinstance(method, str) or method not in FORMATS:
        return None
    check_settings(settings, path)
    config = read_config(data, str(path))
    stated = stated_tensors(directory)
    modules = coded_modules(stated, config)
    if config.tied and HEAD.removesuffix(".weight") in modules:
        raise CheckpointError(f"{directory}: the config ties the heads, but {HEAD} is quantised")
    wanted = {name for name, _ in tensor_shapes(config)}
    plain = {
        name: each
        for name, each in stated.items()
        if name in wanted - {f"{module}.weight" for module in modules}
        or not (of_codes(name, modules) or is_empty_bias(each, modules))
    }
    for module, shape in modules.items():
        first = next(stated[f"{module}.{end}"] for end in CODED if f"{module}.{end}" in stated)
        plain[f"{module}.weight"] = Stated(f"{module}.weight", "F16", shape, first.file)
    plain = split_stated(plain, config, directory)
    names = make_plan(config, plain, directory, None, "cpu")
    check_tied(config, plain, directory, torch.float32)
    stored = {own: name for name, own in names.items()}
    return Quantised(directory, settings, config, stated, modules, stored)


def check_settings(settings: Mapping[str, Any], path: Path) -> None:
    """Raise `ConfigError` for a layout that is not read."""
    method = settings["quant_method"]
    for key, values in FORMATS[method].items():
        if settings.get(key) not in values:
            expected = " or ".join(str(each) for each in values if each is not None) or "none"
            raise ConfigError(
                f"{path}: {KEY} ({method}): {key} is {shown(settings.get(key))}; expected "
                f"{expected}; use the unquantised checkpoint"
            )


def coded_modules(stated: Mapping[str, Stated], config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """The linear maps whose weights are codes, each with the shape of its weight."""
    shapes = {name.removesuffix(".weight"): shape for name, shape in tensor_shapes(config)}
    for module, parts in fused_modules(config).items():
        shapes[module] = (sum(parts.values()), *shapes[next(iter(parts))][1:])
    found = {}
    for end, dtype in CODED.items():
        for name, each in stated.items():
            module = name.removesuffix(f".{end}")
            if module != name and each.torch_dtype == dtype:
                found[module] = shapes.get(module, ())
    for module, shape in found.items():
        if len(shape) != 2 or f"{module}.weight" == EMBED:
            raise CheckpointError(
                f"{module}: its tensors are quantised; expected that only of the linear maps of "
                f"a {config.family} model of {config.n_layers} layers"
            )
    return found  # type: ignore[return-value]


def of_codes(name: str, modules: Mapping[str, object]) -> bool:
    """Whether a tensor is part of a coded map."""
    module, _, end = name.rpartition(".")
    return module in modules and (end in CODED or end in BESIDE)


def is_empty_bias(stated: Stated, modules: Mapping[str, object]) -> bool:
    """Whether a tensor is a bias of zeros beside codes, as old GPTQ programs write for every
    linear map."""
    module = stated.name.removesuffix(".bias")
    floats = stated.torch_dtype in DTYPES
    return module in modules and floats and not bool(read_one(stated).any())


def bits_of(words: Stated, n: int, n_in: int) -> int:
    """The bits of a code, from the number of words for the inputs."""
    for bits in (4, 8):
        if n * WORD == n_in * bits:
            return bits
    raise CheckpointError(
        f"{words.file}: {words.name} has {n} words for {n_in} inputs; expected codes of 4 or 8 bits"
    )


def words_for(n: int, bits: int) -> int:
    """How many words hold n codes."""
    return -(-n * bits // WORD)


def places(config: LlamaConfig) -> dict[str, tuple[str, int]]:
    """The parts of fused modules, each with its module and first row."""
    found = {}
    for module, parts in fused_modules(config).items():
        start = 0
        for part, rows in parts.items():
            found[part], start = (module, start), start + rows
    return found
