"""Probes in files: `weight` (streams, vocab) and `bias` (1,) as safetensors."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from minisafe.checkpoint import limits
from minisafe.checkpoint.files import check_finite, read_file
from minisafe.checkpoint.header import FLOATS, read_header
from minisafe.errors import CheckpointError
from minisafe.files import whole_file
from minisafe.probe import Probe

FORMAT = "minisafe-probe"
STREAMS = 4  # most streams that a rule reads
RANKS = {"weight": 2, "bias": 1}


def load_probe(path: str | Path) -> Probe:
    """Read a probe. Raises `CheckpointError`."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a probe (minisafe calibrate)")
    stated = read_header(path).tensors
    shapes = {name: each.shape for name, each in stated.items() if each.dtype in FLOATS}
    if {name: len(shape) for name, shape in shapes.items()} != RANKS or len(stated) != len(RANKS):
        raise CheckpointError(
            f"{path}: tensors {', '.join(sorted(stated)) or 'none'}; expected a probe: weight "
            "(streams, vocab) and bias (1,), floats; make it with minisafe calibrate"
        )
    streams, size = shapes["weight"]
    most = limits.CONFIG["vocab_size"].most
    if not (1 <= streams <= STREAMS and 1 <= size <= most and shapes["bias"] == (1,)):
        raise CheckpointError(
            f"{path}: weight {shapes['weight']} and bias {shapes['bias']}; expected up to "
            f"{STREAMS} streams of up to {most:,} ids, and (1,)"
        )
    values = {}
    for name, tensor, _ in read_file(path):
        check_finite(tensor, name, path)
        values[name] = tensor.float().clone()
    return Probe(values["weight"], values["bias"])


def save_probe(probe: Probe, path: str | Path) -> None:
    """Write a probe, whole or not at all."""
    tensors = {name: getattr(probe, name).contiguous() for name in RANKS}
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={"format": FORMAT})
