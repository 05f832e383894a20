"""`minisafe convert`: a model to a directory, also of rounded weights; vectors between formats."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from minisafe.checkpoint import limits
from minisafe.checkpoint.files import DTYPES, short
from minisafe.checkpoint.vectors import load_vector, save_gguf, save_npy, save_vector
from minisafe.cli.options import PATH, ProgressLine
from minisafe.config import LlamaConfig
from minisafe.convert import Conversion, plan_conversion
from minisafe.convert import convert as write_directory
from minisafe.convert.quantised import Quantised, read_quantised
from minisafe.convert.rounded import Source, directory_source, gguf_source, round_model
from minisafe.convert.shape import holds_model
from minisafe.convert.widen import quantised_source, widen
from minisafe.convert.writer import Report
from minisafe.errors import SettingError, VectorError
from minisafe.files.display import one_line
from minisafe.rounding import GROUPS, ROUNDED
from minisafe.session.dtype import decoding_dtype
from minisafe.vectors import SafetyVector

SAVERS = {".safetensors": save_vector, ".npy": save_npy, ".gguf": save_gguf}


@click.command()
@click.argument("source", type=PATH)
@click.argument("target", type=PATH, required=False)
@click.option("--out", type=PATH, help="Model directory to write, for a model.")
@click.option(
    "--weights",
    type=click.Choice(ROUNDED),
    help="Round the weights and write them as they run: int8 (one scale per output "
    "channel), or int4 (in groups; the head int8).",
)
@click.option(
    "--group",
    type=click.Choice([str(each) for each in GROUPS]),
    help="Inputs per group of int4 weights.  [default: 32; of quantised weights the longest that "
    "holds their codes]",
)
@click.option("--dtype", type=click.Choice(list(DTYPES)),
              help="Dtype of the weights, or of the scales of rounded ones.  [default: the file's; "
              "of a quantised file the one that a model of this size decodes in; with --weights "
              "int4 bfloat16]")  # fmt: skip
@click.option("--sa-layer", type=int, help="Layer of a source without a layer (.npy).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def convert(
    source: Path, target: Path | None, out: Path | None, weights: str | None, group: str | None,
    dtype: str | None, sa_layer: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Convert the model SOURCE (GGUF, llama.cpp's format; a directory of GPTQ, AWQ or
    compressed-tensors; with --weights also a plain one) to the directory --out, or the safety
    vector SOURCE to the file TARGET.

    With --weights, the directory takes about half (int8) or a third (int4) of a 16-bit model, and
    is read back without the wide weights. It is for decoding on a CPU. Codes of 4 bits from GPTQ,
    AWQ or compressed-tensors stay as they are in int4, those of 8 bits with one scale per channel
    in int8. Others are rounded again. Without --weights, they become plain weights.

    A model in GGUF must be of the architecture llama, qwen2 or qwen3; every quantisation of the
    gguf library is read (extra `gguf`). The directory has the weights, config, tokenizer and chat
    template. What has no place in it is said.

    A vector's formats follow from the suffixes. .safetensors is minisafe's. .npy is the reference
    code's: one layer of shape (1, hidden), no metadata. .gguf is llama.cpp's control vector,
    without layer 0 (extra `gguf`).

    \b
    Examples:
      minisafe convert SmolLM2-135M-Instruct.Q4_1.gguf --out smollm2
      minisafe convert weights/tiny/base --weights int8 --out tiny-int8
      minisafe convert Llama-3.2-1B-GPTQ --weights int4 --out llama-int4
      minisafe convert weights/tiny/vector.safetensors vector.gguf
    """
    if out is not None:
        if target is not None or sa_layer is not None:
            raise SettingError("--out is for a model; TARGET and --sa-layer are for a vector")
        if group is not None and weights != "int4":
            raise SettingError("--group is for --weights int4")
        done = convert_to(out, source, weights, int(group) if group else None, dtype)
    else:
        for flag, value in (("--dtype", dtype), ("--weights", weights), ("--group", group)):
            if value is not None:
                raise SettingError(f"{flag} is for a model; give --out too")
        done = convert_vector(source, target, sa_layer)
    if as_json:
        click.echo(json.dumps(done))


# ---- models ------------------------------------------------------------------------------------


