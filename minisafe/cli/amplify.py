"""`minisafe amplify`: make a safety vector from demonstrations."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from minisafe.amplify import (
    CORRUPTIONS,
    METHODS,
    Amplified,
    Demonstration,
    Head,
    Recipe,
    amplify,
    answers_alike,
    load_demonstrations,
)
from minisafe.checkpoint.vectors import save_vector
from minisafe.cli.options import (
    PATH,
    ProgressLine,
    amplify_options,
    chosen,
    common_flags,
    fields_as_options,
    load_plain,
)
from minisafe.errors import SafetyError, SettingError
from minisafe.guidance import Plain
from minisafe.session import Session
from minisafe.session.load import make_stream

RECIPE = {
    "shots": "Demonstrations per prompt.",
    "prompts": "Prompts to average over.",
    "aie_prompts": "Corrupted prompts to measure effects on.",
    "n_heads": "Heads to keep.",
    "batch_size": "Heads per batch.",
    "seed": "Same seed, same vector.",
}


@click.command("amplify")
@click.argument("demonstrations", type=PATH)
@click.option("--out", type=PATH, required=True, help="File for the vector (.safetensors).")
@click.option("--method", type=click.Choice(METHODS), default="aie", show_default=True)
@fields_as_options(Recipe, RECIPE)
@click.option("--head-list", help="With --method heads: layer.head pairs, from 0: 4.0,5.2.")
@click.option("--corrupt", type=click.Choice(CORRUPTIONS), default="expert", show_default=True,
              help="Source of the corrupted demonstrations' answers.")  # fmt: skip
@click.option("--other", type=PATH, help="With --corrupt file: demonstrations with other answers.")
@click.option("--style", type=click.Choice(("chat", "qa")), default="chat", show_default=True)
@click.option("--columns", default="input,output", show_default=True, help="Columns of the files.")
@click.option("--plot", type=PATH, help="File for a heat map of the effects by layer and head.")
@click.option("--json", "as_json", is_flag=True, help="Print the vector's metadata as JSON.")
@amplify_options
def amplify_command(
    demonstrations: Path,
    out: Path,
    method: str,
    head_list: str | None,
    corrupt: str,
    other: Path | None,
    style: str,
    columns: str,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Make a safety vector from DEMONSTRATIONS, [{"input", "output"}, ...] (JSON, JSONL or CSV).

    \b
    Examples:
      minisafe amplify weights/data/demonstrations.json --out v.safetensors --sa-layer 5 --shots 3
      minisafe amplify d.csv --columns question,answer --base M \\
          --corrupt none --out v.safetensors
    """
    if out.suffix != ".safetensors":
        raise SettingError(f"--out is {out}; expected a name that ends in .safetensors")
    session = load_plain(common_flags(), RECIPE)
    pool = read_demonstrations(demonstrations, columns)
    recipe = Recipe(
        method=method, heads=parse_heads(head_list), corrupt=corrupt, style=style,
        layer=session.settings.sa_layer, scale=session.settings.sa_scale, **chosen(RECIPE),
    )  # fmt: skip
    line = ProgressLine()
    answers = None
    if method in ("aie", "mean-difference"):
        answers = other_answers(session, pool, corrupt, other, columns, line)
    made = amplify(session.model, session.tokenizer, pool, recipe, answers, line.show)
    line.close()
    save_vector(made.vector, out)
    if plot is not None:
        draw(made, session.model.config.n_layers, session.model.config.n_heads, plot)
    report(made, out, as_json)


def read_demonstrations(path: Path, columns: str) -> list[Demonstration]:
    """Demonstrations from the columns `input,output`; raises `SettingError` or `PromptError`."""
    names = columns.split(",")
    if len(names) != 2:
        raise SettingError(f"--columns is {columns!r}; expected two names, such as input,output")
    return load_demonstrations(path, names[0], names[1])


def parse_heads(text: str | None) -> tuple[Head, ...]:
    """Heads from `4.0,5.2`; raises `SettingError`."""
    if text is None:
        return ()
    words = text.replace(" ", "").split(",")
    if not all(re.fullmatch(r"\d+\.\d+", word) for word in words):
        raise SettingError(f"--head-list is {text!r}; expected layer.head pairs, such as 4.0,5.2")
    pairs = [word.split(".") for word in words]
    return tuple((int(layer), int(head)) for layer, head in pairs)


