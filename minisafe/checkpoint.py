"""Directories to values and back: models and LoRA adapters in Hugging Face's formats.

safetensors only, memory-mapped and strict; pickle is never read.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minisafe.config import LlamaConfig, read_json
from minisafe.errors import AdapterError, CheckpointError, MinisafeError, OutOfMemory, SettingError
from minisafe.lora import (
    LoraAdapter,
    LoraDelta,
    check_adapter_config,
    is_targeted,
    pattern_value,
)
from minisafe.model import Llama, projections

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
CONVERT = (
    'convert them once, where you trust them: python -c "from transformers import '
    "AutoModelForCausalLM as M; M.from_pretrained('{0}').save_pretrained('{0}-safetensors')\""
)


def load_model(
    directory: str | Path, dtype: str | torch.dtype | None = None, device: str = "cpu"
) -> Llama:
    """Load a Hugging Face model directory.

    With the checkpoint's own dtype on the CPU, the weights stay where the file is mapped. `dtype`
    is float32, bfloat16 or float16; None keeps the checkpoint's.

    Raises:
        ConfigError: the shape is missing, malformed or not supported.
        CheckpointError: weights are missing, truncated, misshapen, unexpected or not finite.
        OutOfMemory: a conversion or a device had too little room.
    """
    directory = Path(directory)
    config = LlamaConfig.from_directory(directory)
    with torch.device("meta"):
        model = Llama(config)
    wanted = as_dtype(dtype if dtype is not None else config.dtype)
    waiting = {name: (holder, attribute) for name, holder, attribute in model.tensors()}
    head: Tensor | None = None
    for name, tensor, shard in read_tensors(directory):
        if config.tied and name == HEAD:
            head = tensor
            continue
        if name not in waiting:
            if name.endswith("rotary_emb.inv_freq"):  # old exports keep this derived buffer
                continue
            raise CheckpointError(
                f"{shard}: unexpected tensor {name}; the config describes a {config.family} model "
                f"of {config.n_layers} layers{' with tied heads' if config.tied else ''}"
            )
        wanted = wanted or tensor.dtype
        place_tensor(waiting.pop(name), tensor, name, shard, wanted, device)
    if head is not None:
        tie(model, waiting, head, directory, wanted, device)
    if waiting:
        missing = sorted(waiting)
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise CheckpointError(f"{directory}: missing tensors: {', '.join(missing[:4])}{more}")
    return model.requires_grad_(False).eval()


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A torch dtype from its name; raises `SettingError` for one that minisafe does not run."""
    if dtype is None:
        return None
    name = short(dtype) if isinstance(dtype, torch.dtype) else dtype
    if name not in DTYPES:
        raise SettingError(f"dtype is {name!r}; expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def place_tensor(
    where: tuple[nn.Module, str],
    tensor: Tensor,
    name: str,
    source: Path,
    dtype: torch.dtype,
    device: str,
) -> None:
    """Put one checked tensor into the model in place of its meta stand-in."""
    holder, attribute = where
    expected = getattr(holder, attribute).shape
    if tensor.shape != expected:
        raise CheckpointError(
            f"{source}: {name} has shape {tuple(tensor.shape)}; the config asks for "
            f"{tuple(expected)}"
        )
    check_finite(tensor, name, source)
    placed = move(tensor, name, dtype, device)
    if placed is tensor and name == EMBED:
        placed = unread(tensor, name, source)
    if dtype != tensor.dtype and not finite(placed):
        raise CheckpointError(
            f"{source}: {name} holds values beyond the range of {short(dtype)}; use another dtype"
        )
    setattr(holder, attribute, nn.Parameter(placed, requires_grad=False))


def tie(
    model: Llama,
    waiting: dict[str, tuple[nn.Module, str]],
    head: Tensor,
    directory: Path,
    dtype: torch.dtype | None,
    device: str,
) -> None:
    """Use a tied head stored as `lm_head.weight`; where both names are there they must agree."""
    if EMBED in waiting:
        place_tensor(waiting.pop(EMBED), head, HEAD, directory, dtype or head.dtype, device)
    elif not torch.equal(model.embed_tokens.weight.to("cpu"), head.to(model.dtype)):
        raise CheckpointError(
            f"{directory}: the config ties the heads, but {HEAD} and {EMBED} differ; set "
            "tie_word_embeddings to false, or remove one"
        )


