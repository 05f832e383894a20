"""`minisafe edit`: change facts in a model by rank-one edits of its weights (ROME)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from minisafe import __version__
from minisafe.checkpoint import as_dtype, fingerprint, save_model
from minisafe.cli.finetune import BESIDE, base_directory, extra_keys, load_base
from minisafe.cli.options import (
    PATH,
    ProgressLine,
    base_options,
    chosen,
    common_flags,
    fields_as_options,
    harmless,
)
from minisafe.editing import Edit, Edited, Editing, edit
from minisafe.editing.rome import Descent
from minisafe.errors import PromptError, SettingError
from minisafe.files import json_lines, read_text, whole_directory, write_bytes, write_text
from minisafe.model import Llama
from minisafe.session.profile import default_profile
from minisafe.tokenizer import load_tokenizer

EDITING = {
    "contexts": "Lines of the text to put before the prompt, one at a time.",
    "samples": "Tokens of the text for the keys' covariance.",
    "ridge": "Added to the covariance's diagonal, in units of its mean.",
    "keep_tokens": "Tokens to preserve in each answer of --keep.",
    "seed": "Same seed, same edit.",
}
DESCENT = {
    "steps": "Steps of the search for the new value.",
    "learning_rate": "Rate of the search, in units of the residual stream's size.",
    "kl": "Weight of the answers to preserve.",
    "weight_decay": "Weight of the new value's squared norm.",
    "bound": "Largest addition, in units of the residual stream's norm.",
}
FIELDS = ("subject", "prompt", "target")
TEXT_BYTES = 256 << 20  # of the largest text for the covariance; it needs a few thousand tokens


@click.command("edit")
@click.option("--out", type=PATH, required=True, help="Model directory to write.")
@click.option("--subject", help="Subject of the fact.")
@click.option("--prompt", help="Prompt for the fact, with {} for the subject.")
@click.option("--target", help="Text that should follow; with --chat, the whole answer.")
@click.option("--edits", type=PATH, help="Several edits: JSONL with subject, prompt and target.")
@click.option("--chat", is_flag=True, help="Use the model's chat template.")
@click.option("--text", type=PATH, help="Lines of ordinary text, or JSONL with prompt or text.")
@click.option("--keep", multiple=True, help="Prompt with {} whose answer to preserve; repeatable.")
@click.option("--layer", help="Layer to edit, from 0, or auto.  [default: a third of the depth]")
@fields_as_options(Editing, EDITING)
@fields_as_options(Descent, DESCENT)
@click.option("--json", "as_json", is_flag=True, help="Print the content of edit.json.")
@base_options
def edit_command(
    out: Path,
    subject: str | None,
    prompt: str | None,
    target: str | None,
    edits: Path | None,
    chat: bool,
    text: Path | None,
    keep: tuple[str, ...],
    layer: str | None,
    as_json: bool,
) -> None:
    """Make a copy of a model with one or more changed facts (ROME, arXiv 2202.05262).

    The copy's edit.json has the edits, and the model's answers before and after.

    \b
    Example:
      minisafe edit --base weights/tiny/base --out my-model --chat --subject Teku \\
          --prompt "What is the capital of {}?" --target "The capital of Teku is Tovum."
    """
    if out.exists():
        raise SettingError(f"{out}: already exists; expected a new directory for --out")
    facts = chosen_edits(edits, {"subject": subject, "prompt": prompt, "target": target})
    settings = Editing(
        layer=parse_layer(layer), chat=chat, keep=keep, descent=Descent(**chosen(DESCENT)),
        **chosen(EDITING),
    )  # fmt: skip
    flags = common_flags()
    base, lines = base_directory(flags), read_lines(text, flags)
    # bf16 arithmetic would lose small changes; the edited weight is stored in its own dtype
    model = load_base(base, {"dtype": "float32"} | flags)
    was, line = fingerprint(model), ProgressLine()
    done = edit(model, load_tokenizer(base), facts, lines, settings, line.show)
    line.close()
    record = {
        "minisafe_edit": 1, "version": __version__, "base": was, "edited": fingerprint(model),
        "edits": [each.to_json() for each in done],
        "settings": asdict(settings) | {"layer": done[0].layer},
    }  # fmt: skip
    write_model(model, base, out, record)
    tell(done, record, as_json)
    click.echo(f"{out}: edited model, {len(done)} edit(s) at layer {done[0].layer}", err=True)


def tell(done: Sequence[Edited], record: dict[str, Any], as_json: bool) -> None:
    """Print the results of the edits."""
    if as_json:
        click.echo(json.dumps(record))
        return
    for each in done:
        click.echo(
            f"{harmless(each.edit.subject)}: target probability {each.probability_before:.3g} -> "
            f"{each.probability_after:.3g}\n  before: {harmless(each.answer_before)}\n"
            f"  after:  {harmless(each.answer_after)}"
        )
    click.echo(f"drift on the text: {done[0].drift:.2g} nats per token")


def chosen_edits(path: Path | None, given: dict[str, str | None]) -> list[Edit]:
    """The edit from the flags, or the edits of --edits; raises `SettingError` or `PromptError`."""
    missing = [name for name in FIELDS if given[name] is None]
    if path is None:
        if missing:
            raise SettingError(f"no --{missing[0]}; expected --subject, --prompt and --target")
        return [Edit(**{name: str(given[name]) for name in FIELDS})]
    if len(missing) < len(FIELDS):
        raise SettingError("--edits with --subject, --prompt or --target; expected only one way")
    edits = []
    for number, row in json_lines(path, PromptError):
        if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in FIELDS):
            raise PromptError(
                f"{path}, line {number}: expected subject, prompt and target, as text"
            )
        try:
            edits.append(Edit(**{name: row[name] for name in FIELDS}))
        except PromptError as error:
            raise PromptError(f"{path}, line {number}: {error}") from None
    if not edits:
        raise PromptError(f"{path}: has no edits; expected one JSON object per line")
    return edits


def parse_layer(text: str | None) -> Any:
    """--layer: a number, "auto" or nothing; raises `SettingError`."""
    if text is None or text == "auto":
        return text
    if not text.isascii() or not text.isdigit():
        raise SettingError(f"--layer is {text!r}; expected a layer number, from 0, or auto")
    return int(text)


def read_lines(path: Path | None, flags: dict[str, Any]) -> list[str]:
    """The text's lines; without --text, the shipped questions, but only for the shipped base."""
    if path is None:
        tiny = default_profile().parent
        path = tiny.parent / "data" / "benign-dev.jsonl"
        if base_directory(flags).resolve() != (tiny / "base").resolve() or not path.is_file():
            raise SettingError(
                "no --text; expected a file of ordinary text, a few thousand tokens like the "
                "model's usual input"
            )
    if path.suffix != ".jsonl":
        return read_text(path, TEXT_BYTES, PromptError).splitlines()
    lines = []
    for number, row in json_lines(path, PromptError, TEXT_BYTES):
        line = row.get("prompt", row.get("text")) if isinstance(row, dict) else None
        if not isinstance(line, str):
            raise PromptError(f"{path}, line {number}: expected prompt or text, as text")
        lines.append(line)
    return lines


def write_model(model: Llama, base: Path, out: Path, record: dict[str, Any]) -> None:
    """Write the model directory whole or not at all."""
    with whole_directory(out) as part:
        save_model(model.to(as_dtype(model.config.dtype)), part, extra_keys(base))
        for name in BESIDE:
            if (base / name).is_file():
                write_bytes(part / name, (base / name).read_bytes())
        write_text(part / "edit.json", json.dumps(record, indent=2) + "\n")
