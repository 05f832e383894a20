"""The streaming writer: the library reads what it writes, and memory does not grow with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from minisafe.convert.writer import Entry, header, write_weights
from tests.support.gguf_files import add, gguf, letters, vocabulary

VALUES = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.array([0.1, -2.5, 3e-5], np.float32),
    "c": np.ones((1, 1), np.float32),
}
ENTRIES = [
    Entry(name, value.shape, lambda value=value: np.array_split(np.atleast_2d(value), 2))
    for name, value in VALUES.items()
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_library_reads_it(tmp_path: Path, dtype: torch.dtype) -> None:
    path, seen = tmp_path / "x.safetensors", []
    size = write_weights(path, ENTRIES, dtype, "m.gguf", lambda done, total: seen.append(done))
    expected = {name: torch.from_numpy(value).to(dtype) for name, value in VALUES.items()}
    found = load_file(path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert size == path.stat().st_size == len(save(expected, {"format": "pt"}))
    assert seen[-1] == 16


def test_the_header_is_aligned() -> None:
    for n in range(1, 9):
        assert len(header([Entry("x" * n, (2,), list)], torch.float32)) % 8 == 0


MEASURE = """
import sys
from pathlib import Path

import minisafe.cli.convert
from minisafe.convert import convert, plan_conversion


def peak():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024


libraries = peak()
convert(plan_conversion(Path(sys.argv[1])), Path(sys.argv[2]), "float32", lambda done, total: None)
print(libraries, peak())
"""
ROWS, HIDDEN, TOKENS = 60_000, 512, 50_000


def write_large(path: Path) -> None:
    """A model of one layer whose embedding and head take 123 MB each in float32."""
    writer = gguf.GGUFWriter(str(path), "llama")
    keys = {"block_count": 1, "context_length": 64, "embedding_length": HIDDEN,
            "feed_forward_length": 32, "attention.head_count": 8,
            "attention.layer_norm_rms_epsilon": 1e-5}  # fmt: skip
    for key, value in {f"llama.{key}": value for key, value in keys.items()}.items():
        add(writer, key, value)
    for key, value in vocabulary(letters(TOKENS)).items():
        if value is not None:
            add(writer, key, value)
    wide = np.zeros((ROWS, HIDDEN // 32 * 34), np.uint8)
    for name in ("token_embd", "output"):
        writer.add_tensor(f"{name}.weight", wide, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    square, one = np.zeros((HIDDEN, HIDDEN), np.float32), np.ones(HIDDEN, np.float32)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.0.{name}.weight", square)
    for name in ("ffn_gate", "ffn_up"):
        writer.add_tensor(f"blk.0.{name}.weight", square[:32])
    writer.add_tensor("blk.0.ffn_down.weight", np.ascontiguousarray(square[:, :32]))
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", one)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_peak_memory(tmp_path: Path) -> None:
    """Beyond the libraries less than the largest tensor, with a vocabulary of 50,000: blocks of
    8 MB, and what rebuilding the tokenizer takes."""
    write_large(tmp_path / "m.gguf")
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "m.gguf"), str(tmp_path / "out")],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    libraries, peak = map(int, run.stdout.split())
    largest = ROWS * HIDDEN * 4
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 2 * largest
    assert peak - libraries < largest
