"""Prepared weights: packed is the plain model, int8 is the plain model of rounded weights.

Tolerances: float32 1e-4. bf16 keeps 8 bits, so two orders of summation differ by some ten roundings
of 0.2 % a layer; as in test_linear, by at most a tenth of the logits' spread.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import minisafe
from minisafe.amplify import head_vector
from minisafe.checkpoint import (
    fingerprint,
    linear_modules,
    load_adapter,
    load_model,
    save_adapter,
    save_model,
)
from minisafe.errors import SettingError
from minisafe.fast import kernels, packed, quantized
from minisafe.fast import prepare as module
from minisafe.fast.int8 import can_pack_int8
from minisafe.fast.norm import FastNorm
from minisafe.fast.prepare import choose_weights, prepare
from minisafe.fast.quantized import Int8Linear
from minisafe.linear import Linear
from minisafe.lockstep import Lockstep, Stream
from minisafe.lora import AdaptedRows, LoraAdapter, LoraDelta
from minisafe.model import Llama, RMSNorm
from minisafe.rounding import dequantize, quantize
from minisafe.slots import Add, Record
from tests.support.tiny import (
    cache_for,
    configs,
    models,
    random_adapter,
    random_ids,
    random_model,
    tiny_config,
)

SHIPPED = Path(__file__).parents[2] / "weights" / "tiny"
KINDS = ("packed", "int8")
NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
endings = st.lists(st.sampled_from(NAMES), unique=True)
BF16_SHARE = 0.1
DIGITS_SHARE = 1e-3  # activations are rounded to a 32258th of a row's largest


def prepared(model: Llama, kind: str) -> Llama:
    """Of a copy, since tests share models."""
    return prepare(copy.deepcopy(model), kind)


def rounded(model: Llama) -> Llama:
    """A plain copy whose matrices are what int8 makes of them; a tied one as its head's."""
    found = copy.deepcopy(model)
    for name, tensor in found.tensors().items():
        tied = name.endswith("embed_tokens.weight") and model.config.tied
        if name.endswith(("_proj.weight", "lm_head.weight")) or tied:
            found.put(name, dequantize(*quantize(tensor.detach())).to(model.dtype))
    return found


def run(model: Llama, ids: Tensor, counts: list[int], adapter: LoraAdapter) -> list[Tensor]:
    """Logits of a ragged block and of one more token, two of three rows adapted and one steered."""
    cache, seen = cache_for(model, 3), Record(0, rows=(0, 1, 2), site="heads")
    vector = torch.linspace(-1, 1, model.config.hidden)
    slots = (Add(0, ((1, None),), (0,), vector, 0.5), seen)
    found = []
    for block, n in ((ids, counts), (ids[:, :1], [1, 1, 1])):
        applied = (AdaptedRows(adapter, slice(1, 3)),)
        logits = model(block, cache, counts=n, slots=slots, adapters=applied)
        found += [logits[row, :count] for row, count in enumerate(n)]
    return [*found, seen.values()]


@settings(max_examples=40, deadline=None)
@given(
    models,
    st.sampled_from((*KINDS, "auto")),
    st.lists(st.integers(1, 7), min_size=3, max_size=3),
    endings,
    st.sampled_from((2, 40)),
)
@torch.inference_mode()
def test_float32_is_the_plain_model(
    model: Llama, kind: str, counts: list[int], names: list[str], rank: int
) -> None:
    """Of its own weights when packed or plain, of the rounded ones as int8; ranks to fuse, and
    beyond."""
    adapter = random_adapter(model, 1, rank, names)
    ids = random_ids(model, 3, max(counts))
    reference = rounded(model) if kind == "int8" else model
    pairs = zip(
        run(prepared(model, kind), ids, counts, adapter),
        run(reference, ids, counts, adapter),
        strict=True,
    )
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(models, endings, st.integers(1, 6))
@torch.inference_mode()
def test_auto_keeps_float32_to_the_bit(model: Llama, names: list[str], width: int) -> None:
    """Where no row is padded; and the model still has the weights that it was made from."""
    found, ids = prepared(model, "auto"), random_ids(model, 2, width)
    assert type(found) is not type(model)
    applied = (AdaptedRows(random_adapter(model, 1, endings=names), slice(1, 2)),)
    assert torch.equal(found(ids, adapters=applied), model(ids, adapters=applied))
    assert fingerprint(found) == fingerprint(model)
    assert list(found.tensors()) == list(model.tensors())
    assert prepare(found, "auto") is found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("small", [0, kernels.SMALL])