def other_answers(
    session: Session,
    pool: Sequence[Demonstration],
    corrupt: str,
    other: Path | None,
    columns: str,
    line: ProgressLine,
) -> Callable[[Demonstration], str] | None:
    """A function that gives a corrupted demonstration's answer; None if the draw gives it."""
    if corrupt == "file":
        if other is None:
            raise SettingError("--corrupt file needs --other FILE with demonstrations")
        found = read_demonstrations(other, columns)
        by_question = {shot.input: shot.output for shot in found}
        order = {shot.input: number for number, shot in enumerate(pool)}
        return lambda shot: by_question.get(
            shot.input, found[order.get(shot.input, 0) % len(found)].output
        )
    if corrupt == "shuffle" and answers_alike(pool):
        click.echo(
            "minisafe: warning: most answers are the same, so shuffling corrupts nothing and all "
            "effects will be near 0; choose another --corrupt", err=True,
        )  # fmt: skip
    if corrupt == "topic":
        return from_other_topics(pool)
    if corrupt == "expert":
        answers = expert_answers(session, [shot.input for shot in pool], line)
        return lambda shot: answers[shot.input]
    return None


def from_other_topics(pool: Sequence[Demonstration]) -> Callable[[Demonstration], str]:
    """For each demonstration, the answer of the next one with another topic."""
    if len({shot.topic for shot in pool}) < 2:
        raise SettingError("--corrupt topic needs demonstrations with a 'category', two or more")
    chosen = {}
    for number, shot in enumerate(pool):
        rest = [*pool[number + 1 :], *pool[:number]]
        chosen[shot.input] = next(each.output for each in rest if each.topic != shot.topic)
    return lambda shot: chosen[shot.input]


def expert_answers(
    session: Session, questions: Sequence[str], line: ProgressLine
) -> dict[str, str]:
    """The unsafe expert's own answers, greedy."""
    settings = session.settings
    if settings.expert is None and settings.expert_system is None:
        raise SafetyError(
            "--corrupt expert needs an expert; give --expert or --expert-system, or choose another "
            "--corrupt"
        )
    stream, _ = make_stream("expert", settings, session.model, session.tokenizer)
    system = settings.expert_system or settings.system
    expert = Session(
        replace(settings, temperature=0.0, max_new_tokens=64, system=system, expert_system=None),
        (stream,), session.tokenizer, session.eos, Plain(), None, (),
    )  # fmt: skip
    found: dict[str, str] = {}
    for start in range(0, len(questions), 16):
        part = questions[start : start + 16]
        results = expert.generate(part, chat=True, batch_size=16)
        found |= {question: each.text or "." for question, each in zip(part, results, strict=True)}
        line.show("expert's answers", len(found), len(set(questions)))
    return found


def report(made: Amplified, out: Path, as_json: bool) -> None:
    """Print what was made."""
    metadata: dict[str, Any] = dict(made.vector.metadata)
    (values,) = made.vector.layers.values()
    if as_json:
        click.echo(json.dumps({"path": str(out), "norm": float(values.norm()), **metadata}))
        return
    for head in metadata["heads"][:20] if made.effects else ():
        click.echo(f"head {head[0]}.{head[1]}: effect {made.effects[tuple(head)]:+.4f}")
    click.echo(
        f"{out}: layer {metadata['layer']}, norm {float(values.norm()):.3f}, "
        f"{len(metadata['heads'])} heads, scale {metadata['sa_scale']:g}"
    )


def draw(made: Amplified, n_layers: int, n_heads: int, path: Path) -> None:
    """Draw the heat map of effects; needs matplotlib (extra `report`)."""
    if not made.effects:
        raise SettingError("--plot draws indirect effects, which only --method aie measures")
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise SettingError("--plot needs matplotlib: pip install 'minisafe[report]'") from None
    grid = [[made.effects[layer, head] for head in range(n_heads)] for layer in range(n_layers)]
    figure, axes = pyplot.subplots(figsize=(2 + 0.4 * n_heads, 2 + 0.3 * n_layers))
    largest = max(map(abs, made.effects.values())) or 1.0
    image = axes.imshow(grid, cmap="RdBu_r", vmin=-largest, vmax=largest, origin="lower")
    axes.set(xlabel="head", ylabel="layer", title="Average indirect effect")
    figure.colorbar(image, label="rise of the safe answers' probability")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    print(f"{path}: heat map", file=sys.stderr)
