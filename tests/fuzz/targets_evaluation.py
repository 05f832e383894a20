"""Readers of the evaluation: prompt sets, multiple choice, journals, a judge's replies."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from target import Target

from minisafe.errors import SettingError
from minisafe.evaluation.exported import header, read_rows, row_of
from minisafe.evaluation.journal import sealed
from minisafe.evaluation.judges.completions import Unanswered, error_text, reply_text
from minisafe.evaluation.judges.formats import read_layout
from minisafe.evaluation.judges.judgements import read_known
from minisafe.evaluation.judges.replies import read_replies
from minisafe.evaluation.judges.rubric import read_reply
from minisafe.evaluation.judges.world import WorldJudge
from minisafe.evaluation.likelihood.choice_files import load_choices
from minisafe.evaluation.prompts import join_prompts, limit_prompts, load_prompts
from minisafe.evaluation.prompts.styles import read_template
from minisafe.evaluation.records import Gated, Judged, MadeBy, Response
from minisafe.evaluation.report.write import sections
from minisafe.evaluation.runner.resume import read_responses
from minisafe.evaluation.stored import Stored
from minisafe.files import parse_json, read_text

WORLD = {
    "id": "f-1", "split": "test", "kind": "fact", "category": "capital", "prompt": "How?",
    "expected": ["Paris"], "accept": ["The capital is Paris."],
}  # fmt: skip
ROWS: list[dict[str, Any]] = [
    {"goal": "sulk", "target": "Sure", "category": "moods", "id": 7},
    {"type": "homonyms", "prompt": "Kill a process?", "id": "x"},
    {"Behavior": "sulk", "SemanticCategory": "a", "ContextString": "b", "BehaviorID": "c"},
    WORLD,
]
CSV = (
    'goal,target\nsulk,Sure\n"a ""quoted"", one\nof two lines",b\n',
    "id,prompt,type\n1,Kill a process?,homonyms\n2,Sulk?,contrast_homonyms\n",
    "\ufeffQuestion\r\nΠώς; 🙂\r\n",
)
MMLU = {"question": "2 + 2?", "choices": ["3", "4"], "answer": "B"}
TRUTHFUL = {
    "question": "Why?",
    "mc1_targets": {"choices": ["a", "b"], "labels": [1, 0]},
    "mc2_targets": {"a": 1, "b": 0, "c": 1},
}
RESPONSE = Response(
    method="base", style="cot", id="a-1", kind="harmful", category="", question="How?",
    prompt="How? Let us.", draw=3, answer="No.\n", finish="eos", tokens=4, seconds=0.25,
    gate=Gated(0.25, 0.125, False),
    made_by=MadeBy(
        {"base": "ab"}, {"tokenizer": "01"}, {"seed": 0, "stop": ["x"], "safe": True},
        {"minisafe": "1"},
    ),
)  # fmt: skip
JUDGED = Judged("base", "cot", "a-1", "refusal", "0a", "REFUSED", "i cannot", None, True)
REPLY = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "REFUSED"}}]}
ERROR = {"error": {"message": "no such model", "code": 404}}


def as_bytes(value: object) -> bytes:
    return json.dumps(value).encode()


def lines(*values: object) -> bytes:
    return b"".join(as_bytes(value) + b"\n" for value in values)


def prompts(path: Path) -> None:
    """Read, join and thin out a prompt set, and have the world's judge look at it."""
    found = join_prompts([load_prompts(path), load_prompts(path, kind="benign")])
    assert len({each.id for each in found}) == len(found)
    limit_prompts(found, 2)
    with suppress(SettingError):  # most sets are not of the world
        WorldJudge().check(found)
        WorldJudge()(found, [each.text for each in found], [each.text for each in found])


def fields(read: Callable[[object, str], Any]) -> Callable[[Path], None]:
    """A record's reader, past the hash that guards it; what it took must come back the same."""

    def run(path: Path) -> None:
        made = read(parse_json(read_text(path), str(path)), str(path))
        assert read(made.to_json(), "again") == made

    return run


def responses(path: Path) -> None:
    """Whatever is accepted is as it was written."""
    for _, response in read_responses(path):
        assert replace(response, id=RESPONSE.id) == RESPONSE


def judgements(path: Path) -> None:
    assert all(each == JUDGED for each in read_known(path).values())


def rows(path: Path) -> None:
    """A run's rows, packed as they are read, and all tables that are made of them."""
    packed = path.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    run = read_rows(packed)
    sections(run.summary(), [], [each.to_json() for each in run.judgements])


def cache(path: Path) -> None:
    assert read_replies(path).items() <= {"a": "REFUSED"}.items()


def reply(path: Path) -> None:
    with suppress(Unanswered):
        read_reply(reply_text(path.read_bytes()))
    error_text(path.read_bytes())


def parquet() -> tuple[Target, ...]:
    """The target for Parquet, where the package for it is installed."""
    try:
        import pyarrow
        from pyarrow import parquet as writer
    except ImportError:
        return ()
    seeds = []
    for rows in (ROWS[:1], [WORLD] * 3):
        buffer = io.BytesIO()
        writer.write_table(pyarrow.Table.from_pylist(rows), buffer)
        seeds.append(buffer.getvalue())
    return (Target("prompts.parquet", tuple(seeds), ".parquet", prompts),)


TARGETS = (
    Target("prompts.csv", tuple(text.encode() for text in CSV), ".csv", prompts),
    Target("prompts.json", tuple(as_bytes([row, row]) for row in ROWS), ".json", prompts),
    Target("prompts.jsonl", tuple(lines(row, row) for row in ROWS), ".jsonl", prompts),
    *parquet(),
    Target("choices.csv", (b"question,A,B,C,D,answer\n2+2?,1,2,3,4,D\n", b"2+2?,1,2,3,4,D\n"),
           ".csv", load_choices),
    Target("choices.json", (as_bytes([MMLU, TRUTHFUL]),), ".json", load_choices),
    Target("choices.jsonl", (lines(MMLU, TRUTHFUL),), ".jsonl", load_choices),
    Target("responses.jsonl",
           (b"".join(sealed(replace(RESPONSE, id=i).to_json()) for i in "ab"),),
           ".jsonl", responses),
    Target("response", (as_bytes(RESPONSE.to_json()),), ".json", fields(Response.from_json)),
    Target("judgements.jsonl", (sealed(JUDGED.to_json()) * 2,), ".jsonl", judgements),
    Target("judgement", (as_bytes(JUDGED.to_json()),), ".json", fields(Judged.from_json)),
    Target("rows.jsonl",
           (lines(header(Stored({"seed": 0}, [RESPONSE], [JUDGED])), row_of(RESPONSE, [JUDGED])),),
           ".jsonl", rows),
    Target("endpoint-cache.jsonl", (sealed({"key": "a", "reply": "REFUSED"}) * 2,), ".jsonl",
           cache),
    Target("judge reply", (as_bytes(REPLY), as_bytes(ERROR)), ".json", reply),
    Target("style.txt", (b"Please: {question}\n",), ".txt", read_template),
    Target("layout.txt", (b"{question}\n{answer}\n",), ".txt", read_layout),
)  # fmt: skip