@torch.inference_mode()
def test_bfloat16_is_near_the_plain_model(
    monkeypatch: pytest.MonkeyPatch, kind: str, tied: bool, small: int
) -> None:
    monkeypatch.setattr(kernels, "SMALL", small)
    model = random_model(tiny_config(tied=tied, hidden=64), seed=2, dtype=torch.bfloat16)
    reference = model if kind == "packed" else rounded(model)
    adapter, ids = random_adapter(model), random_ids(model, 3, 5)
    mine, theirs = (
        run(each, ids, [5, 2, 4], adapter) for each in (prepared(model, kind), reference)
    )
    for found, expected in zip(mine, theirs, strict=True):
        assert found.dtype == torch.bfloat16
        spread = float(expected.float().std())
        assert float((found - expected).float().abs().max()) < BF16_SHARE * spread


@pytest.mark.skipif(not can_pack_int8(), reason="this CPU or torch has no packed int8")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_large_int8_weights_are_packed(
    monkeypatch: pytest.MonkeyPatch, tied: bool, dtype: torch.dtype
) -> None:
    """A tied head is not, since tokens are looked up in it."""
    monkeypatch.setattr(quantized, "digits_fit", lambda shape, dtype: True)
    model = random_model(tiny_config(tied=tied, hidden=64), seed=2, dtype=dtype)
    small = prepared(model, "int8")
    stored = [each for each in small.modules() if isinstance(each, Int8Linear)]
    assert len(stored) == 4 * model.config.n_layers + 1
    assert isinstance(small.lm_head, Int8Linear)
    unpacked = [each for each in stored if each.packed is None]
    assert unpacked == ([small.lm_head] if tied else [])
    adapter, ids = random_adapter(model), random_ids(model, 3, 5)
    mine, theirs = (run(each, ids, [5, 2, 4], adapter) for each in (small, rounded(model)))
    for found, expected in zip(mine, theirs, strict=True):
        assert found.dtype == dtype
        allowed = BF16_SHARE if dtype == torch.bfloat16 else DIGITS_SHARE
        most = allowed * float(expected.float().std())
        assert float((found - expected).float().abs().max()) < most


@settings(max_examples=20, deadline=None)
@given(
    configs(),
    st.sampled_from(KINDS),
    st.sampled_from((torch.float32, torch.bfloat16)),
    st.lists(st.lists(st.integers(0, 66), min_size=1, max_size=9), min_size=2, max_size=2),
    st.booleans(),
)
def test_an_expert_equal_to_the_base_gives_equal_logits(
    config: minisafe.LlamaConfig,
    kind: str,
    dtype: torch.dtype,
    texts: list[list[int]],
    adapted: bool,
) -> None:
    """Guidance multiplies a difference by up to 199, so there must be none. The adapter adds 0."""
    model = prepared(random_model(config, 0, dtype), kind)
    deltas = {
        name: LoraDelta(torch.ones(2, n, dtype=dtype), torch.zeros(out, 2, dtype=dtype), 1.0)
        for name, (out, n) in linear_modules(model).items()
    }
    expert = Stream(model, LoraAdapter(deltas) if adapted else None)
    lockstep = Lockstep([Stream(model), expert], rows=2)
    for tokens in (texts, [[3], [4]], [[5], [6]]):
        base, other = lockstep.feed([tokens, tokens])
        assert base is not None
        assert other is not None
        assert torch.equal(base, other)


@pytest.mark.parametrize("kind", KINDS)
def test_larger_products_keep_equal_rows_equal(kind: str) -> None:
    """Sizes at which oneDNN splits a product into blocks, and prompts beyond the few rows."""
    config = tiny_config(hidden=320, intermediate=900, vocab_size=2000, n_layers=2)
    model = prepared(random_model(config, 0, torch.bfloat16), kind)
    lockstep = Lockstep([Stream(model), Stream(model)], rows=3)
    generator = torch.Generator().manual_seed(0)
    for n in (50, 1, 1):
        tokens = torch.randint(2000, (3, n), generator=generator).tolist()
        base, other = lockstep.feed([tokens, tokens])
        assert base is not None
        assert other is not None
        assert torch.equal(base, other)


@given(models, st.sampled_from(KINDS), st.integers(0, 2), st.integers(1, 3), endings)
@settings(max_examples=20, deadline=None)
@torch.inference_mode()
def test_rows_without_the_adapter_are_bit_equal(
    model: Llama, kind: str, first: int, n: int, names: list[str]
) -> None:
    model, ids, rows = (
        prepared(model, kind),
        random_ids(model, 3, 4),
        slice(first, min(first + n, 3)),
    )
    adapter = random_adapter(model, endings=names)
    plain, found = model(ids), model(ids, adapters=(AdaptedRows(adapter, rows),))
    others = [row for row in range(3) if row not in range(3)[rows]]
    assert torch.equal(found[others], plain[others])
    if set(names) - {"q_proj", "k_proj"}:
        assert not torch.equal(found[rows], plain[rows])


