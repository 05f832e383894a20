"""`minisafe sweep`: try a grid of safety settings on development prompts, and choose the best."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from minisafe.cli.evaluate import Files, check_least, files_of, gather_prompts, listed, typed
from minisafe.cli.options import PATH, Command, ProgressLine, common_flags, common_options
from minisafe.errors import MinisafeError, SettingError
from minisafe.evaluation.attacks import choose_attacks
from minisafe.evaluation.defences.fitted import write_chosen
from minisafe.evaluation.evaluate import Evaluation, about, attacker_of, check_judges, write_run
from minisafe.evaluation.journal import check_directory
from minisafe.evaluation.judges import Judge
from minisafe.evaluation.judges.by_name import make_judge
from minisafe.evaluation.judges.judgements import rule_all
from minisafe.evaluation.methods import Materials, Method
from minisafe.evaluation.methods.grid import AXES, grid, points
from minisafe.evaluation.prompts import Prompt, halves, limit_prompts
from minisafe.evaluation.prompts.styles import load_styles
from minisafe.evaluation.records import Judged, Response
from minisafe.evaluation.report.best import Bounds, Row, choose, choose_each, measured
from minisafe.evaluation.report.summary import join, write_summary
from minisafe.evaluation.runner.distributed import Processes
from minisafe.evaluation.runner.plan import Plan
from minisafe.evaluation.runner.run import run
from minisafe.evaluation.stored import Measured, Stored
from minisafe.session.profile import default_profile, load_profile, save_profile
from minisafe.session.settings import SETTINGS, checked
from minisafe.session.vouched import files_read


def axis(name: str, text: str) -> Callable[[Command], Command]:
    """A click option for one axis of the grid, with its values separated by commas."""
    flag = f"--{name.replace('_', '-')}s"
    return click.option(
        flag, f"{name}_axis", default=text, show_default=bool(text), help=f"Values of {name}."
    )


@click.command()
@click.option("--out", type=PATH, required=True, help="Directory for answers, numbers, report.")
@axis("sgds_lambda", "0.9,0.99")
@axis("margin", "0,0.3")
@axis("sa_scale", "0.2,0.3,0.4")
@axis("sa_layer", "")
@axis("sa_positions", "")
@files_of("--prompts", "Harmful prompts; default: the shipped dev split.")
@files_of("--benign", "Harmless prompts.")
@files_of("--borderline", "Harmless prompts in harmful-sounding words.")
@click.option("--column", help="Column of the prompts, for a file of unknown layout.")
@click.option("--styles", default="simple,instruction,cot", show_default=True,
              help="Styles of harmful prompts.")  # fmt: skip
@click.option("--attacks", multiple=True,
              help="Attacks on harmful prompts, as in minisafe evaluate. Repeatable.")  # fmt: skip
@click.option("--method", "names", multiple=True,
              help="Sweep built-in methods' own options, or all. Repeatable.")  # fmt: skip
@click.option("--rivals", type=PATH,
              help="With --method: directory that gets the chosen options.")  # fmt: skip
@click.option("--safe-expert", type=PATH, help="With --method: safe LoRA or model.")
@click.option("--judge", default="world", show_default=True, help="As in minisafe evaluate.")
@click.option("--limit", type=int, help="Most prompts of each kind.")
@click.option("--max-utility-loss", type=float, default=3.0, show_default=True,
              help="Largest loss of utility, in points.")  # fmt: skip
@click.option(
    "--max-over-refusal",
    type=float,
    default=2.0,
    show_default=True,
    help="Largest share of refused benign prompts, in per cent.",
)
@click.option(
    "--max-borderline",
    type=float,
    default=5.0,
    show_default=True,
    help="Largest share of refused borderline prompts, in per cent.",
)
@click.option("--write", type=PATH, help="Profile to write with the chosen settings.")
@click.option("--batch-size", type=int, default=32, show_default=True, help="Prompts per batch.")
@click.option("--resume", is_flag=True, help="Continue a stopped sweep in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print all points and the choice as JSON.")
@common_options
def sweep(
    out: Path, sgds_lambda_axis: str, margin_axis: str, sa_scale_axis: str, sa_layer_axis: str,
    sa_positions_axis: str,
    prompts: Files, benign: Files, borderline: Files, column: str | None,
    styles: str, attacks: tuple[str, ...], names: tuple[str, ...], rivals: Path | None,
    safe_expert: Path | None, judge: str, limit: int | None,
    max_utility_loss: float, max_over_refusal: float, max_borderline: float,
    write: Path | None, batch_size: int, resume: bool, as_json: bool,
) -> None:  # fmt: skip
    """Measure a grid of settings, and choose the lowest attack success within bounds on the cost.

    If no point is within the bounds, the exit code is 1 and no profile is written.

    With --method, each method's own options are swept, on the development prompts that
    minisafe rivals does not fit on, and the best options are stored in the directory --rivals,
    where minisafe evaluate --rivals finds them.

    \b
    Examples:
      minisafe sweep --out sweep --margins 0,0.3 --sa-scales 0.2,0.3 --write better.json
      minisafe sweep --out sweep2 --method icd,input-guard --rivals rivals --attacks prefill-5
    """
    axes = (sgds_lambda_axis, margin_axis, sa_scale_axis, sa_layer_axis, sa_positions_axis)
    texts = dict(zip(AXES, axes, strict=True))
    check_least(("--batch-size", batch_size, 1))
    bounds = Bounds(max_utility_loss, max_over_refusal, max_borderline)
    swept = [each for text in names for each in listed(text)]
    check_flags(swept, write, rivals, safe_expert)
    flags = common_flags()
    profile = flags.pop("profile", None) or default_profile()
    load_profile(profile)
    if swept:
        methods = points(swept, profile, flags, Materials.read(rivals, safe_expert=safe_expert))
    else:
        methods = grid_of(texts, profile, flags)
    files = {"harmful": prompts, "benign": benign, "borderline": borderline}
    chosen, source = prompts_of(files, column, limit, bool(swept))
    plan = Plan.make(
        chosen, load_styles(listed(styles)), load_styles(["simple"]), batch_size,
        choose_attacks(attacks),
    )  # fmt: skip
    ruling = make_judge(judge, out, flags.get("device", "cpu"))
    evaluation = Evaluation(methods, chosen, plan, source, typed(), flags.get("seed", 0))
    rows = answer_and_rule(evaluation, ruling, out, resume, bounds)
    if swept:
        each_best = choose_each(rows, methods, bounds)
        show(rows, list(each_best.values()), as_json)
        store(rivals, each_best, methods)
    else:
        settle(rows, bounds, profile, write, as_json)


def grid_of(texts: Mapping[str, str], profile: Path, flags: Mapping[str, Any]) -> list[Method]:
    """The points of a grid of settings, from each axis's values as text."""
    return grid({name: values_of(name, text) for name, text in texts.items()}, profile, flags)


