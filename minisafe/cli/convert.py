"""`minisafe convert`: a model in GGUF to a directory, and safety vectors between formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from minisafe.checkpoint import limits
from minisafe.checkpoint.files import DTYPES, short
from minisafe.checkpoint.vectors import load_vector, save_gguf, save_npy, save_vector
from minisafe.cli.options import PATH, ProgressLine
from minisafe.convert import Conversion, plan_conversion
from minisafe.convert import convert as write_directory
from minisafe.convert.shape import holds_model
from minisafe.errors import SettingError, VectorError
from minisafe.files.display import one_line
from minisafe.session.dtype import decoding_dtype
from minisafe.vectors import SafetyVector

SAVERS = {".safetensors": save_vector, ".npy": save_npy, ".gguf": save_gguf}


@click.command()
@click.argument("source", type=PATH)
@click.argument("target", type=PATH, required=False)
@click.option("--out", type=PATH, help="Model directory to write, for a model in GGUF.")
@click.option("--dtype", type=click.Choice(list(DTYPES)),
              help="Dtype of the weights.  [default: the file's; of a quantised file the one that "
              "a model of this size decodes in]")  # fmt: skip
@click.option("--sa-layer", type=int, help="Layer of a source without a layer (.npy).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def convert(
    source: Path, target: Path | None, out: Path | None, dtype: str | None, sa_layer: int | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Convert the model SOURCE (GGUF, llama.cpp's format) to the directory --out, or the safety
    vector SOURCE to the file TARGET.

    A model must be of the architecture llama, qwen2 or qwen3; every quantisation of the gguf
    library is read (extra `gguf`). The directory has the weights, config, tokenizer and chat
    template. What has no place in it is said.

    A vector's formats follow from the suffixes. .safetensors is minisafe's. .npy is the reference
    code's: one layer of shape (1, hidden), no metadata. .gguf is llama.cpp's control vector,
    without layer 0 (extra `gguf`).

    \b
    Examples:
      minisafe convert SmolLM2-135M-Instruct.Q4_1.gguf --out smollm2
      minisafe convert weights/tiny/vector.safetensors vector.gguf
    """
    if out is not None:
        if target is not None or sa_layer is not None:
            raise SettingError("--out is for a model; TARGET and --sa-layer are for a vector")
        done = convert_model(source, out, dtype)
    else:
        if dtype is not None:
            raise SettingError("--dtype is for a model; give --out too")
        done = convert_vector(source, target, sa_layer)
    if as_json:
        click.echo(json.dumps(done))


# ---- models ------------------------------------------------------------------------------------


def convert_model(source: Path, out: Path, dtype: str | None) -> dict[str, Any]:
    """Write the model directory and say what it lacks; returns what was done."""
    if out.exists():
        raise SettingError(f"{out}: already exists; expected a new directory for --out")
    plan = plan_conversion(source)
    for each in plan.lost:
        click.echo(one_line(f"minisafe: warning: {each}"), err=True)
    line, chosen = ProgressLine(), dtype or default_dtype(plan)
    try:
        done = write_directory(
            plan,
            out,
            chosen,
            lambda n, total: line.show("million values", n // 10**6, -(-total // 10**6)),
        )
    finally:
        line.close()
    said = (
        f"{done['parameters'] / 1e6:,.1f} million parameters, {done['weights_bytes'] / 1e9:.2f} GB"
    )
    click.echo(one_line(f"{out}: a {plan.config.family} model of {said} in {chosen}"), err=True)
    return {"out": str(out), **done}


def default_dtype(plan: Conversion) -> str:
    """The dtype in which nothing is lost that an answer would have: the file's own, if it is not
    quantised. No 16-bit dtype holds all values of a quantised file, so a small model, which decodes
    in float32, is kept in float32; a large one decodes in bfloat16, in which most models were
    published, and whose rounding is small beside that of the quantisation."""
    return plan.plain_dtype or short(decoding_dtype(torch.bfloat16, plan.config.n_parameters))


# ---- vectors -----------------------------------------------------------------------------------


def convert_vector(source: Path, target: Path | None, sa_layer: int | None) -> dict[str, Any]:
    """Write the vector's file; returns what was done."""
    if holds_model(source):
        raise SettingError(
            f"{source}: a model in GGUF, not a vector; give the directory to write with --out DIR"
        )
    if target is None:
        raise click.UsageError("Missing argument 'TARGET' (or --out, for a model in GGUF).")
    vector = load_vector(source)
    if sa_layer is not None:
        if not 0 <= sa_layer < limits.LAYERS:
            raise VectorError(f"--sa-layer is {sa_layer}; expected 0 to {limits.LAYERS - 1}")
        placed: dict[int | None, Tensor] = {sa_layer: vector.at(sa_layer)[sa_layer]}
        vector = SafetyVector(placed, vector.metadata)
    if target.suffix not in SAVERS:
        raise VectorError(f"{target}: unknown format; expected one of {', '.join(SAVERS)}")
    SAVERS[target.suffix](vector, target)
    click.echo(f"{target}: written", err=True)
    return {"out": str(target), "layers": sorted(vector.at(None)), "hidden": vector.hidden}
