"""Make the goldens of quantised checkpoints again: written by the programs' own code, and what
Hugging Face transformers says of the weights that this code reads back.

    pip download --no-deps --no-binary autoawq auto-gptq==0.7.1 autoawq==0.2.9   # and unpack both
    pip install compressed-tensors transformers
    python tests/goldens/make_quantised_goldens.py AUTO_GPTQ_FOLDER AUTOAWQ_FOLDER

Writes beside itself, under quantised/, directories with config, weights and `golden.safetensors`:

    ids     (2, 32)
    logits  (2, 32, vocab)  float32, of the weights that the program's own code unpacks, with the
                            scales of the file in float32

Only rounding to the nearest code is theirs to choose; which codes are best is no matter here.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.naive_quantized.base import IntQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

HERE = Path(__file__).resolve().parent / "quantised"
sys.path.insert(0, str(HERE.parents[2]))

from minisafe.checkpoint import save_model  # noqa: E402
from tests.support.tiny import random_ids, random_model, tiny_config  # noqa: E402

Parts = dict[str, Tensor]
GROUP = 32
SHAPE: dict[str, Any] = {"hidden": 64, "intermediate": 96, "n_layers": 1, "head_dim": 16}


def load_file_of(folder: Path, path: str) -> types.ModuleType:
    """One file of a package, without the rest of it."""
    (found,) = folder.rglob(path)
    spec = importlib.util.spec_from_file_location(found.stem, found)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def grid(weight: Tensor, groups: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scales in the file's float16, and zeros 1 to 2^bits - 1 (out, groups), for weights (out, in)
    whose inputs are in these groups."""
    found = []
    for group in range(int(groups.max()) + 1):
        part = weight[:, groups == group]
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        if symmetric:
            high = torch.maximum(-low, high)
            low = -high
        scale = ((high - low) / (2**bits - 1)).half().float()
        zero = torch.full_like(scale, 2 ** (bits - 1)) if symmetric else (-low / scale).round()
        found.append((scale, zero.clamp(1, 2**bits - 1)))
    scales, zeros = (torch.stack(each, dim=1) for each in zip(*found, strict=True))
    return scales, zeros


# ---- each program: a weight -> the tensors of its file, and the weight that it reads back -------


def gptq(
    folder: Path, bits: int, group: int, ordered: bool, symmetric: bool
) -> Callable[[Tensor], tuple[Parts, Tensor]]:
    module = load_file_of(folder, "qlinear_cuda.py")

    def packed(weight: Tensor) -> tuple[Parts, Tensor]:
        n_out, n_in = weight.shape
        groups = torch.arange(n_in) // group
        if ordered:
            generator = torch.Generator().manual_seed(n_in)
            groups = groups[torch.randperm(n_in, generator=generator)]
        linear = nn.Linear(n_in, n_out, bias=False, dtype=torch.float16)
        linear.weight.data = weight.half()
        scales, zeros = grid(weight, groups, bits, symmetric)
        made = module.QuantLinear(bits, group, n_in, n_out, bias=False)
        made.pack(linear, scales, zeros, groups.int())
        parts = {name: getattr(made, name) for name in ("qweight", "qzeros", "scales", "g_idx")}
        made.scales = made.scales.float()
        return parts, made(torch.eye(n_in)).t()

    return packed


