"""One evaluation from prompts to report: the work of `minisafe evaluate`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from minisafe.errors import SettingError
from minisafe.evaluation.defences import Defended, Subject
from minisafe.evaluation.judges import Judge
from minisafe.evaluation.judges.judgements import JUDGEMENTS, read_known, rule_all
from minisafe.evaluation.likelihood.choice_files import Choice, load_choices, spread
from minisafe.evaluation.likelihood.choices import check_choices, measure_choices
from minisafe.evaluation.likelihood.scoring import changes, surprise
from minisafe.evaluation.methods import Method, load_method
from minisafe.evaluation.prompts import Prompt
from minisafe.evaluation.records import Response
from minisafe.evaluation.report.paired import BASE, chosen_method
from minisafe.evaluation.report.summary import write_summary
from minisafe.evaluation.report.write import write_report
from minisafe.evaluation.runner.attacker import Attacker
from minisafe.evaluation.runner.distributed import Processes
from minisafe.evaluation.runner.plan import Plan
from minisafe.evaluation.runner.run import Progress, run, silent
from minisafe.evaluation.stored import Measured, Stored
from minisafe.session import Session
from minisafe.session.profile import load_profile
from minisafe.session.settings import Settings


@dataclass(frozen=True)
class Evaluation:
    """The input of an evaluation.

    source: where the prompts come from, for the report. command: the typed command. sample: the
    number of answers per method on which to measure what guidance changes; 0 measures nothing.
    choices: files of multiple-choice questions. against: the method to test the others against.
    choices_chat: ask these questions in a chat, as prompts are asked. choices_limit: most questions
    of each file.
    """

    methods: Sequence[Method]
    prompts: Sequence[Prompt]
    plan: Plan
    source: str
    command: str = ""
    seed: int = 0
    sample: int = 64
    choices: Sequence[Path] = ()
    against: str | None = None
    choices_chat: bool = False
    choices_limit: int | None = None

    @property
    def attacked(self) -> bool:
        """Whether any question is asked under attack."""
        return any(job.attack is not None for job in self.plan.jobs)


def evaluate(
    evaluation: Evaluation,
    judges: Sequence[Judge],
    directory: Path,
    processes: Processes | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Answer, judge, count, and write `directory`; returns the summary (in process 0, else {}).

    Raises the errors of `runner.run` and of the judges. All checks come before the first answer and
    the first file.
    """
    processes = processes or Processes()
    questions = [
        each
        for path in evaluation.choices
        for each in spread(load_choices(path), evaluation.choices_limit)
    ]
    check_judges(judges, evaluation.prompts, directory)
    chosen_method([each.name for each in evaluation.methods], evaluation.against)

    def check(session: Subject) -> None:
        if not isinstance(session, Defended):
            check_choices(session, questions, evaluation.choices_chat)

    methods, plan = evaluation.methods, evaluation.plan
    attacker = attacker_of(evaluation, judges) if evaluation.attacked else None
    answers = run(directory, methods, plan, processes, progress, resume, check, attacker)
    if processes.rank > 0:
        return {}
    prompts = {prompt.id: prompt for prompt in evaluation.prompts}
    judgements = rule_all(directory, answers, prompts, judges, progress)
    measured = measure_models(evaluation, questions, answers, progress)
    made = Stored(about(evaluation, answers), answers, judgements, measured)
    return write_run(directory, made, evaluation.against)


def write_run(directory: Path, run: Stored, against: str | None) -> dict[str, Any]:
    """Write a run's `summary.json` and report; returns the summary. Raises `SettingError`."""
    summary = run.summary(against)
    write_summary(directory, summary)
    write_report(
        directory, summary, [each.to_json() for each in run.answers],
        [each.to_json() for each in run.judgements],
    )  # fmt: skip
    return summary


def attacker_of(evaluation: Evaluation, judges: Sequence[Judge]) -> Attacker:
    """What attacks need; the first judge tells them when they are done. Raises `SettingError`."""
    if not judges:
        raise SettingError("attacks need a judge, to tell when they are done")
    harmful = [each for each in evaluation.prompts if each.kind == "harmful"]
    return Attacker(judges[0], harmful, evaluation.seed, evaluation.plan.batch_size)


