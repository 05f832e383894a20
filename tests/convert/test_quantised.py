"""Directories that GPTQ, AWQ and compressed-tensors wrote, against those programs' own code.

The goldens (tests/goldens/make_quantised_goldens.py) were packed by the programs, and hold what
transformers says of the weights that they unpack. Codes times float16 scales are exact in float32,
so logits may differ only by the order of sums: 1e-4, as for other goldens.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from minisafe.checkpoint import fingerprint, load_model, read_tensors, save_model
from minisafe.checkpoint.rounded import WEIGHTS
from minisafe.convert.codes import (
    Codes,
    carried,
    from_awq,
    from_gptq,
    from_packed,
    run_length,
    unpacked,
    widened,
)
from minisafe.convert.quantised import Quantised, read_quantised
from minisafe.convert.rounded import round_model
from minisafe.convert.widen import quantised_source, widen
from minisafe.errors import BadInput, CheckpointError, ConfigError
from minisafe.fast.int8 import int8_linear
from minisafe.fast.rounded import load_rounded
from minisafe.rounding import dequantize, dequantize_groups
from tests.support.spoil import refuses
from tests.support.tiny import random_model, tensors_of, tiny_config

GOLDENS = Path(__file__).parents[1] / "goldens" / "quantised"
NAMES = sorted(path.name for path in GOLDENS.iterdir())
FOUR = ("gptq", "gptq_channels", "awq", "compressed", "compressed_zeros")  # whose codes int4 holds
EIGHT = ("compressed_8_bits", "compressed_int8")  # whose codes int8 holds
GATE = "model.layers.0.mlp.gate_proj"


def silent(done: int, total: int) -> None:
    """No progress."""


def opened(name: str | Path) -> Quantised:
    read = read_quantised(GOLDENS / name)
    assert read is not None
    return read


def wide(name: str | Path, out: Path, dtype: str = "float32") -> Path:
    widen(opened(name), out, dtype, silent)
    return out


def rounded(name: str, out: Path, form: str, group: int | None = None) -> dict[str, Any]:
    read = opened(name)
    used = (group or read.group or 32) if form == "int4" else 0
    return round_model(quantised_source(read, "float32"), out, form, used, "float32", silent)


def golden(name: str) -> tuple[Tensor, Tensor]:
    found = load_file(GOLDENS / name / "golden.safetensors")
    return found["ids"].long(), found["logits"]


def test_the_goldens_are_all_there() -> None:
    methods = {opened(name).settings["quant_method"] for name in NAMES}
    assert methods == {"gptq", "awq", "compressed-tensors"}
    assert len(NAMES) == 9


@pytest.mark.parametrize("name", NAMES)
def test_plain_weights_give_the_programs_own_logits(tmp_path: Path, name: str) -> None:
    model = load_model(wide(name, tmp_path / "out"))
    ids, logits = golden(name)
    assert model.dtype == torch.float32
    torch.testing.assert_close(model(ids), logits, atol=1e-4, rtol=0)
    assert (tmp_path / "out" / "golden.safetensors").exists() is False


@pytest.mark.parametrize(("name", "form"), [(name, "int4") for name in FOUR] +
                         [(name, "int8") for name in EIGHT])  # fmt: skip
def test_codes_are_kept(tmp_path: Path, name: str, form: str) -> None:
    """Every weight is the one that the other program has: none is rounded a second time."""
    done = rounded(name, tmp_path / "own", form)
    assert done["codes_kept"] == opened(name).n_codes
    plain = tensors_of(load_model(wide(name, tmp_path / "plain")))
    held = load_file(tmp_path / "own" / WEIGHTS)
    undo = dequantize if form == "int8" else dequantize_groups
    for module in opened(name).modules:
        found = undo(held[f"{module}.weight"], held[f"{module}.scales"])
        # int4 adds a product and the middle, which float32 rounds
        torch.testing.assert_close(found, plain[f"{module}.weight"], atol=2e-7, rtol=0)
    assert load_rounded(tmp_path / "own")(golden(name)[0]).isfinite().all()


@pytest.mark.parametrize("name", FOUR)
def test_int4_decodes_as_the_other_program(tmp_path: Path, name: str) -> None:
    """But for the head, which is int8 here, and of a tied model the embedding: within 2 % of the
    logits' spread."""
    rounded(name, tmp_path / "own", "int4")
    ids, logits = golden(name)
    far = (load_rounded(tmp_path / "own")(ids) - logits).square().mean().sqrt()
    assert far < 0.02 * logits.std()


