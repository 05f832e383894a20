"""The answers in a run's directory, and whether a run may continue from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from minisafe.errors import SettingError
from minisafe.evaluation.journal import opened, whole_lines
from minisafe.evaluation.methods import Method
from minisafe.evaluation.records import Key, MadeBy, Response
from minisafe.evaluation.runner.plan import Job, Plan
from minisafe.files.display import harmless

RESPONSES = "responses.jsonl"


def read_responses(path: Path) -> Iterator[tuple[str, Response]]:
    """(position, answer) of each answer in a file. Raises `SettingError`."""
    for where, line in whole_lines(path):
        yield where, Response.from_json(opened(line, where), where)


def read_all(directory: Path) -> dict[Key, Response]:
    """Every answer in the directory, from any process. Raises `SettingError`."""
    found: dict[Key, Response] = {}
    for path in [directory / RESPONSES, *parts_of(directory)]:
        for where, response in read_responses(path):
            if found.setdefault(response.key, response) != response:
                raise SettingError(
                    f"{where}: a second answer to prompt {brief(response.id)}; delete one of "
                    "the two, or use another --out"
                )
    return found


def parts_of(directory: Path) -> list[Path]:
    """The files of several processes that were not merged yet."""
    stem, suffix = RESPONSES.split(".")
    return sorted(directory.glob(f"{stem}.*.{suffix}"))


def key_of(method: Method, job: Job) -> Key:
    """The key of a method's answer to a job."""
    return method.name, job.style, job.prompt.id


def check_asked(
    directory: Path, methods: Sequence[Method], plan: Plan, found: Mapping[Key, Response]
) -> None:
    """Raise `SettingError` for an answer in the directory to another prompt with the same id."""
    for method in methods:
        for job in plan.jobs:
            response = found.get(key_of(method, job))
            differs = "" if response is None else other_prompt(response, job)
            if differs:
                raise SettingError(
                    f"{directory}: its answer of method {method.name}, style {job.style}, to "
                    f"prompt {job.prompt.id} is to another one ({differs}); give the prompts and "
                    "styles that it was made with, or another --out"
                )


def other_prompt(response: Response, job: Job) -> str:
    """The first difference between an answer's prompt and the job's; "" if there is none."""
    now: dict[str, object] = {
        "question": job.prompt.text, "kind": job.prompt.kind, "category": job.prompt.category,
        "verb": job.prompt.told("verb"), "knowledge": job.prompt.told("kind"),
        "attack": job.attack is not None,
        "draw": None if response.draw is None else job.number,
    }  # fmt: skip
    if job.attack is None:  # else the attack decides what is asked, and may ask the model first
        chat = job.chat
        now["prompt"] = job.asked
        now["conversation"] = None if chat.is_first_turn else chat.to_json()
    for name, value in now.items():
        there = getattr(response, name)
        if there != value:
            return f"{name}: {brief(there)} there, {brief(value)} now"
    return ""


def brief(value: object) -> str:
    """A value for a message."""
    return harmless(repr(value), 100)


def check_same(
    directory: Path, method: Method, about: MadeBy, found: Mapping[Key, Response]
) -> None:
    """Raise `SettingError` if the directory's answers of a method were made in another way."""
    for response in found.values():
        if response.method != method.name:
            continue
        # not `!=`: a setting that is off and one that an older version did not have are the same
        differs = response.made_by.difference(about)
        if differs:
            raise SettingError(
                f"{directory}: its answers of method {method.name} were made with other settings "
                f"({differs}); use another --out"
            )