def settle(
    rows: Sequence[Row], bounds: Bounds, profile: Path, write: Path | None, as_json: bool
) -> None:
    """Show and write the best point of a grid; raises `MinisafeError` if none is within bounds."""
    best = choose(rows, bounds)
    show(rows, [best], as_json)
    if best is None:
        raise MinisafeError("no point of the grid is within the bounds; widen one of them")
    if write is not None:
        write_best(write, profile, best)


def prompts_of(
    files: Mapping[str, Files], column: str | None, limit: int | None, for_rivals: bool
) -> tuple[list[Prompt], str]:
    """The prompts to choose settings on, and their source; for rivals, those of them that nothing
    is fitted on."""
    if not for_rivals:
        return gather_prompts(files, column, None, "dev", limit)
    chosen, source = gather_prompts(files, column, None, "dev", None)
    _, left = halves(chosen)
    source += ", the half that nothing is fitted on"
    return left if limit is None else limit_prompts(left, limit), source


def check_flags(
    names: Sequence[str], write: Path | None, rivals: Path | None, safe_expert: Path | None
) -> None:
    """Raise `SettingError` for flags that do not go together, or a directory that cannot be."""
    if names and write is not None:
        raise SettingError("--write is for a sweep without --method; give --rivals DIR instead")
    if not names and (rivals is not None or safe_expert is not None):
        raise SettingError("--rivals and --safe-expert are for --method; give that too")
    if write is not None:
        check_directory(write.parent)


