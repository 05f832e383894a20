"""`minisafe finetune`: train an expert (LoRA) or a base (full) on conversations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource

from minisafe.checkpoint import as_dtype, load_model, save_adapter, save_model
from minisafe.cli.options import (
    PATH,
    ProgressLine,
    base_options,
    chosen,
    common_flags,
    fields_as_options,
)
from minisafe.errors import SettingError
from minisafe.files import read_json, write_bytes
from minisafe.finetune import (
    Trainer,
    Training,
    encode_all,
    finished_adapter,
    load_conversations,
    steps_of,
)
from minisafe.model import Llama
from minisafe.session.load import check_device
from minisafe.session.profile import default_profile, load_profile
from minisafe.session.settings import resolve
from minisafe.tokenizer import load_tokenizer

BESIDE = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "generation_config.json",
)  # fmt: skip


LOADING = ("dtype", "device", "threads")
TRAINING = {
    "steps": "Optimiser steps.",
    "batch_size": "Examples per batch.",
    "accumulate": "Batches per step.",
    "learning_rate": "Peak learning rate.",
    "warmup": "Steps of warm-up.",
    "weight_decay": "AdamW's weight decay.",
    "clip": "Limit of the gradient's norm.",
    "max_length": "Most tokens of an example; the rest is cut off.",
    "lora_rank": "LoRA rank.",
    "lora_alpha": "LoRA alpha.",
    "autocast": "Compute in bf16; weights keep their dtype.",
    "recompute": "Activation checkpointing, for large models.",
    "held_out": "Share of the examples to hold out.",
    "eval_every": "Steps between reports.",
    "seed": "Same seed, same result.",
}


@click.command()
@click.argument("pairs", type=PATH)
@click.option("--out", type=PATH, required=True, help="Output directory.")
@click.option("--full", is_flag=True, help="Train every weight and write a model, not a LoRA.")
@click.option("--lora-targets", default="q_proj,v_proj", show_default=True, help="LoRA modules.")
@click.option("--epochs", type=float, help="Passes over all examples, instead of --steps.")
@fields_as_options(Training, TRAINING)
@click.option("--save-every", type=int, default=100, show_default=True,
              help="Steps between saved states.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print each report as a JSON object.")
@base_options
def finetune(
    pairs: Path,
    out: Path,
    full: bool,
    lora_targets: str,
    epochs: float | None,
    save_every: int,
    as_json: bool,
) -> None:
    """Train on PAIRS, a JSON list or JSONL: {"input", "output"}, Alpaca, ShareGPT, messages, or
    {"prompt", "completion"} (docs/finetuning.md).

    The loss covers the answers only. A stopped run continues from its last saved state.

    \b
    Example:
      minisafe finetune weights/data/expert.json --base weights/tiny/base --out my-expert
    """
    training = chosen_training(lora_targets, full, epochs)
    conversations = load_conversations(pairs)
    flags = common_flags()
    base = base_directory(flags)
    # bf16 weights would lose small steps
    model = load_base(base, {"dtype": "float32" if full else None} | flags)
    tokenizer = load_tokenizer(base)
    examples, left_out = encode_all(tokenizer, conversations, training.max_length)
    if left_out:
        click.echo(
            f"minisafe: warning: {left_out} of {left_out + len(examples)} examples have no answer "
            f"within --max-length {training.max_length} and are left out", err=True,
        )  # fmt: skip
    if epochs is not None:
        training = replace(training, steps=steps_of(epochs, len(examples), training))
    trainer = Trainer(model, examples, training)
    state = out / "state.safetensors"
    show_reports(trainer, state, save_every, as_json)
    if full:
        save_model(model.to(as_dtype(model.config.dtype)), out, extra_keys(base))
        for name in BESIDE:
            if (base / name).is_file():
                write_bytes(out / name, (base / name).read_bytes())
    else:
        rank, alpha = training.lora_rank, training.lora_alpha
        save_adapter(finished_adapter(trainer), out, rank, alpha, base.name)
    state.unlink(missing_ok=True)
    click.echo(f"{out}: {'model' if full else 'LoRA adapter'}, {training.steps} steps", err=True)


def chosen_training(lora_targets: str, full: bool, epochs: float | None) -> Training:
    """The settings of the flags; raises `SettingError`."""
    given = click.get_current_context().get_parameter_source("steps")
    if epochs is not None:
        if given is not ParameterSource.DEFAULT:
            raise SettingError("--steps with --epochs; expected only one of them")
        steps_of(epochs, 1, Training())  # report a number out of range before reading anything
    targets = tuple(name.strip() for name in lora_targets.split(",") if name.strip())
    return Training(
        **chosen(TRAINING) | {"lora_targets": targets} | ({"lora_rank": 0} if full else {})
    )


def show_reports(trainer: Trainer, state: Path, save_every: int, as_json: bool) -> None:
    """Train to the end and show the progress."""
    line = ProgressLine()
    for report in trainer.run(state, save_every):
        if as_json:
            click.echo(json.dumps(vars(report)))
            continue
        held = "" if report.held_out_loss is None else f", held out {report.held_out_loss:.3f}"
        line.show(f"loss {report.loss:.3f}{held}; step", report.step, trainer.training.steps)
    line.close()


def base_directory(flags: dict[str, Any]) -> Path:
    """The model to train: --base, or the profile's, or the shipped profile's."""
    if flags.get("base") is not None:
        return Path(flags["base"])
    profile = load_profile(flags.get("profile") or default_profile())
    if profile.settings.get("base") is None:
        raise SettingError("no base model; give one with --base")
    return Path(profile.settings["base"])


def load_base(base: Path, flags: Mapping[str, Any]) -> Llama:
    """The plain model with the flags' dtype and device; sets torch's threads."""
    settings = resolve({name: flags[name] for name in LOADING if name in flags})
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    return load_model(base, settings.dtype, check_device(settings.device))


def extra_keys(base: Path) -> dict[str, Any]:
    """Ids of special tokens, which are in a config.json but not in a `LlamaConfig`."""
    data = read_json(base / "config.json", "a model directory has one")
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: data[name] for name in names if name in data}
