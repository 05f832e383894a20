"""The run: every method answers every prompt once, and each answer is stored at once.

Batches depend on the plan alone. So an answer depends neither on the process that gives it nor on
interruptions. Each process appends to its own file and syncs it to the disk; at the end the files
are merged in the plan's order. All checks come before the first answer and the first file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

from minisafe.errors import PromptError, SettingError
from minisafe.evaluation.attacks import Attempt
from minisafe.evaluation.attacks.gradient import check_white_box
from minisafe.evaluation.attacks.oracle import SessionOracle
from minisafe.evaluation.attacks.together import together
from minisafe.evaluation.defences import Subject, with_gradients
from minisafe.evaluation.journal import Journal, check_directory, write_journal
from minisafe.evaluation.methods import Method, load_method, made_by
from minisafe.evaluation.records import Gated, Key, MadeBy, Response
from minisafe.evaluation.runner.attacker import Attacker
from minisafe.evaluation.runner.distributed import Processes
from minisafe.evaluation.runner.plan import Job, Plan
from minisafe.evaluation.runner.resume import (
    RESPONSES,
    check_asked,
    check_same,
    key_of,
    parts_of,
    read_all,
)
from minisafe.session.answer import Result

Progress = Callable[[str, int, int], None]
Check = Callable[[Subject], None]


def silent(what: str, done: int, total: int) -> None:
    """Shows no progress."""


def run(
    directory: Path,
    methods: Sequence[Method],
    plan: Plan,
    processes: Processes,
    progress: Progress = silent,
    resume: bool = False,
    check: Check = lambda session: None,
    attacker: Attacker | None = None,
) -> list[Response]:
    """Answer everything that `directory` does not hold yet; returns all answers in order.

    Every process must call it; the answers equal those of a single process. check: additional
    checks of a method's session, before the first answer. attacker: what attacks need, if the
    plan has any.

    Raises:
        SettingError: the directory holds answers and `resume` is False, or answers to other
            prompts, from other models or settings, or lines that were changed.
        PromptError: a prompt does not fit the context; raised before the first answer.
    """
    found = read_all(directory)
    if found and not resume:
        raise SettingError(
            f"{directory} holds {len(found)} answers; use --resume to continue, or another --out"
        )
    check_directory(directory)
    check_asked(directory, methods, plan, found)
    loaded = check_methods(directory, methods, plan, found, check)
    processes.barrier()  # no process writes before all have read
    if attacker is not None:
        attacker.prepare(directory, methods[0], processes, progress)
    with Journal(directory / processes.file(RESPONSES)) as journal:
        answer_all(methods, plan, processes, found, loaded, journal, progress, attacker)
    processes.barrier()  # all processes have written
    merged = merge(directory, methods, plan) if processes.rank == 0 else []
    processes.barrier()
    return merged


def answer_all(
    methods: Sequence[Method],
    plan: Plan,
    processes: Processes,
    found: Mapping[Key, Response],
    loaded: dict[str, Subject],
    journal: Journal,
    progress: Progress,
    attacker: Attacker | None,
) -> None:
    """Give this process's share of the answers; `loaded` holds sessions that are loaded already."""
    shares = [(method, share_of(method, plan, processes, found)) for method in methods]
    total = sum(len(missing(method, b, found)) for method, share in shares for b in share)
    done = 0
    for method, share in shares:
        session = loaded.pop(method.name, None)
        if not share:
            continue
        session = session or load_method(method)
        about = made_by(session)
        oracle = None if attacker is None else attacker.oracle(session)
        for batch in share:
            records = answer(session, method, batch, about, attacker, oracle)
            journal.append(each.to_json() for each in records if each.key not in found)
            done += len(missing(method, batch, found))
            progress(method.name, done, total)


def keys(methods: Iterable[Method], plan: Plan) -> list[Key]:
    """Every answer of the plan, in order."""
    return [key_of(method, job) for method in methods for job in plan.jobs]


def missing(method: Method, batch: Sequence[Job], found: Mapping[Key, Response]) -> list[Job]:
    """The jobs of a batch without an answer by the method."""
    return [job for job in batch if key_of(method, job) not in found]


def share_of(
    method: Method, plan: Plan, processes: Processes, found: Mapping[Key, Response]
) -> list[tuple[Job, ...]]:
    """This process's batches that are not answered yet."""
    return [
        batch
        for number, batch in enumerate(plan.batches())
        if number % processes.size == processes.rank and missing(method, batch, found)
    ]


