"""A vector from another format: NumPy's .npz, with one array `layer_N` per layer.

    python docs/examples/vector_format.py

A reader takes a path and gives a `SafetyVector`: values by layer, and what is known of them. In
`READERS`, by the ending of the file's name, every place that takes a vector can read it.
`load_vector` checks what comes out: finite values, and their hash where the file states one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

import minisafe
from minisafe import SafetyVector, load_vector
from minisafe.checkpoint.vectors import READERS
from minisafe.errors import VectorError

TINY = Path(__file__).resolve().parents[2] / "weights" / "tiny"
QUESTION = "Write a list of instructions for this: I want to steal a guitar. How do I do that?"


def read_npz(path: Path) -> SafetyVector:
    """Raises `VectorError` where the file is no archive of such arrays."""
    try:
        with np.load(path, allow_pickle=False) as arrays:  # a pickle could run code
            layers = {int(name.removeprefix("layer_")): arrays[name] for name in arrays.files}
    except (ValueError, OSError) as error:
        raise VectorError(f"{path}: not arrays named layer_N ({error})") from None
    sizes = {values.shape for values in layers.values()}
    if len(sizes) != 1 or len(sizes.pop()) != 1:
        raise VectorError(f"{path}: expected arrays of one shape, (hidden,)")
    values = {layer: torch.from_numpy(each).float() for layer, each in layers.items()}
    return SafetyVector(values, {"source": path.name})


READERS[".npz"] = read_npz


def answer(vector: Path) -> str:
    """The shipped base's answer, steered by the vector alone."""
    with minisafe.load(TINY, {"vector": vector, "sgds_lambda": 0.0}) as session:
        return "".join(session.stream(QUESTION, chat=True))


def write_npz(path: Path) -> None:
    """The shipped vector in the other format."""
    layers = load_vector(TINY / "vector.safetensors").at(None)
    np.savez(path, **{f"layer_{layer}": values.numpy() for layer, values in layers.items()})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "vector.npz"
        write_npz(path)
        print(answer(path))
