"""`minisafe convert`: safety vectors between formats."""

from __future__ import annotations

from pathlib import Path

import click
from torch import Tensor

from minisafe.checkpoint import limits
from minisafe.checkpoint.vectors import load_vector, save_gguf, save_npy, save_vector
from minisafe.cli.options import PATH
from minisafe.errors import VectorError
from minisafe.vectors import SafetyVector


@click.command()
@click.argument("source", type=PATH)
@click.argument("target", type=PATH)
@click.option("--sa-layer", type=int, help="Layer of a source without a layer (.npy).")
def convert(source: Path, target: Path, sa_layer: int | None) -> None:
    """Convert the safety vector SOURCE to TARGET; the suffixes give the formats.

    .safetensors is minisafe's format. .npy is the reference code's format: one layer of shape
    (1, hidden), no metadata. .gguf is llama.cpp's control vector, without layer 0 (extra `gguf`).

    \b
    Example:
      minisafe convert weights/tiny/vector.safetensors vector.gguf
    """
    vector = load_vector(source)
    if sa_layer is not None:
        if not 0 <= sa_layer < limits.LAYERS:
            raise VectorError(f"--sa-layer is {sa_layer}; expected 0 to {limits.LAYERS - 1}")
        placed: dict[int | None, Tensor] = {sa_layer: vector.at(sa_layer)[sa_layer]}
        vector = SafetyVector(placed, vector.metadata)
    savers = {".safetensors": save_vector, ".npy": save_npy, ".gguf": save_gguf}
    if target.suffix not in savers:
        raise VectorError(f"{target}: unknown format; expected one of {', '.join(savers)}")
    savers[target.suffix](vector, target)
    click.echo(f"{target}: written", err=True)