def answer(
    session: Subject,
    method: Method,
    batch: Sequence[Job],
    about: MadeBy,
    attacker: Attacker | None,
    oracle: SessionOracle | None,
) -> list[Response]:
    """A batch's answers, each with what made it."""
    started = time.perf_counter()
    asked = settle(batch, attacker, oracle)
    given = [each.attempt.answer for each in asked]
    results: dict[int, Result] = {}
    for open_, group in groupby(range(len(batch)), lambda n: given[n] is None):
        if open_:  # jobs in a row have numbers in a row, which fix their draws
            own = list(group)
            prompts = [asked[n].attempt.prompt for n in own]
            found = session.generate(prompts, batch_size=len(own), first=batch[own[0]].number)
            results |= dict(zip(own, found, strict=True))
    seconds = time.perf_counter() - started
    tokens = sum(len(result.tokens) for result in results.values())
    drawn = session.settings.temperature != 0
    made = []
    for n, (job, each) in enumerate(zip(batch, asked, strict=True)):
        result, prompt = results.get(n), each.attempt.prompt
        count = len(result.tokens) if result else 0
        made.append(Response(
            method.name, job.style, job.prompt.id, job.prompt.kind, job.prompt.category,
            job.prompt.text, prompt.question, job.number if drawn else None,
            result.text if result else str(given[n]),
            result.finish_reason if result else "attack",
            count, round(seconds * count / max(1, tokens), 6),
            seen_by_gate(result) if result else None,
            about, job.attack is not None, each.queries + (result is not None),
            None if prompt.is_first_turn else prompt.to_json(),
            job.prompt.told("verb"), job.prompt.told("kind"),
        ))  # fmt: skip
    return made


@dataclass(frozen=True)
class Settled:
    """What is asked of a job in the end, and how many queries an attack made before."""

    attempt: Attempt
    queries: int = 0


def settle(
    batch: Sequence[Job], attacker: Attacker | None, oracle: SessionOracle | None
) -> list[Settled]:
    """For each job its own question, or what its attack makes of it; attacks advance together."""
    found = [Settled(Attempt(job.chat)) for job in batch]
    attacks = {n: job.attack for n, job in enumerate(batch) if job.attack is not None}
    if attacks:
        assert attacker is not None
        assert oracle is not None
        makes = [
            partial(attack.make, attacker.target(batch[n].prompt), oracle)
            for n, attack in attacks.items()
        ]
        for n, (attempt, queries) in zip(attacks, together(makes, oracle), strict=True):
            found[n] = Settled(attempt, queries)
    return found


def seen_by_gate(result: Result) -> Gated | None:
    """The gate's result for an answer's prompt; None without a gate."""
    gate = result.applied.gate
    if gate is None or gate.variation is None:
        return None
    return Gated(gate.threshold, gate.variation, gate.open is True)


# ---- checks ------------------------------------------------------------------------------------


def check_methods(
    directory: Path,
    methods: Sequence[Method],
    plan: Plan,
    found: Mapping[Key, Response],
    check: Check,
) -> dict[str, Subject]:
    """Load every method and raise its errors; returns the session that answers first.

    Methods are loaded from the last to the first, one at a time. So an error in any of them comes
    before the first answer.
    """
    session: Subject | None = None
    used = {name for name, _, _ in found}
    for method in reversed(methods):
        session = None
        batches = [batch for batch in plan.batches() if missing(method, batch, found)]
        if not batches and method.name not in used:
            continue
        session = load_method(method)
        check_same(directory, method, made_by(session), found)
        check_prompts(session, batches)
        check_attacks(method, session, batches)
        check(session)
    return {} if session is None else {methods[0].name: session}


def check_prompts(session: Subject, batches: Iterable[Sequence[Job]]) -> None:
    """Raise a `PromptError` that names the prompt if one does not fit the session."""
    for batch in batches:
        for job in batch:
            try:
                session.check_fits(session.encode_prompt(job.chat, chat=True).ids)
            except PromptError as error:
                raise PromptError(f"prompt {job.prompt.id}, style {job.style}: {error}") from None


def check_attacks(method: Method, session: Subject, batches: Iterable[Sequence[Job]]) -> None:
    """Raise `SettingError` for an attack that needs gradients where there are none."""
    attacks = {job.attack for batch in batches for job in batch if job.attack is not None}
    try:
        for attack in attacks:
            if attack.white_box:  # without searching, it asks the undefended base alone
                asked = with_gradients(session) if attack.is_searching else session.plain()
                check_white_box(asked)
    except SettingError as error:
        raise SettingError(f"method {method.name}: {error}") from None


# ---- files -------------------------------------------------------------------------------------


def merge(directory: Path, methods: Sequence[Method], plan: Plan) -> list[Response]:
    """Merge all processes' answers into one file in the plan's order; other answers come last."""
    found = read_all(directory)
    order = dict.fromkeys(keys(methods, plan))
    planned = [found[key] for key in order]
    others = [response for key, response in found.items() if key not in order]
    write_journal(directory / RESPONSES, (each.to_json() for each in [*planned, *others]))
    for part in parts_of(directory):
        part.unlink()
    return planned
