"""The run: every method answers every prompt; what is answered is kept at once, and never twice.

Work is cut into batches whose prompts depend on the plan alone, so an answer is the same whoever
gives it and however often the run was stopped. A process appends to a file of its own and syncs it
to the disk; the answers of all of them are put together, in the plan's order, at the end.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisafe.errors import PromptError, SettingError
from minisafe.evaluation.distributed import Group
from minisafe.evaluation.methods import Method, load_method, made_by
from minisafe.evaluation.prompts import Prompt
from minisafe.evaluation.styles import fill
from minisafe.session import Session

Record = dict[str, Any]
Key = tuple[str, str, str]  # method, style, id of the prompt
RESPONSES = "responses.jsonl"


@dataclass(frozen=True)
class Job:
    """One prompt in one style; `number` fixes the draws of sampling, whatever the method."""

    number: int
    style: str
    prompt: Prompt
    asked: str


@dataclass(frozen=True)
class Plan:
    """All that is to be answered by each method, in order."""

    jobs: tuple[Job, ...]
    batch_size: int

    @classmethod
    def make(
        cls,
        prompts: Sequence[Prompt],
        styles: Mapping[str, str],
        benign_styles: Mapping[str, str],
        batch_size: int,
    ) -> Plan:
        """Harmful prompts in every style of `styles`, the others in those of `benign_styles`."""
        names = [*styles, *(name for name in benign_styles if name not in styles)]
        templates = dict(styles) | dict(benign_styles)
        chosen = [
            (name, prompt)
            for name in names
            for prompt in prompts
            if name in (styles if prompt.kind == "harmful" else benign_styles)
        ]
        jobs = [
            Job(number, name, prompt, fill(templates[name], prompt.text))
            for number, (name, prompt) in enumerate(chosen)
        ]
        return cls(tuple(jobs), batch_size)

    def batches(self) -> Iterator[tuple[Job, ...]]:
        """Jobs of neighbouring numbers, of any lengths."""
        for start in range(0, len(self.jobs), self.batch_size):
            yield self.jobs[start : start + self.batch_size]


Progress = Callable[[str, int, int], None]


def run(
    directory: Path,
    methods: Sequence[Method],
    plan: Plan,
    group: Group,
    progress: Progress = lambda what, done, total: None,
    resume: bool = False,
) -> list[Record]:
    """Answer everything that `directory` does not hold yet; returns all answers in order.

    Every process of the group must call it; the answers are the same as one process gives.

    Raises:
        SettingError: the directory holds answers and `resume` is False, or answers that were made
            by other models or settings.
        PromptError: a prompt does not fit the context; said before anything is answered.
    """
    directory.mkdir(parents=True, exist_ok=True)
    found = read_all(directory)
    if found and not resume:
        raise SettingError(
            f"{directory} holds {len(found)} answers; use --resume to go on, or another --out"
        )
    group.barrier()  # nobody writes before everybody has read
    shares = [(method, share_of(method, plan, group, found)) for method in methods]
    total = sum(len(missing(method, b, found)) for method, share in shares for b in share)
    done = 0
    with Journal(directory / group.file(RESPONSES)) as journal:
        for method, share in shares:
            if not share and not any(name == method.name for name, _, _ in found):
                continue
            session = load_method(method)
            about = made_by(session)
            check_same(directory, method, about, found)
            check_prompts(session, share)
            for batch in share:
                records = answer(session, method, batch, about)
                journal.append([each for each in records if key_of(each) not in found])
                done += len(missing(method, batch, found))
                progress(method.name, done, total)
    group.barrier()  # everybody has written
    merged = merge(directory, methods, plan) if group.rank == 0 else []
    group.barrier()
    return merged


def keys(methods: Iterable[Method], plan: Plan) -> list[Key]:
    """Every answer that is to be, in order."""
    return [(method.name, job.style, job.prompt.id) for method in methods for job in plan.jobs]


def key_of(record: Mapping[str, Any]) -> Key:
    """Which answer a record is."""
    return record["method"], record["style"], record["id"]


def missing(method: Method, batch: Sequence[Job], found: Mapping[Key, Record]) -> list[Job]:
    """The jobs of a batch that have no answer by the method yet."""
    return [job for job in batch if (method.name, job.style, job.prompt.id) not in found]


def share_of(
    method: Method, plan: Plan, group: Group, found: Mapping[Key, Record]
) -> list[tuple[Job, ...]]:
    """The batches that are this process's to answer, and are not answered yet."""
    return [
        batch
        for number, batch in enumerate(plan.batches())
        if number % group.size == group.rank and missing(method, batch, found)
    ]


