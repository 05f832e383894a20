"""Peak memory of loading and running a model, measured in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import tensors_of, tiny_config
from spoil import shard

from minisafe.checkpoint import SINGLE, save_tensors
from minisafe.model import Llama

MEASURE = """
import sys
from pathlib import Path

import torch

from minisafe.cache import KVCache
from minisafe.checkpoint import load_model


def peak():
    # not resource.getrusage: its ru_maxrss keeps what the process was before exec, pytest's size
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024


torch.set_num_threads(1)
libraries = peak()
model = load_model(sys.argv[1])
assert model.dtype == torch.bfloat16
cache = KVCache(model.config, 1, 64, dtype=model.dtype)
ids = torch.arange(16)[None]
for _ in range(4):
    ids = model(ids, cache, last_only=True).argmax(-1, keepdim=True)
print(libraries, peak(), sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("sharded", [False, True])
def test_peak_memory_is_that_of_the_weights(tmp_path: Path, sharded: bool) -> None:
    """With the dtype kept: at most 1.15 x the weights on top of the libraries, and 8 MiB for
    kernels that are first loaded by the forward pass."""
    config = tiny_config(
        vocab_size=8000,
        hidden=1024,
        intermediate=4096,
        n_layers=5,
        n_heads=16,
        n_kv_heads=16,
        head_dim=64,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        model = Llama(config)
    tensors = {
        name: torch.randn(tensor.shape, dtype=torch.bfloat16) * 0.02
        for name, tensor in tensors_of(model).items()
    }
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    save_tensors(tensors, tmp_path / SINGLE)
    if sharded:
        shard(tmp_path, 3)
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    libraries, peak, weights = map(int, run.stdout.split())
    assert weights > 190e6
    assert peak < 1.15 * weights + libraries + 8 * 2**20
