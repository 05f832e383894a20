"""The reader of directories that other programs quantised: its config, and its tensors."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

from target import Target

from minisafe.checkpoint import SINGLE
from minisafe.checkpoint.plan import tensor_shapes
from minisafe.convert.codes import Codes, widened
from minisafe.convert.quantised import read_quantised

GOLDENS = Path(__file__).resolve().parents[1] / "goldens" / "quantised"
NAMES = ("gptq", "awq", "compressed_zeros", "compressed_int8")
ROOT = Path(tempfile.mkdtemp(prefix="fuzz-"))
atexit.register(shutil.rmtree, ROOT, ignore_errors=True)


def every_value(directory: Path) -> None:
    """Each tensor is there, of its shape and finite."""
    read = read_quantised(directory)
    if read is None:
        return
    for name, shape in tensor_shapes(read.config):
        value = read.value(name)
        plain = widened(value) if isinstance(value, Codes) else value
        assert plain.shape == shape, f"{name} has another shape"
        assert bool(plain.isfinite().all()), "weights that are not finite"


def target(file: str, label: str) -> Target:
    """A file of the goldens, mutated beside the rest of its directory."""
    seeds = tuple((GOLDENS / name / file).read_bytes() for name in NAMES)

    def read(given: Path) -> None:
        content = given.read_bytes()
        # the rest is the golden's that this file came from, as far as its size tells
        nearest = min(NAMES, key=lambda name: abs(len(seeds[NAMES.index(name)]) - len(content)))
        place = ROOT / label / nearest
        if not place.is_dir():
            shutil.copytree(GOLDENS / nearest, place)
        (place / file).write_bytes(content)
        every_value(place)

    return Target(label, seeds, Path(file).suffix, read)


TARGETS = (target("config.json", "config.json, quantised"), target(SINGLE, "quantised.safetensors"))