def answer(session: Session, method: Method, batch: Sequence[Job], about: Record) -> list[Record]:
    """A batch's answers, each with what made it."""
    started = time.perf_counter()
    asked = [job.asked for job in batch]
    results = session.generate(asked, chat=True, batch_size=len(batch), first=batch[0].number)
    seconds = time.perf_counter() - started
    tokens = sum(len(result.tokens) for result in results)
    return [
        {
            "method": method.name, "style": job.style, "id": job.prompt.id,
            "kind": job.prompt.kind, "category": job.prompt.category,
            "question": job.prompt.text, "prompt": job.asked, "answer": result.text,
            "finish": result.finish_reason, "tokens": len(result.tokens),
            "seconds": round(seconds * len(result.tokens) / max(1, tokens), 6),
            "gate": result.applied.to_json().get("gate"), "made_by": about,
        }
        for job, result in zip(batch, results, strict=True)
    ]  # fmt: skip


def check_prompts(session: Session, batches: Iterable[Sequence[Job]]) -> None:
    """Raise `PromptError`, naming the prompt, for one that the session cannot be asked."""
    for batch in batches:
        for job in batch:
            try:
                session.check_fits(session.encode(job.asked, chat=True))
            except PromptError as error:
                raise PromptError(f"prompt {job.prompt.id}, style {job.style}: {error}") from None


def check_same(directory: Path, method: Method, about: Record, found: Mapping[Key, Record]) -> None:
    """Raise `SettingError` where the directory's answers of a method were made otherwise."""
    wanted = json.loads(json.dumps(about))
    for (name, _, _), record in found.items():
        if name == method.name and record.get("made_by") != wanted:
            differs = difference(record.get("made_by") or {}, wanted)
            raise SettingError(
                f"{directory}: its answers of method {name} were made with other settings "
                f"({differs}); use another --out"
            )


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The first thing that differs between two `made_by`."""
    for part in other:
        mine, theirs = one.get(part) or {}, other[part]
        for name in sorted({*mine, *theirs}):
            if mine.get(name) != theirs.get(name):
                return f"{name}: {mine.get(name)!r} there, {theirs.get(name)!r} now"
    return "unknown"


# ---- files -------------------------------------------------------------------------------------


class Journal:
    """A JSONL file that only grows, and whose lines are on the disk when `append` returns."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> Journal:
        drop_torn_line(self.path)
        self.file = self.path.open("ab")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def append(self, records: Iterable[Record]) -> None:
        self.file.write("".join(json.dumps(record) + "\n" for record in records).encode())
        self.file.flush()
        os.fsync(self.file.fileno())


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that was not written whole."""
    if not path.is_file():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)


def read_lines(path: Path) -> Iterator[Record]:
    """Whole lines of a journal; a torn last one is passed over. Raises `SettingError`."""
    data = path.read_bytes()
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            record = json.loads(line)
            key_of(record)
        except (ValueError, TypeError, KeyError):
            raise SettingError(
                f"{path}: line {number} is not one of a run's; use another --out"
            ) from None
        yield record


def read_all(directory: Path) -> dict[Key, Record]:
    """Every answer that the directory holds, of any process."""
    stem, suffix = RESPONSES.split(".")
    paths = [directory / RESPONSES, *sorted(directory.glob(f"{stem}.*.{suffix}"))]
    found: dict[Key, Record] = {}
    for path in paths:
        if path.is_file():
            for record in read_lines(path):
                found.setdefault(key_of(record), record)
    return found


def merge(directory: Path, methods: Sequence[Method], plan: Plan) -> list[Record]:
    """Put all processes' answers into one file, in the plan's order; others' answers come after."""
    found = read_all(directory)
    order = keys(methods, plan)
    planned = [found[key] for key in order]
    others = [record for key, record in found.items() if key not in set(order)]
    write_jsonl(directory / RESPONSES, [*planned, *others])
    stem, suffix = RESPONSES.split(".")
    for part in directory.glob(f"{stem}.*.{suffix}"):
        part.unlink()
    return planned


def write_jsonl(path: Path, records: Iterable[Record]) -> None:
    """Write a whole JSONL file, or none."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        for record in records:
            file.write((json.dumps(record) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
