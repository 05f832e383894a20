"""`minisafe rivals`: fit what rivals of safe decoding need on development prompts."""

from __future__ import annotations

from pathlib import Path

import click

from minisafe.cli.evaluate import Files, files_of, gather_prompts, listed
from minisafe.cli.options import PATH, ProgressLine, common_flags, common_options
from minisafe.errors import SettingError
from minisafe.evaluation.attacks import choose_attacks
from minisafe.evaluation.defences.fitted import save_fitted
from minisafe.evaluation.fitting import Fitting, fit
from minisafe.evaluation.journal import check_directory
from minisafe.evaluation.judges.by_name import make_judge
from minisafe.evaluation.prompts import halves
from minisafe.evaluation.prompts.styles import load_styles
from minisafe.session.load import load
from minisafe.session.profile import default_profile


@click.command("rivals")
@click.option("--out", type=PATH, required=True, help="Directory for what is fitted.")
@files_of("--prompts", "Harmful prompts; default: the shipped dev split.")
@files_of("--benign", "Harmless prompts.")
@files_of("--borderline", "Harmless prompts in harmful-sounding words.")
@click.option("--column", help="Column of the prompts, for a file of unknown layout.")
@click.option("--styles", default="simple,instruction,cot", show_default=True,
              help="Styles of all prompts; the first is that of plain questions.")  # fmt: skip
@click.option("--attacks", multiple=True,
              help="Attacks under which all prompts are asked as well. Repeatable.")  # fmt: skip
@click.option("--judge", default="world", show_default=True, help="As in minisafe evaluate.")
@click.option("--batch-size", type=int, default=32, show_default=True, help="Prompts per batch.")
@common_options
def rivals_command(
    out: Path, prompts: Files, benign: Files, borderline: Files, column: str | None, styles: str,
    attacks: tuple[str, ...], judge: str, batch_size: int,
) -> None:  # fmt: skip
    """Fit what rivals of safe decoding need: refusal directions, conditions, guards, thresholds.

    Every second development prompt is used; `minisafe sweep --method` chooses settings on the
    others. The base answers without any safety stage. Then give the directory with --rivals.

    \b
    Example:
      minisafe rivals --out rivals
      minisafe evaluate --out run --rivals rivals --methods base,input-guard,refusal-direction
    """
    if batch_size < 1:
        raise SettingError(f"--batch-size is {batch_size}; expected 1 or more")
    flags = common_flags()
    profile = flags.pop("profile", None)
    if profile is None and flags.get("base") is None:
        profile = default_profile()
    files = {"harmful": prompts, "benign": benign, "borderline": borderline}
    chosen, _ = gather_prompts(files, column, None, "dev", None)
    templates = load_styles(listed(styles))
    known = choose_attacks(attacks)
    if searching := [each.name for each in known if each.is_searching]:
        raise SettingError(f"{searching[0]} asks the model it attacks; expected other --attacks")
    check_directory(out)
    ruling = make_judge(judge, out, flags.get("device", "cpu"))
    ruling.check(chosen)
    base = load(profile, flags | {"safe": False})
    line = ProgressLine()
    used, left = halves(chosen)
    fitted = fit(Fitting(base, used, templates, ruling, batch_size, line.show, known), out)
    line.close()
    save_fitted(fitted)
    click.echo(f"{out}: fitted on {len(used)} prompts; {len(left)} are left to choose settings on")