def awq(folder: Path) -> Callable[[Tensor], tuple[Parts, Tensor]]:
    for name in ("awq", "awq.utils", "awq.utils.module", "awq.utils.utils"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["awq.utils.module"].try_import = lambda name: (None, "")  # type: ignore[attr-defined]
    sys.modules["awq.utils.utils"].get_best_device = lambda: "cpu"  # type: ignore[attr-defined]
    packing = load_file_of(folder, "awq/utils/packing_utils.py")
    sys.modules["awq.utils.packing_utils"] = packing
    module = load_file_of(folder, "awq/modules/linear/gemm.py")

    def packed(weight: Tensor) -> tuple[Parts, Tensor]:
        n_out, n_in = weight.shape
        scales, zeros = grid(weight, torch.arange(n_in) // GROUP, 4, symmetric=False)
        linear = nn.Linear(n_in, n_out, bias=False)
        linear.weight.data = weight
        made = module.WQLinear_GEMM.from_linear(
            linear, 4, GROUP, scales=scales.t().contiguous(), zeros=zeros.t().contiguous()
        )
        parts = {name: getattr(made, name) for name in ("qweight", "qzeros", "scales")}
        read = packing.dequantize_gemm(made.qweight, made.qzeros, made.scales.float(), 4, GROUP)
        return parts, read.t()

    return packed


def compressed(args: dict[str, Any]) -> Callable[[Tensor], tuple[Parts, Tensor]]:
    scheme = QuantizationScheme(**args)
    bytes_, weights = args.get("input_activations") is not None, args["weights"]
    compressor = IntQuantizationCompressor if bytes_ else PackedQuantizationCompressor

    def packed(weight: Tensor) -> tuple[Parts, Tensor]:
        bits, n_in = weights["num_bits"], weight.shape[1]
        groups = torch.arange(n_in) // weights.get("group_size", n_in)
        scales, zeros = grid(weight, groups, bits, weights["symmetric"])
        plain = {"weight": weight, "weight_scale": scales,
                 "weight_zero_point": (zeros - 2 ** (bits - 1)).to(torch.int8)}  # fmt: skip
        parts = compressor.compress(plain, scheme)
        read = compressor.decompress(parts, scheme)["weight"]
        return parts | {"weight_scale": scales.half()}, read

    return packed


def scheme(bits: int, symmetric: bool, group: int | None, bytes_: bool = False) -> dict[str, Any]:
    weights: dict[str, Any] = {"num_bits": bits, "type": "int", "symmetric": symmetric,
                               "strategy": "channel" if group is None else "group"}  # fmt: skip
    read = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    found: dict[str, Any] = {"targets": ["Linear"], "weights": weights}
    return (
        found
        | ({} if group is None else {"weights": weights | {"group_size": group}})
        | ({"input_activations": read} if bytes_ else {})
    )


def make(
    name: str, settings: dict[str, Any], packed: Callable[[Tensor], tuple[Parts, Tensor]],
    family: str = "llama",
) -> None:  # fmt: skip
    out = HERE / name
    shutil.rmtree(out, ignore_errors=True)
    config = tiny_config(family=family, tied=family == "qwen2", qkv_bias=family == "qwen2", **SHAPE)
    model = random_model(config, seed=len(name)).half()
    save_model(model, out)
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    tensors, read = {}, dict(theirs.state_dict())
    for key, tensor in model.tensors().items():
        if tensor.dim() == 1 or "proj" not in key:
            tensors[key] = tensor.detach().contiguous()
            continue
        parts, read[key] = packed(tensor.detach().float())
        module = key.removesuffix("weight")
        tensors |= {module + part: each.contiguous() for part, each in parts.items()}
    theirs.load_state_dict(read)
    ids = random_ids(model, 2, 32)
    with torch.no_grad():
        logits = theirs(ids).logits
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    save_file({"ids": ids.int(), "logits": logits}, out / "golden.safetensors")
    said = json.loads((out / "config.json").read_text()) | {"quantization_config": settings}
    (out / "config.json").write_text(json.dumps(said, indent=2) + "\n")


def main() -> None:
    gptq_folder, awq_folder = map(Path, sys.argv[1:3])
    for name, bits, group, ordered, symmetric in (
        ("gptq", 4, 32, False, False), ("gptq_ordered", 4, 32, True, False),
        ("gptq_channels", 4, -1, False, True), ("gptq_8_bits", 8, 32, False, True),
    ):  # fmt: skip
        settings = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric,
                    "desc_act": ordered, "checkpoint_format": "gptq"}  # fmt: skip
        for_rows = group if group > 0 else 10**6
        make(name, settings, gptq(gptq_folder, bits, for_rows, ordered, symmetric))
    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True,
                "version": "gemm"}  # fmt: skip
    make("awq", settings, awq(awq_folder), "qwen2")
    for name, args, form in (
        ("compressed", scheme(4, True, GROUP), "pack-quantized"),
        ("compressed_zeros", scheme(4, False, GROUP), "pack-quantized"),
        ("compressed_8_bits", scheme(8, True, None), "pack-quantized"),
        ("compressed_int8", scheme(8, True, None, bytes_=True), "int-quantized"),
    ):  # fmt: skip
        settings = {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"],
                    "config_groups": {"group_0": args}, "quantization_status": "compressed",
        }  # fmt: skip
        make(name, settings, compressed(args))


if __name__ == "__main__":
    main()