def move(tensor: Tensor, name: str, dtype: torch.dtype, device: str) -> Tensor:
    """The tensor in `dtype` on `device`; the very same one where nothing changes."""
    try:
        return tensor.to(device=device, dtype=dtype)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise CheckpointError(f"cannot move {name} to {device}: {first_line(error)}") from None
        size = tensor.numel() * dtype.itemsize
        raise OutOfMemory(
            f"{name} needs {size / 2**20:.0f} MiB more as {short(dtype)} on {device}, "
            "which could not be had; use a smaller dtype or model"
        ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python ran out of memory (the CPU allocator raises a bare RuntimeError)."""
    memory = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, memory) or "allocate memory" in str(error)


def short(dtype: torch.dtype) -> str:
    """A dtype's name as configs spell it."""
    return str(dtype).removeprefix("torch.")


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def check_finite(tensor: Tensor, name: str, source: Path) -> None:
    """Raise `CheckpointError` for a dtype that is not run, or if a tensor holds NaN or infinity."""
    if tensor.dtype not in DTYPES.values():
        raise CheckpointError(
            f"{source}: {name} is {short(tensor.dtype)}; expected one of {', '.join(DTYPES)}"
        )
    if not finite(tensor):
        count = int((~tensor.isfinite()).sum())
        raise CheckpointError(f"{source}: {name} holds {count} NaN or infinite values")


def finite(tensor: Tensor) -> bool:
    """Whether every element is. The sum, a first look that allocates nothing, may overflow."""
    return math.isfinite(tensor.sum().item()) or bool(tensor.isfinite().all())


def read_tensors(directory: Path) -> Iterator[tuple[str, Tensor, Path]]:
    """(name, tensor, file) of every tensor of a model directory, one shard after another."""
    if (directory / SINGLE).is_file():
        yield from read_file(directory / SINGLE)
        return
    if (directory / INDEX).is_file():
        yield from read_shards(directory)
        return
    files = sorted(directory.glob("*.safetensors"))
    if len(files) == 1:
        yield from read_file(files[0])
        return
    if files:
        raise CheckpointError(
            f"{directory}: {len(files)} safetensors files and no {INDEX} to say how they join"
        )
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{directory}: {pickles[0]} is a pickle, which can run code when read, so minisafe "
            f"never does; {CONVERT.format(directory)}"
        )
    raise CheckpointError(f"{directory}: no {SINGLE} and no {INDEX}")


def read_shards(directory: Path) -> Iterator[tuple[str, Tensor, Path]]:
    """The tensors that the index names, each from the shard it names."""
    path = directory / INDEX
    weight_map = read_json(path, "the index of the shards").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: no weight_map; expected tensor names and their shards")
    for shard in sorted(set(map(str, weight_map.values()))):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{path}: shard {shard!r} is not a safetensors file of this directory"
            )
        if not (directory / shard).is_file():
            raise CheckpointError(f"{directory / shard}: no such file, but {INDEX} names it")
        expected = {name for name, file in weight_map.items() if file == shard}
        for name, tensor, file in read_file(directory / shard):
            if name not in expected:
                raise CheckpointError(f"{file}: holds {name}, which {INDEX} does not place here")
            expected.remove(name)
            yield name, tensor, file
        if expected:
            raise CheckpointError(
                f"{directory / shard}: lacks {sorted(expected)[0]}, which {INDEX} places here"
            )


def read_file(path: Path) -> Iterator[tuple[str, Tensor, Path]]:
    """(name, memory-mapped tensor, file) of one safetensors file.

    Each tensor is mapped by itself where that can be had: let go, it frees its pages.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                alone = mapped_alone(path, name)
                yield name, file.get_tensor(name) if alone is None else alone, path
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({first_line(error)}); is the download complete?"
        ) from None
    except (OSError, RuntimeError) as error:
        if isinstance(error, MinisafeError):
            raise
        raise CheckpointError(f"{path}: cannot be read ({first_line(error)})") from None


def mapped_alone(path: Path, name: str) -> Tensor | None:
    """A tensor in a mapping of its own; None where address space for another one is not given."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor
    except (OSError, RuntimeError):
        return None


def unread(tensor: Tensor, name: str, path: Path) -> Tensor:
    """The tensor in a new mapping: the look at all of `tensor` made its pages this process's, and
    of an embedding only the rows that are looked up should be."""
    again = mapped_alone(path, name)
    same = again is not None and (again.shape, again.dtype) == (tensor.shape, tensor.dtype)
    return again if again is not None and same else tensor


def save_model(model: Llama, directory: str | Path, extra: dict[str, Any] | None = None) -> None:
    """Write `config.json` (with `extra` keys such as eos_token_id) and `model.safetensors`."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = model.config.to_json() | {"torch_dtype": short(model.dtype)}
    tensors = {
        name: getattr(holder, attribute).detach().contiguous()
        for name, holder, attribute in model.tensors()
    }
    save_tensors(tensors, directory / SINGLE)
    write_text(directory / "config.json", json.dumps(config | (extra or {}), indent=2) + "\n")


def save_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, temporary, metadata={"format": "pt"} | (metadata or {}))
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def fingerprint(model: Llama, samples: int = 256) -> str:
    """A short hash that tells weights apart: names, shapes and evenly spaced values of each tensor.

    Cheap, since a mapped file is not read whole; values are taken in float32, so a converted copy
    of the same bf16 weights has the same fingerprint. A prepared model has that of its weights.
    """
    if model.prepared is not None:
        return model.prepared.fingerprint
    return fingerprint_of(samples_of(model, samples))


def fingerprint_of(samples: Mapping[str, bytes]) -> str:
    """The fingerprint of a model with these samples by name of the tensor."""
    digest = hashlib.sha256()
    for name, values in sorted(samples.items()):
        digest.update(f"{name} ".encode() + values)
    return digest.hexdigest()[:16]


def samples_of(model: Llama, n: int = 256, without: str | None = None) -> dict[str, bytes]:
    """A `sample` of every tensor of a plain model, but of the one named `without`."""
    tensors = ((name, getattr(holder, key)) for name, holder, key in model.tensors())
    return {name: sample(tensor, n) for name, tensor in tensors if name != without}


def sample(tensor: Tensor, n: int = 256) -> bytes:
    """A tensor's shape and about n of its values, evenly spaced, in float32."""
    flat = tensor.detach().flatten()
    picked = flat[:: max(1, len(flat) // n)].float().cpu().contiguous()
    return f"{tuple(tensor.shape)}".encode() + picked.numpy().tobytes()


# ---- adapters ----------------------------------------------------------------------------------

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])(?:\.default)?\.weight")