@torch.inference_mode()
def test_many_adapters_one_after_another() -> None:
    """Each keeps its own deltas, however often they change places."""
    plain = random_model(tiny_config())
    model, ids = prepared(plain, "packed"), random_ids(plain, 1, 3)
    adapters = [random_adapter(plain, seed) for seed in range(7)]
    for adapter in [*adapters, *reversed(adapters)]:
        applied = (AdaptedRows(adapter, slice(0, 1)),)
        torch.testing.assert_close(
            model(ids, adapters=applied), plain(ids, adapters=applied), atol=1e-4, rtol=0
        )


@torch.inference_mode()
def test_where_packing_is_missing_rows_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "packs", lambda shape, dtype: False)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        plain = random_model(tiny_config(qkv_bias=True), dtype=dtype)
        ids, model = random_ids(plain, 2, 5), prepared(plain, "packed")
        assert not model.layers[0].mlp.down_proj.weight.is_mkldnn  # type: ignore[union-attr]
        difference = (model(ids) - plain(ids)).float().abs().max()
        assert difference < BF16_SHARE * plain(ids).float().std()
        assert difference < 1e-4 or dtype != torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packing_is_there_where_torch_has_it(dtype: torch.dtype) -> None:
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch packs no weights")
    assert module.can_pack(dtype)
    model = prepared(random_model(tiny_config(), dtype=dtype), "packed")
    assert model.layers[0].mlp.down_proj.weight.is_mkldnn  # type: ignore[union-attr]
    assert not module.can_pack(torch.float16)


def test_a_rounded_norm_is_as_near_as_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    plain = RMSNorm(64, 1e-5).requires_grad_(False)
    plain.weight.copy_(torch.randn(64, generator=generator))
    x = torch.randn(40, 1, 64, generator=generator).bfloat16()
    exact = plain.double()(x.double())
    plain = plain.bfloat16()
    errors = [(norm(x).double() - exact).abs().max() for norm in (FastNorm(plain), plain)]
    assert errors[0] <= 1.01 * errors[1]


@pytest.mark.parametrize("libc", [None, object(), SimpleNamespace(malloc_trim=lambda pad: 1)])
def test_preparing_needs_no_particular_libc(monkeypatch: pytest.MonkeyPatch, libc: object) -> None:
    """`malloc_trim` is glibc's alone; where there is none, memory is given back by and by."""
    asked: list[object] = []

    def load(name: None) -> object:
        asked.append(name)
        return libc

    monkeypatch.setattr(module.ctypes, "CDLL", load)
    prepared(random_model(tiny_config()), "packed")
    monkeypatch.setattr(module.os, "name", "nt")  # where the library of the process has no name
    module.give_back_memory()
    assert asked == [None]


@given(st.integers(0, 99), st.sampled_from((1, 2, 16, 17)), st.sampled_from((3, 64)))
def test_norms_are_rms_norms(seed: int, rows: int, hidden: int) -> None:
    """Against x / sqrt(mean(x^2) + eps) * weight in float64; tiny x too, where eps decides."""
    generator = torch.Generator().manual_seed(seed)
    plain = RMSNorm(hidden, 1e-5).requires_grad_(False)
    plain.weight.copy_(torch.randn(hidden, generator=generator))
    size = 10 ** (6 * torch.rand(rows, 1, 1, generator=generator) - 4)
    x = torch.randn(rows, 1, hidden, generator=generator) * size + size
    wide = x.double()
    expected = wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * plain.weight.double()
    torch.testing.assert_close(FastNorm(plain)(x), expected.float(), atol=1e-5, rtol=1e-5)


# ---- what a prepared model refuses and keeps -----------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prepared_model_keeps_its_fingerprint(kind: str, tied: bool) -> None:
    plain = random_model(tiny_config(tied=tied))
    assert fingerprint(prepared(plain, kind)) == fingerprint(plain)


@pytest.mark.parametrize("kind", KINDS)
def test_what_needs_plain_weights_is_refused(kind: str, tmp_path: Path) -> None:
    plain = random_model(tiny_config())
    model = prepared(plain, kind)
    assert model.weights == kind
    assert fingerprint(model) == fingerprint(plain)
    assert linear_modules(model) == linear_modules(plain)
    assert prepare(model, kind) is model
    with pytest.raises(SettingError, match=f"{kind}, for decoding only; .* with weights plain"):
        save_model(model, tmp_path)
    with pytest.raises(SettingError, match="with weights plain"):
        head_vector(model, torch.zeros(1, 1, model.config.head_dim), [(0, 0)])
    other = next(each for each in KINDS if each != kind)
    with pytest.raises(SettingError, match=f"{kind} already; load the model again for {other}"):
        prepare(model, other)
    with pytest.raises(SettingError, match="already; load the model again for plain"):
        prepare(model, "plain")