@pytest.mark.parametrize(("name", "form", "group"), [
    ("gptq_ordered", "int4", 32), ("gptq_8_bits", "int8", None), ("gptq", "int8", None),
    ("compressed_int8", "int4", 32),
])  # fmt: skip
def test_what_another_form_does_not_hold_is_rounded_again(
    tmp_path: Path, name: str, form: str, group: int | None
) -> None:
    """As the plain weights would be."""
    done = rounded(name, tmp_path / "own", form, group)
    assert done["codes_kept"] == 0
    plain = wide(name, tmp_path / "plain")
    read = load_rounded(tmp_path / "own")
    assert done["fingerprint"] == fingerprint(load_model(plain))
    ids, logits = golden(name)
    assert (read(ids) - logits).square().mean().sqrt() < 0.5 * logits.std()


def test_the_longest_group_that_holds_the_codes() -> None:
    assert {name: opened(name).group for name in NAMES} == {
        "awq": 32, "compressed": 32, "compressed_8_bits": 32, "compressed_int8": 32,
        "compressed_zeros": 32, "gptq": 32, "gptq_8_bits": 32, "gptq_channels": 32,
        "gptq_ordered": 0,
    }  # fmt: skip


def test_a_bfloat16_directory(tmp_path: Path) -> None:
    model = load_model(wide("awq", tmp_path / "out", "bfloat16"))
    assert model.dtype == torch.bfloat16
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["torch_dtype"] == "bfloat16"


def test_only_compressed_tensors_round_activations() -> None:
    assert [name for name in NAMES if opened(name).rounds_activations] == ["compressed_int8"]


# ---- codes -------------------------------------------------------------------------------------


@given(st.sampled_from((4, 8)), st.integers(0, 99))
def test_unpacking_undoes_packing(bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (3, 64), generator=generator)
    per = 32 // bits
    words = (codes.view(3, -1, per) << (bits * torch.arange(per))).sum(-1)
    words = torch.where(words >= 2**31, words - 2**32, words).int()
    assert torch.equal(unpacked(words, bits).long(), codes)