def convert_to(
    out: Path, source: Path, weights: str | None, group: int | None, dtype: str | None
) -> dict[str, Any]:
    """Write the directory `out` of a model; returns what was done."""
    if out.exists():
        raise SettingError(f"{out}: already exists; expected a new directory for --out")
    quantised = read_quantised(source) if source.is_dir() else None
    if weights is not None:
        return convert_rounded(source, quantised, out, weights, group, dtype)
    if quantised is not None:
        return convert_quantised(quantised, out, dtype)
    if source.is_dir():
        raise SettingError(
            f"{source}: a directory that no other program quantised; expected a model in GGUF, or "
            "give --weights int8 or int4"
        )
    return convert_model(source, out, dtype)


def convert_model(source: Path, out: Path, dtype: str | None) -> dict[str, Any]:
    """Write the model directory and say what it lacks; returns what was done."""
    plan = plan_saying_losses(source)
    chosen = dtype or default_dtype(plan)
    with progress() as report:
        done = write_directory(plan, out, chosen, report)
    tell(out, plan.config.family, done, chosen)
    return {"out": str(out), **done}


def convert_quantised(read: Quantised, out: Path, dtype: str | None) -> dict[str, Any]:
    """Write the model directory with plain weights; returns what was done."""
    chosen = dtype or quantised_dtype(read.config)
    say_activations(read)
    with progress() as report:
        done = widen(read, out, chosen, report)
    tell(out, read.config.family, done, chosen)
    return {"out": str(out), **done}


def convert_rounded(
    source: Path, quantised: Quantised | None, out: Path, weights: str, group: int | None,
    dtype: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Write the directory of rounded weights; returns what was done.

    group: None for the longest that keeps the codes of a quantised directory, else the shortest."""
    with opened(source, quantised, dtype) as model, progress() as report:
        used = group or (quantised and quantised.group) or GROUPS[0]
        done = round_model(model, out, weights, used if weights == "int4" else 0, dtype, report)
    tell(out, model.config.family, done, f"{weights}, with scales in {done['dtype']}")
    if quantised is not None:
        coded = quantised.n_codes
        if done["codes_kept"] < coded:
            share = 100 - 100 * done["codes_kept"] / coded
            click.echo(
                f"minisafe: warning: {share:.0f} % of the quantised weights were rounded again; "
                f"{weights} does not hold their codes",
                err=True,
            )
    return {"out": str(out), **done}


@contextmanager
def opened(source: Path, quantised: Quantised | None, dtype: str | None) -> Iterator[Source]:
    """A model directory or a GGUF file, to round."""
    if quantised is not None:
        say_activations(quantised)
        yield quantised_source(quantised, dtype or quantised_dtype(quantised.config))
        return
    if not source.is_file():
        yield directory_source(source)
        return
    plan = plan_saying_losses(source)
    with source.open("rb") as file:
        yield gguf_source(plan, dtype or default_dtype(plan), file)


def plan_saying_losses(source: Path) -> Conversion:
    """All but the values of a GGUF file; what it has no place for is said."""
    plan = plan_conversion(source)
    for each in plan.lost:
        click.echo(one_line(f"minisafe: warning: {each}"), err=True)
    return plan


@contextmanager
def progress() -> Iterator[Report]:
    """A line of progress, in million values."""
    line = ProgressLine()
    try:
        yield lambda n, total: line.show("million values", n // 10**6, -(-total // 10**6))
    finally:
        line.close()


def tell(out: Path, family: str, done: Mapping[str, Any], form: str) -> None:
    """Say what was written."""
    said = (
        f"{done['parameters'] / 1e6:,.1f} million parameters, {done['weights_bytes'] / 1e9:.2f} GB"
    )
    click.echo(one_line(f"{out}: a {family} model of {said} in {form}"), err=True)


def say_activations(read: Quantised) -> None:
    """Say that what a layer reads is not rounded here, where another program would."""
    if read.rounds_activations:
        click.echo(
            "minisafe: warning: other programs round this model's activations too; here they are "
            "not", err=True,
        )  # fmt: skip


def quantised_dtype(config: LlamaConfig) -> str:
    """As `default_dtype`, for a directory that another program quantised."""
    return short(decoding_dtype(torch.bfloat16, config.n_parameters))


def default_dtype(plan: Conversion) -> str:
    """The dtype in which nothing is lost that an answer would have: the file's own, if it is not
    quantised. No 16-bit dtype holds all values of a quantised file, so a small model, which decodes
    in float32, is kept in float32; a large one decodes in bfloat16, in which most models were
    published, and whose rounding is small beside that of the quantisation."""
    return plan.plain_dtype or quantised_dtype(plan.config)


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
