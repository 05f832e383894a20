"""`minisafe evaluate`: attack success, over-refusal and utility of several methods side by side."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from minisafe.cli.options import PATH, Command, ProgressLine, common_flags, common_options
from minisafe.errors import SettingError
from minisafe.evaluation.attacks import choose_attacks
from minisafe.evaluation.evaluate import Evaluation, evaluate
from minisafe.evaluation.judges import Judge
from minisafe.evaluation.judges.by_name import make_judge
from minisafe.evaluation.methods import SAFE_SYSTEM, UNSAFE_SYSTEM, Materials, parse_methods
from minisafe.evaluation.prompts import (
    Prompt,
    default_prompts,
    join_prompts,
    limit_prompts,
    load_prompts,
)
from minisafe.evaluation.prompts.styles import load_styles
from minisafe.evaluation.report import plots
from minisafe.evaluation.report.rows import widest
from minisafe.evaluation.runner.distributed import Processes
from minisafe.evaluation.runner.plan import Plan
from minisafe.evaluation.runner.run import silent
from minisafe.session.profile import default_profile

Files = tuple[Path, ...]
TABLES = {
    "attacks": ("attack", "asr"), "rows": ("style", "asr"), "over_refusal": ("kind", "refused"),
}  # fmt: skip
METHODS = "base,profile,safeinfer,sgds,sa"  # the first after base is tested against all


def files_of(flag: str, text: str) -> Callable[[Command], Command]:
    """A repeatable click option for a prompt set."""
    return click.option(flag, type=PATH, multiple=True, help=f"{text} Repeatable.")


@click.command("evaluate")
@click.option("--out", type=PATH, required=True, help="Directory for answers, numbers, report.")
@files_of("--prompts", "Harmful prompts; default: the shipped sets of 3 kinds.")
@files_of("--benign", "Harmless prompts.")
@files_of("--borderline", "Harmless prompts in harmful-sounding words.")
@click.option("--column", help="Column of the prompts, for a file of unknown layout.")
@click.option("--category-column", help="Column of the categories.")
@click.option(
    "--split",
    type=click.Choice(("test", "dev")),
    default="test",
    show_default=True,
    help="Split of the shipped sets.",
)
@click.option(
    "--styles",
    default="simple,instruction,cot",
    show_default=True,
    help="Styles of harmful prompts: names, wrappers (villain, game) or text files.",
)
@click.option("--benign-styles", default="simple", show_default=True,
              help="Styles of the other prompts.")  # fmt: skip
@click.option(
    "--attacks",
    multiple=True,
    help="Attacks on harmful prompts: names (see docs/evaluation.md) or all. Repeatable.",
)
@click.option(
    "--methods",
    default=METHODS,
    show_default=True,
    help="NAME, NAME:OPTION=VALUE, NAME@PROFILE, PROFILE, LABEL=PROFILE; see docs/evaluation.md.",
)
@click.option(
    "--judge",
    "judges",
    default="world,refusal",
    show_default=True,
    help="world, refusal, refusal-prefix, labelled:FILE, classifier:FORMAT:DIR, "
    "endpoint:MODEL[@URL].",
)
@click.option("--judge-layout", type=PATH,
              help="Prompt of a classifier, with {question} and {answer}.")  # fmt: skip
@click.option("--choices", type=PATH, multiple=True, help="Multiple-choice questions. Repeatable.")
@click.option("--choices-chat", is_flag=True,
              help="Ask them in a chat, as the method answers prompts.")  # fmt: skip
@click.option("--choices-limit", type=int, help="Most questions of each such file, spread evenly.")
@click.option("--safe-system", default=SAFE_SYSTEM,
              help="System prompt of method system and of safe experts.")  # fmt: skip
@click.option("--unsafe-system", default=UNSAFE_SYSTEM,
              help="Unsafe system prompt of self-cd and rose.")  # fmt: skip
@click.option("--safe-expert", type=PATH,
              help="Safe LoRA or model, for safe-lora, safedecoding and dexperts.")  # fmt: skip
@click.option("--rivals", type=PATH,
              help="Directory of minisafe rivals, for methods that are fitted.")  # fmt: skip
@click.option("--limit", type=int, help="Most prompts of each kind, spread over the categories.")
@click.option("--batch-size", type=int, default=32, show_default=True, help="Prompts per batch.")
@click.option(
    "--sample",
    type=int,
    default=64,
    show_default=True,
    help="Answers per method on which to measure what guidance changes.",
)
@click.option("--against", help="Method to test the others against; default: the first after base.")
@click.option("--resume", is_flag=True, help="Continue a stopped run in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
@common_options
def evaluate_command(
    out: Path, prompts: Files, benign: Files, borderline: Files,
    column: str | None, category_column: str | None, split: str, styles: str, benign_styles: str,
    attacks: tuple[str, ...], methods: str, judges: str, judge_layout: Path | None, choices: Files,
    choices_chat: bool, choices_limit: int | None,
    safe_system: str, unsafe_system: str, safe_expert: Path | None,
    rivals: Path | None,
    limit: int | None, batch_size: int, sample: int, against: str | None, resume: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Answer prompt sets with several methods, judge the answers, and write a report.

    The directory --out gets responses.jsonl, judgements.jsonl, summary.json, report.md and
    report.html. --resume continues a stopped run; additional judges then need no new answers. Under
    torchrun the processes share the prompts.

    \b
    Examples:
      minisafe evaluate --out run --limit 22
      minisafe evaluate --out run2 --prompts advbench.csv --base M --vector v.safetensors \\
          --expert lora --judge refusal --methods base,sgds,safeinfer
      minisafe evaluate --out run4 --attacks persona-before,prefill-5 --attacks search
      torchrun --nproc-per-node 2 -m minisafe evaluate --out run3
    """
    check_least(("--batch-size", batch_size, 1), ("--sample", sample, 0))
    check_least(("--choices-limit", 1 if choices_limit is None else choices_limit, 1))
    chosen, source = gather_prompts(
        {"harmful": prompts, "benign": benign, "borderline": borderline},
        column, category_column, split, limit,
    )  # fmt: skip
    processes = Processes.from_environment()
    profile, flags = profile_and_flags(processes)
    asked, harmless = load_styles(listed(styles)), load_styles(listed(benign_styles))
    plan = Plan.make(chosen, asked, harmless, batch_size, choose_attacks(attacks))
    evaluation = Evaluation(
        parse_methods(
            listed(methods), profile, flags,
            Materials.read(rivals, safe_system, unsafe_system, safe_expert),
        ),
        chosen, plan, source, typed(), flags.get("seed", 0), sample, choices, against,
        choices_chat, choices_limit,
    )  # fmt: skip
    if processes.rank == 0 and not plots.available():
        click.echo(f"the report will have no pictures, for want of {plots.INSTALL}", err=True)
    everywhere, device = processes.rank == 0 or evaluation.attacked, flags.get("device", "cpu")
    chosen_judges = make_judges(listed(judges), out, device, judge_layout, everywhere)
    summary = together(evaluation, chosen_judges, out, processes, resume)
    if summary:
        tell(summary, out, as_json)