def load_adapter(directory: str | Path, model: Llama) -> LoraAdapter:
    """Load a PEFT LoRA directory for `model`, in the model's dtype and on its device.

    Raises `AdapterError` for features that are not applied (by name), tensors that do not fit, and
    modules that the config targets and the file lacks.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise AdapterError(f"{directory}: no such directory; expected a PEFT adapter directory")
    path = directory / ADAPTER_CONFIG
    config = read_json(path, "a PEFT adapter directory has one")
    check_adapter_config(config, path)
    modules = linear_modules(model)
    targeted = {name for name in modules if is_targeted(name, config, path)}
    if not targeted:
        raise AdapterError(
            f"{path}: target_modules match nothing in this {model.config.family} model"
        )
    found = read_adapter_tensors(directory, modules, targeted)
    deltas = {}
    for name in sorted(targeted):
        a, b = (_require(found, name, part, directory) for part in "AB")
        rank = pattern_value(config, "rank_pattern", name, config.get("r", 8))
        _check_delta(name, a, b, rank, modules[name], directory)
        alpha = pattern_value(config, "alpha_pattern", name, config.get("lora_alpha", 8))
        scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
        a, b = (tensor.to(model.device, model.dtype) for tensor in (a, b))
        deltas[name] = LoraDelta(a, b, scaling)
    return LoraAdapter(deltas, directory.name)


def linear_modules(model: Llama) -> dict[str, tuple[int, int]]:
    """(out_features, in_features) of every linear module, by Hugging Face name."""
    return {
        name: (size, projection.in_features)
        for projection in projections(model)
        for name, size in projection.sizes.items()
    }


def read_adapter_tensors(
    directory: Path, modules: dict[str, tuple[int, int]], targeted: set[str]
) -> dict[tuple[str, str], Tensor]:
    """(module, "A" or "B") -> tensor, each one known to be wanted and finite."""
    path = directory / ADAPTER_WEIGHTS
    if not path.is_file():
        hint = "; .bin adapters are pickles, save them again with peft as safetensors"
        raise AdapterError(f"{path}: no such file{hint if list(directory.glob('*.bin')) else ''}")
    found = {}
    for name, tensor, _ in read_file(path):
        match = KEY.fullmatch(name)
        if match is None:
            raise AdapterError(f"{path}: unexpected tensor {name}; expected LoRA A and B matrices")
        module = match["module"]
        if module not in modules:
            raise AdapterError(f"{path}: {name} is for {module}, which this model does not have")
        if module not in targeted:
            raise AdapterError(
                f"{path}: {name} is for {module}, which {ADAPTER_CONFIG} does not target"
            )
        check_finite(tensor, name, path)
        found[module, match["part"]] = tensor
    return found


def _require(found: dict[tuple[str, str], Tensor], name: str, part: str, directory: Path) -> Tensor:
    if (name, part) not in found:
        raise AdapterError(f"{directory / ADAPTER_WEIGHTS}: lacks lora_{part} of {name}")
    return found[name, part]


def _check_delta(
    name: str, a: Tensor, b: Tensor, rank: int, shape: tuple[int, int], directory: Path
) -> None:
    out_features, in_features = shape
    if tuple(a.shape) != (rank, in_features) or tuple(b.shape) != (out_features, rank):
        raise AdapterError(
            f"{directory}: the delta of {name} has A {tuple(a.shape)} and B {tuple(b.shape)}; this "
            f"model and rank ask for {(rank, in_features)} and {(out_features, rank)}"
        )


def save_adapter(
    adapter: LoraAdapter, directory: str | Path, rank: int, alpha: float, base: str = ""
) -> None:
    """Write a PEFT directory that both minisafe and peft load. The deltas
    must share the rank, and have the scaling alpha / rank, which the file states in their place."""
    directory, modules, tensors = Path(directory), sorted(adapter.deltas), {}
    for name, delta in adapter.deltas.items():
        for part, tensor in (("A", delta.a), ("B", delta.b)):
            tensors[f"base_model.model.{name}.lora_{part}.weight"] = tensor.detach().contiguous()
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank,
        "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
        "inference_mode": True, "target_modules": modules,
    }  # fmt: skip
    save_tensors(tensors, directory / ADAPTER_WEIGHTS)
    write_text(directory / ADAPTER_CONFIG, json.dumps(config, indent=2) + "\n")
