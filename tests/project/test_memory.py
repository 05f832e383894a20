"""Peak memory of loading and running a model, measured in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minisafe.checkpoint import SINGLE, save_tensors
from minisafe.checkpoint.config import config_json
from minisafe.model import Llama
from tests.support.spoil import shard
from tests.support.tiny import tensors_of, tiny_config

MEASURE = """
import sys
from pathlib import Path

import torch

from minisafe.checkpoint import load_model
from minisafe.fast.prepare import can_pack, prepare


def peak():
    # not resource.getrusage: its ru_maxrss keeps what the process was before exec, pytest's size
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024


torch.set_num_threads(1)
can_pack(torch.bfloat16)
libraries = peak()
model = load_model(sys.argv[1])
assert model.dtype == torch.bfloat16
weights = sum(p.nbytes for p in model.parameters())
prepare(model, sys.argv[2])
cache = model.new_cache(1, 64)
ids = torch.arange(16)[None]
for _ in range(4):
    ids = model(ids, cache, last_only=True).argmax(-1, keepdim=True)
print(libraries, peak(), weights)
"""


def write_model(directory: Path, **sizes: int) -> None:
    """A random bf16 model."""
    config = tiny_config(
        hidden=1024,
        intermediate=4096,
        n_heads=16,
        n_kv_heads=16,
        head_dim=64,
        dtype="bfloat16",
        **sizes,
    )
    with torch.device("meta"):
        model = Llama(config)
    tensors = {
        name: torch.randn(tensor.shape, dtype=torch.bfloat16) * 0.02
        for name, tensor in tensors_of(model).items()
    }
    (directory / "config.json").write_text(json.dumps(config_json(config)))
    save_tensors(tensors, directory / SINGLE)


def measure(directory: Path, weights: str, **sizes: int) -> tuple[int, int]:
    """Bytes of a random model's peak beyond the libraries, and of its weights."""
    write_model(directory, **sizes)
    if weights == "sharded":
        shard(directory, 3)
    kind = "packed" if weights == "packed" else "plain"
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(directory), kind],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    libraries, peak, size = map(int, run.stdout.split())
    return peak - libraries, size


ROUNDED = """
from minisafe.convert.rounded import directory_source, round_model
from minisafe.fast.int4 import layout
from minisafe.fast.int8 import can_pack_int8
from minisafe.fast.rounded import load_rounded

can_pack_int8(), layout()
libraries = peak()
if sys.argv[2] == "write":
    source, out, form = directory_source(Path(sys.argv[1])), Path(sys.argv[3]), sys.argv[4]
    round_model(source, out, form, 32 if form == "int4" else 0, None, lambda done, total: None)
else:
    load_rounded(sys.argv[1])
print(libraries, peak(), 0)
"""


def run_rounded(directory: Path, *words: str) -> int:
    """Bytes of the peak beyond the libraries of writing or reading rounded weights."""
    start = MEASURE.partition("libraries = peak()")[0]
    run = subprocess.run(
        [sys.executable, "-c", start + ROUNDED, str(directory), *words],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    libraries, peak, _ = map(int, run.stdout.split())
    return peak - libraries


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_rounded_weights_are_never_wide(tmp_path: Path, form: str) -> None:
    """Written with the memory of the largest tensor (50 MB here) and a constant; read with 1.15 x
    the file, and 16 MiB for what is sampled and for a race."""
    source, out = tmp_path / "wide", tmp_path / form
    source.mkdir()
    write_model(source, vocab_size=24000, n_layers=6)
    assert run_rounded(source, "write", str(out), form) < 50e6 + 80 * 2**20
    size = (out / "rounded.safetensors").stat().st_size
    assert size < (0.6 if form == "int8" else 0.5) * (source / SINGLE).stat().st_size
    assert run_rounded(out, "read") < 1.15 * size + 16 * 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("weights", ["whole", "sharded"])
def test_peak_memory_is_that_of_the_weights(tmp_path: Path, weights: str) -> None:
    """With the dtype kept: at most 1.15 x the weights on top of the libraries, and 8 MiB for
    kernels that are first loaded by the forward pass."""
    peak, size = measure(tmp_path, weights, vocab_size=8000, n_layers=5)
    assert size > 190e6
    assert peak < 1.15 * size + 8 * 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_packing_needs_no_room_for_a_second_head(tmp_path: Path) -> None:
    """An untied embedding is not in memory while the head, here as large as it and a third of all,
    is there twice (62 MiB more). 40 MiB: kernels, and a layer's parts side by side."""
    peak, size = measure(tmp_path, "packed", vocab_size=32000, n_layers=2)
    assert size > 190e6
    assert peak < size + 40 * 2**20