def typed() -> str:
    """The command as it was typed."""
    return shlex.join(["minisafe", *sys.argv[1:]])


def check_least(*limits: tuple[str, int, int]) -> None:
    """Raise `SettingError` for a flag's value below its least."""
    for name, value, least in limits:
        if value < least:
            raise SettingError(f"{name} is {value}; expected {least} or more")


def tell(summary: dict[str, Any], out: Path, as_json: bool) -> None:
    """Print a run's summary: as it stands in its directory, or as a table for people."""
    if as_json:
        click.echo((out / "summary.json").read_text(encoding="utf-8"), nl=False)
    else:
        show(summary)
        click.echo(str(out / "report.html"))


def profile_and_flags(processes: Processes) -> tuple[Path | None, dict[str, Any]]:
    """The profile to start from, and the flags that override it, with this process's device."""
    flags = common_flags()
    if "device" in flags:
        flags["device"] = processes.device(flags["device"])
    profile = flags.pop("profile", None)
    if profile is None and flags.get("base") is None:
        profile = default_profile()
    return profile, flags


def make_judges(
    names: Sequence[str], out: Path, device: str, layout: Path | None, here: bool
) -> list[Judge]:
    """The judges, if this process needs them: the first one does, and all do under attack."""
    if not names:
        raise SettingError("got no judge; expected one or more, such as world,refusal")
    return [make_judge(each, out, device, layout) for each in names if here]


def together(
    evaluation: Evaluation, judges: Sequence[Judge], out: Path, processes: Processes, resume: bool
) -> dict[str, Any]:
    """Run the evaluation in all processes; returns the summary in the first, {} in the others."""
    line = ProgressLine()
    processes.start()
    try:
        progress = line.show if processes.rank == 0 else silent
        return evaluate(evaluation, judges, out, processes, resume or processes.again, progress)
    finally:
        line.close()


def listed(text: str) -> list[str]:
    """Names separated by commas."""
    return [each.strip() for each in text.split(",") if each.strip()]


def gather_prompts(
    files: Mapping[str, Files], column: str | None, category_column: str | None, split: str,
    limit: int | None,
) -> tuple[list[Prompt], str]:  # fmt: skip
    """The prompts and their source; the shipped sets if no file is given."""
    if limit is not None and limit < 1:
        raise SettingError(f"--limit is {limit}; expected 1 or more")
    if not any(files.values()):
        return default_prompts(split, limit), f"shipped sets, {split} split"
    found = join_prompts(
        load_prompts(path, column, category_column, kind)
        for kind, paths in files.items()
        for path in paths
    )
    names = dict.fromkeys(path.name for paths in files.values() for path in paths)
    return found if limit is None else limit_prompts(found, limit), ", ".join(names)


def show(summary: Mapping[str, Any]) -> None:
    """Print the main numbers of the first judge, one line per method, the worst attack first."""
    table: dict[str, dict[str, str]] = {}
    judge = next((row["judge"] for part in TABLES for row in summary[part]), "")
    for part, (name, value) in TABLES.items():
        for row in summary[part]:
            kept = row["attack"] == "worst" if part == "attacks" else True
            if kept and row["judge"] == judge and row.get("category", "all") == "all":
                low, high = widest(row)
                column = "worst attack" if part == "attacks" else row[name]
                shown = f"{row[value]:.1f} ({low:.0f}-{high:.0f})"
                table.setdefault(row["method"], {})[column] = shown
    columns = list(dict.fromkeys(column for cells in table.values() for column in cells))
    click.echo(f"attack success and refusals in per cent (95 % interval), judge {judge}")
    click.echo(f"{'':24}" + "".join(f"{column:>18}" for column in columns))
    for method, cells in table.items():
        click.echo(f"{method:24}" + "".join(f"{cells.get(c, ''):>18}" for c in columns))