@given(st.integers(0, 99), st.sampled_from((32, 64, 128)), st.sampled_from((32, 64, 128)))
def test_carried_codes_are_the_same_weights(seed: int, group: int, own: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    n = 256 // group
    codes = torch.randint(16, (5, 256), generator=generator, dtype=torch.uint8)
    zeros = torch.randint(16, (5, n), generator=generator, dtype=torch.uint8)
    scales = torch.rand(5, n, generator=generator).half()
    block = Codes(codes, zeros, scales, torch.arange(256) // group, 4)
    kept = carried(block, "int4", own, torch.float32)
    assert (kept is None) == (own > group)
    if kept is not None:
        torch.testing.assert_close(dequantize_groups(*kept), widened(block), atol=2e-6, rtol=0)
    assert carried(block, "int8", 0, torch.float32) is None
    assert carried(block, None, 0, torch.float32) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_keeps_symmetric_codes_of_whole_channels(dtype: torch.dtype) -> None:
    """All 256 of them: -128 too, which minisafe itself never writes."""
    codes = torch.arange(256, dtype=torch.uint8).repeat(64, 1)
    zeros = torch.full((64, 1), 128, dtype=torch.uint8)
    groups = torch.zeros(256, dtype=torch.long)
    block = Codes(codes, zeros, torch.full((64, 1), 0.25).half(), groups, 8)
    kept = carried(block, "int8", 0, dtype)
    assert kept is not None
    assert int(kept[0].min()) == -128
    assert torch.equal(dequantize(*kept), widened(block))
    x = torch.ones(2, 256, dtype=dtype)
    assert torch.equal(int8_linear(x, *kept), torch.full((2, 64), -32.0, dtype=dtype))
    for other in (replace(block, zeros=zeros - 1), replace(block, bits=4)):
        assert carried(other, "int8", 0, dtype) is None
    halves = replace(block, zeros=zeros.expand(64, 2), scales=block.scales.expand(64, 2))
    assert carried(halves, "int8", 0, dtype) is None


def test_a_last_word_that_is_not_full() -> None:
    """12 channels of 4 bits take a word and a half."""
    words, scales = torch.tensor([[0x76543210, 0x0000BA98]], dtype=torch.int32), torch.ones(12, 1)
    groups, each = torch.zeros(8, dtype=torch.long), torch.zeros(1, 12, dtype=torch.int32)
    expected = torch.arange(12, dtype=torch.uint8)[:, None]
    packed_ = from_packed(each.t(), words.t(), scales, groups, 4)
    assert torch.equal(packed_.zeros, expected)
    gptq = from_gptq(each, words, scales.t(), groups, 4, 0)
    assert torch.equal(gptq.zeros, expected)
    awq = from_awq(words.expand(8, 2), words, scales.t(), groups)
    assert (awq.codes.shape, awq.zeros.shape) == ((12, 8), (12, 1))
    for block in (packed_, gptq, awq):
        assert widened(block).shape == (12, 8)


def test_runs_of_one_length() -> None:
    assert run_length(torch.tensor([0, 0, 1, 1]), 2) == 2
    assert run_length(torch.tensor([0, 1, 0, 1]), 2) == 0
    assert run_length(torch.tensor([1, 1, 0, 0]), 2) == 0
    assert run_length(torch.tensor([0, 0, 1]), 2) == 0


# ---- what is refused ---------------------------------------------------------------------------


def spoiled(
    out: Path, name: str, change: Callable[[dict[str, Any], dict[str, Tensor]], object]
) -> Path:
    """A golden with another config or other tensors."""
    shutil.copytree(GOLDENS / name, out)
    config = json.loads((out / "config.json").read_text())
    tensors = load_file(out / "model.safetensors")
    change(config, tensors)
    (out / "config.json").write_text(json.dumps(config))
    save_file(tensors, out / "model.safetensors")
    return out


def put(key: str, value: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], object]:
    return lambda config, _: config["quantization_config"].update({key: value})


def tensor(
    name: str, make: Callable[[Tensor], Tensor | None]
) -> Callable[[dict[str, Any], dict[str, Tensor]], object]:
    def change(_: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        made = make(tensors.pop(name))
        if made is not None:
            tensors[name] = made.contiguous()

    return change


@pytest.mark.parametrize(("name", "change", "error", "words"), [
    ("gptq", put("checkpoint_format", "marlin"), ConfigError, ("checkpoint_format", "'marlin'")),
    ("gptq", put("is_marlin_format", True), ConfigError, ("is_marlin_format",)),
    ("awq", put("version", "gemv"), ConfigError, ("version", "'gemv'", "gemm")),
    ("compressed", put("format", "nvfp4-pack-quantized"), ConfigError, ("format",)),
    ("compressed", put("transform_config", {"a": 1}), ConfigError, ("transform_config",)),
    ("gptq", tensor(f"{GATE}.qzeros", lambda x: None), CheckpointError, ("missing", "qzeros")),
    ("gptq", tensor(f"{GATE}.scales", lambda x: None), CheckpointError, ("missing", "scales")),
    ("gptq", tensor(f"{GATE}.scales", lambda x: x / 0), CheckpointError, ("scales", "infinite")),
    ("gptq", tensor(f"{GATE}.scales", lambda x: x.int()), CheckpointError, ("int32", "float16")),
    ("gptq", tensor(f"{GATE}.g_idx", lambda x: x + 1), CheckpointError, ("groups 1 to 2",)),
    ("gptq", tensor(f"{GATE}.g_idx", lambda x: x[:3]), CheckpointError, ("g_idx", "(3,)")),
    ("gptq", tensor(f"{GATE}.qweight", lambda x: x[:6]), CheckpointError, ("4 or 8 bits",)),
    ("gptq", tensor(f"{GATE}.qweight", lambda x: x[:, 3:]), CheckpointError, ("qweight",)),
    ("gptq", tensor(f"{GATE}.qweight", lambda x: None), CheckpointError, ("unexpected", GATE)),
    ("awq", tensor(f"{GATE}.qweight", lambda x: x.t()), CheckpointError, ("qweight", "shape")),
    ("awq", tensor(f"{GATE}.qweight", lambda x: x[:0]), CheckpointError, ("qweight",)),
    ("compressed", tensor(f"{GATE}.weight_shape", lambda x: x + 1), CheckpointError,
     ("weight_shape", "[97, 65]")),
    ("compressed", tensor(f"{GATE}.weight_scale", lambda x: x[:, 0]), CheckpointError,
     ("weight_scale", "groups")),
    ("compressed_int8", tensor(f"{GATE}.weight_scale", lambda x: x[0]), CheckpointError,
     ("weight_scale", "groups")),
    ("compressed_int8", tensor("model.embed_tokens.weight", lambda x: x.to(torch.int8)),
     CheckpointError, ("embed_tokens", "linear maps")),
    ("compressed_int8", tensor("model.norm.weight", lambda x: x.to(torch.int8)),
     CheckpointError, ("model.norm", "linear maps")),
])  # fmt: skip
def test_what_is_refused(
    tmp_path: Path, name: str, change: Any, error: type[BadInput], words: tuple[str, ...]
) -> None:
    """Before anything is written, in one line that names what is wrong."""
    directory = spoiled(tmp_path / "bad", name, change)
    refuses(error, lambda: wide(directory, tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


def test_biases_of_zeros_are_left_out(tmp_path: Path) -> None:
    def add(value: float) -> Callable[[Any, dict[str, Tensor]], object]:
        return lambda _, tensors: tensors.update({f"{GATE}.bias": torch.full((96,), value)})

    zeros = spoiled(tmp_path / "zeros", "gptq", add(0.0))
    ids, logits = golden("gptq")
    torch.testing.assert_close(load_model(wide(zeros, tmp_path / "a"))(ids), logits, atol=1e-4,
                               rtol=0)  # fmt: skip
    ones = spoiled(tmp_path / "ones", "gptq", add(1.0))
    refuses(CheckpointError, lambda: wide(ones, tmp_path / "b"), "unexpected", "gate_proj.bias")


def packed(weight: Tensor, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Symmetric GPTQ parts of random codes in groups of 8, for a weight's shape; and what they
    mean."""
    generator = torch.Generator().manual_seed(seed)
    n_out, n_in = weight.shape
    codes = torch.randint(16, (n_in, n_out), generator=generator)
    words = (codes.view(-1, 8, n_out) << (4 * torch.arange(8))[:, None]).sum(1)
    parts = {
        "qweight": torch.where(words >= 2**31, words - 2**32, words).int(),
        "qzeros": torch.full((n_in // 8, n_out // 8), 0x77777777, dtype=torch.int32),
        "scales": torch.rand(n_in // 8, n_out, generator=generator).half() / 20,
    }
    wide = (codes - 8) * parts["scales"].float().repeat_interleave(8, 0)
    return parts, wide.t()


@pytest.mark.parametrize(("name", "left"), [("phi3", ""), ("llama2", "q_proj"), ("qwen2", "mlp")])
def test_fused_maps_and_maps_that_are_left_plain(tmp_path: Path, name: str, left: str) -> None:
    """Phi-3 has q, k and v in one tensor; a program may leave some maps as they are. The parts are
    packed here, as docs of the layout say."""
    source = GOLDENS.parent / name
    config = json.loads((source / "config.json").read_text())
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    for number, (key, value, _) in enumerate(read_tensors(source)):
        module = key.removesuffix("weight")
        if "proj.weight" not in key or (left and left in key):
            tensors[key] = plain[key] = value
            continue
        parts, plain[key] = packed(value, number)
        tensors |= {module + part: each for part, each in parts.items()}
    for out, held, more in (
        (tmp_path / "codes", tensors, {"quantization_config": {"quant_method": "gptq"}}),
        (tmp_path / "plain", plain, {"torch_dtype": "float32"}),
    ):
        out.mkdir()
        save_file({key: each.contiguous() for key, each in held.items()}, out / "model.safetensors")
        (out / "config.json").write_text(json.dumps(config | more))
    ids = torch.arange(1, 20)[None]
    model = load_model(wide(tmp_path / "codes", tmp_path / "out"))
    expected = load_model(tmp_path / "plain", "float32")
    assert torch.equal(model(ids), expected(ids))


def test_other_directories_are_not_taken(tmp_path: Path) -> None:
    save_model(random_model(tiny_config()), tmp_path / "plain")
    assert read_quantised(tmp_path / "plain") is None
    assert read_quantised(tmp_path) is None