def check_judges(judges: Sequence[Judge], prompts: Sequence[Prompt], directory: Path) -> None:
    """Raise `SettingError` if two judges share a name, if one cannot judge answers to these
    prompts, or if the directory's rulings were changed after they were written."""
    names = [judge.name for judge in judges]
    for judge in judges:
        if names.count(judge.name) > 1:
            raise SettingError(f"the judge {judge.name!r} is given twice; expected each once")
        judge.check(prompts)
    if judges:
        read_known(directory / JUDGEMENTS)


def about(evaluation: Evaluation, answers: Sequence[Response]) -> dict[str, Any]:
    """A description of the run, for the first lines of the report."""
    made_by = {answer.method: answer.made_by for answer in answers}
    options = {
        method.name: {"options": dict(method.options)}
        for method in evaluation.methods
        if method.options
    }
    kinds = [prompt.kind for prompt in evaluation.prompts]
    counts = {kind: kinds.count(kind) for kind in ("harmful", "benign", "borderline")}
    return {
        "created": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "command": evaluation.command,
        "seed": evaluation.seed,
        "prompts": {"source": evaluation.source, **counts},
        "versions": next((made.versions for made in made_by.values()), {}),
        "models": {
            name: {**made.models, "settings": unusual(made.settings), **options.get(name, {})}
            for name, made in made_by.items()
        },
        "calibrations": calibrations(evaluation.methods, answers),
    }


def calibrations(
    methods: Sequence[Method], answers: Sequence[Response]
) -> dict[str, dict[str, float]]:
    """The epsilon of each method's gate, and the number of prompts that it was calibrated on."""
    gated = {each.method for each in answers if each.gate is not None}
    found = {}
    for method in methods:
        if method.name in gated and method.profile is not None:
            made = load_profile(method.profile).calibration
            if made is not None:
                found[method.name] = {"epsilon": made.epsilon, "n": made.n}
    return found


def unusual(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that differ from their defaults."""
    usual = vars(Settings()) | {"stop": []}
    return {name: value for name, value in settings.items() if value != usual.get(name)}


def measure_models(
    evaluation: Evaluation,
    questions: Sequence[Choice],
    answers: Sequence[Response],
    progress: Progress,
) -> Measured:
    """The measurements that need the models again: changes to the base, multiple choice.

    A method with a defence around the model has neither: what it does to prompts and whole answers
    shows at no token.
    """
    if not evaluation.sample and not questions:
        return Measured()
    changed: dict[str, Mapping[str, float]] = {}
    choices: list[Mapping[str, Any]] = []
    for number, method in enumerate(evaluation.methods, 1):
        session = load_method(method)
        if isinstance(session, Defended):
            continue
        told = compared(session, method.name, answers, evaluation.sample)
        if told:
            changed[method.name] = told
        if questions:
            each_done = partial(progress, f"{method.name}: choices")
            rows = measure_choices(session, questions, evaluation.choices_chat, progress=each_done)
            choices += [{"method": method.name, **row} for row in rows]
        progress("measured", number, len(evaluation.methods))
    return Measured(changed, choices)


def compared(
    session: Session, name: str, answers: Sequence[Response], sample: int
) -> dict[str, float]:
    """How a method differs from the base: `changed` and `kl` along its own answers (`Measured`),
    and `nll` of the base's answers to harmless prompts, if these were not drawn (NaN if the method
    makes a token of them impossible)."""
    told: dict[str, float] = {}
    own = thinned((each for each in answers if each.method == name), sample)
    if own:
        moved = changes(session, [a.prompt for a in own], [a.answer for a in own])
        told |= {"changed": 100 * moved.share_changed, "kl": moved.mean_kl}
    base = thinned((each for each in answers if is_harmless_base(each)), sample)
    if base:
        nll = surprise(session, [a.prompt for a in base], [a.answer for a in base]).nll
        told["nll"] = nll if math.isfinite(nll) else math.nan  # JSON has no infinity
    return told


def is_harmless_base(answer: Response) -> bool:
    """Whether it is the base's likeliest answer to a harmless prompt."""
    return answer.method == BASE and answer.kind == "benign" and answer.draw is None


def thinned(answers: Iterable[Response], most: int) -> list[Response]:
    """At most this many answers to single messages, evenly spread; none that is empty."""
    found = [each for each in answers if each.answer and each.conversation is None]
    return found[:: max(1, len(found) // max(1, most))][:most]