def answer_and_rule(
    evaluation: Evaluation, ruling: Judge, out: Path, resume: bool, bounds: Bounds
) -> list[Row]:
    """Run the sweep and write its summary and report; returns one row per point."""
    check_judges([ruling], evaluation.prompts, out)
    line = ProgressLine()
    attacker = attacker_of(evaluation, [ruling]) if evaluation.attacked else None
    answers = run(out, evaluation.methods, evaluation.plan, Processes(), line.show, resume,
                  attacker=attacker)  # fmt: skip
    by_id = {prompt.id: prompt for prompt in evaluation.prompts}
    judgements = rule_all(out, answers, by_id, [ruling], line.show)
    line.close()
    return report(out, evaluation, answers, judgements, bounds)


def report(
    out: Path, evaluation: Evaluation, answers: Sequence[Response], judgements: Sequence[Judged],
    bounds: Bounds,
) -> list[Row]:  # fmt: skip
    """Write summary and report of a sweep; returns one row per point."""
    rows = measured(join(answers, judgements), evaluation.methods)
    best: Any = choose(rows, bounds)
    if any(method.of for method in evaluation.methods[1:]):
        best = choose_each(rows, evaluation.methods, bounds)
    made = Stored(about(evaluation, answers), answers, judgements, Measured(sweep=rows[1:]))
    summary = write_run(out, made, None)
    write_summary(out, summary | {"chosen": best})
    return rows


def store(rivals: Path | None, best: Mapping[str, Row | None], methods: Sequence[Method]) -> None:
    """Store each method's chosen options; say which method has no point within the bounds."""
    options = {method.name: method.options for method in methods}
    found = {name: options[row["method"]] for name, row in best.items() if row is not None}
    for name in best:
        if name not in found:
            click.echo(f"{name}: no point is within the bounds", err=True)
    if rivals is not None:
        write_chosen(rivals, found)


def values_of(name: str, text: str) -> list[Any]:
    """An axis's values; raises `SettingError` for an invalid one."""
    found: list[Any] = []
    for word in listed(text):
        try:
            value: Any = json.loads(word)
        except ValueError:
            value = word
        found.append(checked(name, value, f"--{name.replace('_', '-')}s"))
    return found


def write_best(path: Path, profile: Path, best: Mapping[str, Any]) -> None:
    """Write the profile with the chosen settings, without the calibration of the old settings."""
    read = load_profile(profile)
    settings = {name: value for name, value in read.settings.items() if name in SETTINGS}
    settings |= {name: best[name] for name in AXES if name in best}
    if settings.get("sa_scale") == 0:  # a profile must not name a part that is switched off
        settings.pop("vector", None)
    assert read.path is not None
    files = tuple(files_read(settings)) if read.sha256 else ()
    save_profile(settings, path, files)
    click.echo(f"{path}: {best['method']}", err=True)


def show(rows: Sequence[Row], best: Sequence[Row | None], as_json: bool) -> None:
    """Print all points and mark the chosen ones; as JSON, the one alone or a list."""
    if as_json:
        click.echo(json.dumps({"points": rows, "chosen": best[0] if len(best) == 1 else best}))
        return
    names = ("asr", "utility", "over_refusal", "borderline")
    click.echo("  " + f"{'point':56}" + "".join(f"{name:>14}" for name in names))
    for row in rows:
        mark = "* " if any(row is each for each in best) else "  "
        cells = ("" if row[name] is None else f"{row[name]:.1f}" for name in names)
        click.echo(mark + f"{row['method']:56}" + "".join(f"{cell:>14}" for cell in cells))
