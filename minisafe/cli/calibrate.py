"""`minisafe calibrate`: set the gate's threshold from harmless prompts, and store it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from minisafe.cli.evaluate import Files, files_of, listed
from minisafe.cli.options import ProgressLine, common_flags, model_options
from minisafe.errors import SafetyError, SettingError
from minisafe.evaluation.methods import calibration as evaluation
from minisafe.evaluation.prompts import Prompt, default_prompts, join_prompts, load_prompts
from minisafe.evaluation.prompts.styles import load_styles
from minisafe.session.load import load
from minisafe.session.profile import default_profile, load_profile, store_calibration


@click.command()
@files_of("--benign", "Harmless prompts; default: the shipped ones, dev split.")
@files_of("--harmful", "Harmful prompts, to measure what the gate would miss.")
@files_of("--fit-benign", "Other harmless prompts, to fit the probe on.")
@files_of("--fit-harmful", "Other harmful prompts, to fit the probe on.")
@click.option("--column", help="Column of the prompts, for a file of unknown layout.")
@click.option(
    "--styles",
    default="simple,instruction,cot",
    show_default=True,
    help="Styles of all prompts: names or text files.",
)
@click.option(
    "--epsilon",
    type=float,
    default=0.02,
    show_default=True,
    help="Largest share of prompts like --benign that guidance may act on.",
)
@click.option(
    "--max-miss",
    type=float,
    default=0.05,
    show_default=True,
    help="Largest share of harmful prompts that the gate may leave unguided.",
)
@click.option("--batch-size", type=int, default=32, show_default=True, help="Prompts per batch.")
@click.option("--dry-run", is_flag=True, help="Report, but do not change the profile.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@model_options
def calibrate(
    benign: Files, harmful: Files, fit_benign: Files, fit_harmful: Files, column: str | None,
    styles: str, epsilon: float, max_miss: float, batch_size: int, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Calibrate the gate of a profile, and store the calibration in it.

    For a profile with read_alone, a probe is fitted first, and stored beside the profile: on the
    --fit prompts, or else on every second of the others, and the threshold comes from the rest.

    If a new prompt is drawn in the same way as the --benign prompts, the probability that guidance
    acts on its answer is at most epsilon (split conformal prediction). This is marginal coverage: a
    mean over calibrations, of which the printed share does worse. Other prompts have no such
    guarantee. If the gate would miss more than --max-miss of the harmful prompts, nothing is
    stored.

    \b
    Example:
      minisafe calibrate --profile my-profile.json --benign questions.jsonl --epsilon 0.02
    """
    check_shares(epsilon, max_miss)
    flags = common_flags()
    profile = flags.pop("profile", None) or default_profile()
    check_own(flags, dry_run)
    templates = load_styles(listed(styles))
    stated = {**load_profile(profile).settings, **flags}
    alone = bool(stated.get("read_alone"))
    harmless = of_kind(benign, "benign", column)
    if alone and not benign:
        harmless += of_kind((), "borderline", column)
    dangerous = of_kind(harmful, "harmful", column)
    fit_on = to_fit_on(fit_benign, fit_harmful, column, alone)
    if batch_size < 1:
        raise SettingError(f"--batch-size is {batch_size}; expected 1 or more")
    session = load(profile, flags | {"gate": False, "read_alone": False})
    line = ProgressLine()
    given = session, harmless, dangerous, templates, epsilon, batch_size, line.show, max_miss
    probe = None
    if alone:
        made, probe = evaluation.calibrate_alone(*given, fit_on)
    else:
        made = evaluation.calibrate(*given)
    line.close()
    text = evaluation.report(made)
    check_missed(made.missed, max_miss, text)
    if not dry_run:
        store_calibration(profile, made, probe)
    click.echo(json.dumps(made.to_json()) if as_json else text)


def to_fit_on(
    benign: Files, harmful: Files, column: str | None, alone: bool
) -> tuple[list[Prompt], list[Prompt]] | None:
    """The prompts for a probe alone, if any are given; raises `SettingError`."""
    if bool(benign) != bool(harmful) or (benign and not alone):
        raise SettingError(
            "--fit-benign and --fit-harmful fit a probe: give both, for a profile with read_alone"
        )
    if not benign:
        return None
    return of_kind(benign, "benign", column), of_kind(harmful, "harmful", column)


def check_missed(missed: float, most: float, text: str) -> None:
    """Raise `SafetyError` if the gate would miss too large a share; `text` reports it."""
    if missed > most:
        raise SafetyError(
            f"the gate would miss too much: {text}; expected at most --max-miss {most:g}; "
            "nothing was stored; try a larger --epsilon, or use no gate"
        )


def check_own(flags: Mapping[str, Any], dry_run: bool) -> None:
    """Raise `SettingError` for a flag that changes what is to be stored for the profile."""
    changing = sorted(set(flags) - {"device", "threads", "dtype"})
    if changing and not dry_run:
        raise SettingError(
            f"--{changing[0].replace('_', '-')} is given, but a calibration needs the profile's "
            "own settings; change the profile, or use --dry-run"
        )


def check_shares(epsilon: float, max_miss: float) -> None:
    """Raise `SettingError` unless both are shares."""
    if not 0 < epsilon < 1:
        raise SettingError(f"--epsilon is {epsilon}; expected a share between 0 and 1")
    if not 0 <= max_miss <= 1:
        raise SettingError(f"--max-miss is {max_miss}; expected a share, 0 to 1")


def of_kind(paths: Files, kind: str, column: str | None) -> list[Prompt]:
    """The files' prompts, or the shipped ones of the development split.

    If a set states kinds, such as XSTest, only its harmful prompts count as harmful and only the
    others as harmless. Raises `SettingError` if none is left.
    """
    if not paths:
        return [prompt for prompt in default_prompts("dev") if prompt.kind == kind]
    read = join_prompts(load_prompts(path, column, None, kind) for path in paths)
    found = [prompt for prompt in read if (prompt.kind == "harmful") == (kind == "harmful")]
    if not found:
        raise SettingError(f"--{kind}: its files have no {kind} prompt; expected at least one")
    return found
