"""A run's rows in a form to commit: verdicts and hashes of the answers, never their text.

A file is gzipped JSON Lines. The first line describes the run: `about`, what made each method's
answers, what is known of each question, and what only the models could tell. Every other line is
an answer: method, style, question, cost, the first 16 digits of the SHA-256 of its text (hashes are
most of a file), and each judge's ruling. The same run gives the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minisafe.errors import SettingError
from minisafe.evaluation.records import Fields, Judged, Key, Response
from minisafe.evaluation.report.rows import object_of, rows_of
from minisafe.evaluation.report.summary import plain
from minisafe.evaluation.stored import Measured, Stored, read_directory
from minisafe.files import parse_json, read_bytes, write_bytes

FORMAT = "minisafe rows 1"
SUFFIX = ".jsonl.gz"
MOST_BYTES = 5_000_000  # of a file that is written, so that it can be committed
MOST_UNPACKED = 1 << 30
HASH = "sha256:"  # before an answer's hash, where its text would be
DIGITS = 16  # of a hash, in hexadecimal: enough to compare answers
DIRECTORY = re.compile(r"""(?:^|(?<=[=,:@'"]))(?:/(?!/)|~)[^,@'"]*/""")
OF_QUESTION = ("kind", "category", "verb", "knowledge")
OF_ANSWER = ("method", "style", "id", "attack", "queries", "tokens", "seconds", "finish", "gate")
OF_RULING = ("judge", "verdict", "intact", "correct")


def load_run(path: Path) -> Stored:
    """A run from its directory or from a file of rows. Raises `SettingError`."""
    return read_directory(path) if path.is_dir() else read_rows(path)


# ---- writing -----------------------------------------------------------------------------------


def write_rows(path: Path, run: Stored) -> int:
    """Write the rows of a run; returns the file's size in bytes.

    Raises `SettingError` for another suffix or for more than 5 MB, and `OutputError`.
    """
    if not path.name.endswith(SUFFIX):
        raise SettingError(f"{path}: expected a name that ends in {SUFFIX}")
    rulings: dict[Key, list[Judged]] = {}
    for each in run.judgements:
        rulings.setdefault(each.key, []).append(each)
    lines = [header(run), *(row_of(each, rulings.get(each.key, [])) for each in run.answers)]
    text = "".join(json.dumps(each, separators=(",", ":")) + "\n" for each in lines)
    data = gzip.compress(text.encode(), compresslevel=9, mtime=0)
    if len(data) > MOST_BYTES:
        raise SettingError(
            f"{path}: {len(data):,} bytes; expected at most {MOST_BYTES:,}; split the run by method"
        )
    write_bytes(path, data)
    return len(data)


def header(run: Stored) -> dict[str, Any]:
    """The first line. Directories are taken out of the command: they say where it ran."""
    about = plain(run.about)
    if isinstance(about.get("command"), str):
        about["command"] = " ".join(map(without_directory, about["command"].split(" ")))
    return {
        "format": FORMAT,
        "about": about,
        "made_by": {each.method: asdict(each.made_by) for each in run.answers},
        "questions": {
            each.id: {**{name: getattr(each, name) for name in OF_QUESTION},
                      "sha256": sha256(each.question)}
            for each in run.answers
        },
        "measured": plain(asdict(run.measured)),
    }  # fmt: skip


def without_directory(word: str) -> str:
    """A word of a command; of absolute paths, also behind one of `=,:@`, only their last parts."""
    return DIRECTORY.sub("", word)


def row_of(each: Response, rulings: list[Judged]) -> dict[str, Any]:
    """An answer's line."""
    row = {name: getattr(each, name) for name in OF_ANSWER}
    row["gate"] = None if each.gate is None else asdict(each.gate)
    told = [[getattr(ruling, name) for name in OF_RULING] for ruling in rulings]
    return row | {"sha256": sha256(each.answer), "verdicts": told}


def sha256(text: str) -> str:
    """The first digits of the SHA-256 of a text in UTF-8; of a text that is a hash already, those
    of that hash."""
    if text.startswith(HASH):
        return text.removeprefix(HASH)[:DIGITS]
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]


# ---- reading -----------------------------------------------------------------------------------


def read_rows(path: Path) -> Stored:
    """The run in a file of rows; its answers and questions are hashes, where text would be.

    Raises `SettingError`, with the line, unless the file is as `write_rows` writes it.
    """
    lines = unpacked(path)
    first = Fields(next(lines, ("", None))[1], f"{path}, line 1")
    first.one_of("format", (FORMAT,))
    about, made_by, questions, measured = (
        first.inner(name).data for name in ("about", "made_by", "questions", "measured")
    )
    first.done()
    answers, rulings = [], []
    for where, value in lines:
        row = Fields(value, where)
        told = row.take("verdicts", "a list of rulings", is_rulings)
        answer = response(row, made_by, questions, where)
        answers.append(answer)
        rulings += [judged(answer, ruling, where) for ruling in told]
    if not rulings:
        raise SettingError(f"{path}: holds no judged answer")
    changes = object_of(measured, "changes")
    return Stored(about, answers, by_judge(rulings), Measured(
        {method: object_of(changes, method) for method in changes},
        rows_of(measured, "choices"), rows_of(measured, "sweep"),
    ))  # fmt: skip


def unpacked(path: Path) -> Iterator[tuple[str, Any]]:
    """(position, value) of each line. Raises `SettingError`."""
    packed = read_bytes(path, 2 * MOST_BYTES, SettingError)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            text = file.read(MOST_UNPACKED + 1).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        raise SettingError(
            f"{path}: not a run's rows; expected a run's directory, or a file that "
            "`minisafe report --export` wrote"
        ) from None
    if len(text) > MOST_UNPACKED:
        raise SettingError(f"{path}: unpacks to more than {MOST_UNPACKED:,} bytes")
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        where = f"{path}, line {number}"
        yield where, parse_json(line, where, SettingError)


def is_rulings(value: Any) -> bool:
    """Whether it is a list of lists with the fields of a ruling."""
    return isinstance(value, list) and all(
        isinstance(each, list) and len(each) == len(OF_RULING) for each in value
    )


def response(
    row: Fields, made_by: Mapping[str, Any], questions: Mapping[str, Any], where: str
) -> Response:
    """An answer from its line, checked like an answer of a journal."""
    method, id_ = row.text("method"), row.text("id")
    known = Fields(questions.get(id_), f"{where}, question")
    question, answer = (f"{HASH}{each.text('sha256')}" for each in (known, row))
    data = row.data | known.data | {
        "method": method, "id": id_, "question": question, "prompt": "", "answer": answer,
        "draw": None, "conversation": None, "made_by": made_by.get(method),
    }  # fmt: skip
    return Response.from_json(data, where)


def judged(answer: Response, ruling: list[Any], where: str) -> Judged:
    """A ruling from its part of a line."""
    data = dict(zip(OF_RULING, ruling, strict=True)) | {"basis": "", "detail": ""}
    key = {"method": answer.method, "style": answer.style, "id": answer.id}
    return Judged.from_json(data | key, where)


def by_judge(rulings: list[Judged]) -> list[Judged]:
    """The rulings judge by judge, as a run holds them."""
    judges = dict.fromkeys(each.judge for each in rulings)
    return [each for judge in judges for each in rulings if each.judge == judge]