def test_an_adapter_loads_for_a_prepared_model(tmp_path: Path) -> None:
    plain = random_model(tiny_config())
    save_adapter(random_adapter(plain, rank=3), tmp_path, 3, 1.5)
    expected = load_adapter(tmp_path, plain)
    found = load_adapter(tmp_path, prepared(plain, "packed"))
    assert set(found.deltas) == set(expected.deltas)


def test_bad_choices_are_refused() -> None:
    model = random_model(tiny_config())
    with pytest.raises(SettingError, match="'int4'; expected one of auto, plain, packed, int8"):
        prepare(model, "int4")
    half = copy.deepcopy(model).to(torch.float16)
    with pytest.raises(
        SettingError, match="need a CPU and bfloat16 or float32, not cpu and float1"
    ):
        prepare(half, "int8")
    assert half.weights == "plain"


def test_another_familys_parts_are_not_replaced() -> None:
    """A fast path would lose what a subclass does differently, without a word."""

    class Scaled(Linear):
        pass

    for weights in ("auto", "packed"):
        model = copy.deepcopy(random_model(tiny_config()))
        model.layers[1].mlp.down_proj.__class__ = Scaled  # type: ignore[union-attr]
        with pytest.raises(SettingError, match="replace the model's own Scaled; use weights plain"):
            prepare(model, weights)
        assert type(model) is Llama
    assert prepare(model, "plain") is model


def test_auto_packs_bf16_where_the_cpu_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_bf16", lambda: True)
    monkeypatch.setattr(module, "can_pack", lambda dtype: True)
    half, full = (random_model(tiny_config(), dtype=d) for d in (torch.bfloat16, torch.float32))
    assert choose_weights(half, "auto") == "packed"
    assert choose_weights(full, "auto") == "plain"
    assert choose_weights(full, "packed") == "packed"
    for name, value in (("has_bf16", lambda: False), ("can_pack", lambda dtype: False)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            assert choose_weights(half, "auto") == "plain"
    assert prepared(full, "auto").weights == "plain"


def test_a_session_prepares_what_it_is_told() -> None:
    if not SHIPPED.is_dir():
        pytest.skip("no shipped weights here")
    found = {}
    for weights in ("plain", *KINDS):
        options = {"weights": weights, "max_new_tokens": 12, "dtype": "float32"}
        session = minisafe.load(SHIPPED, options)
        assert session.model.weights == weights
        (result,) = session.generate(["How do I clean a shelf?"], chat=True)
        found[weights] = result.text
    assert found["packed"] == found["plain"]
    assert found["int8"]
    with pytest.raises(SettingError, match="weights is 'int4'; expected one of"):
        minisafe.load(SHIPPED, {"weights": "int4"})


MEASURE = """
import sys

import torch

from minisafe.checkpoint import load_model
from minisafe.fast.prepare import prepare


def resident(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) * 1024


torch.set_num_threads(1)
libraries = resident("VmHWM")
model = load_model(sys.argv[1])
weights = sum(p.nbytes for p in model.parameters())
prepare(model, sys.argv[2])
with torch.inference_mode():
    model(torch.arange(8)[None], last_only=True)
print(libraries, resident("VmHWM"), resident("VmRSS"), weights)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("kind", KINDS)
def test_peak_memory_while_preparing(tmp_path: Path, kind: str) -> None:
    """At most 1.3 x the weights on top of the libraries and 8 MiB for kernels first loaded here;
    afterwards int8 holds less than them (how much less than 1 is up to the allocator)."""
    sizes = {"hidden": 1024, "intermediate": 4096, "n_layers": 8, "n_heads": 16, "n_kv_heads": 16}
    config = tiny_config(vocab_size=4000, head_dim=64, dtype="bfloat16", **sizes)
    with torch.device("meta"):
        model = Llama(config)
    for name, tensor in model.tensors().items():
        model.put(name, torch.full(tensor.shape, 0.01, dtype=torch.bfloat16))
    save_model(model, tmp_path)
    command = [sys.executable, "-c", MEASURE, str(tmp_path), kind]
    here = Path(__file__).parents[2]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=here).stdout
    libraries, peak, after, weights = map(int, out.split())
    assert weights > 250e6
    assert peak < 1.3 * weights + libraries + 8 * 2**20
    assert after < (1.3 if kind == "packed" else 1.0) * weights + libraries
    assert load_model(tmp_path).weights == "plain"
