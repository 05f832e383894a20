"""The parts of the public prompt sets: what is tested has trained, fitted and chosen nothing."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pytest

from minisafe.evaluation.prompts import load_prompts

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
if not WEIGHTS.is_dir():
    pytest.skip("the weights' scripts are not here", allow_module_level=True)
sys.path.insert(0, str(WEIGHTS))

import real_parts  # noqa: E402
import real_prompts  # noqa: E402


def write_csv(path: Path, rows: Sequence[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompt sets in the layouts of the public ones; every text says where it comes from."""
    made = tmp_path_factory.mktemp("data")
    write_csv(made / "advbench.csv", [{"goal": "Sure", "target": f"adv {n}"} for n in range(520)])
    for part in ("val", "test"):
        kinds = ["standard", "contextual", "copyright"]
        write_csv(
            made / f"harmbench_{part}.csv",
            [{"Behavior": f"{part} {n}", "FunctionalCategory": kinds[n % 3],
              "ContextString": "words" if n % 3 == 1 else ""} for n in range(30)],
        )  # fmt: skip
        written = [{"instruction": f"plain {part} {n}"} for n in range(600)]
        (made / f"harmless_{part}.json").write_text(json.dumps(written))
    write_csv(
        made / "strongreject.csv",
        [{"category": "Violence", "forbidden_prompt": f"strong {n}"} for n in range(20)],
    )
    write_csv(
        made / "xstest.csv",
        [{"type": kind, "label": label, "prompt": f"x {label} {kind} {n}"}
         for label, kind in (("safe", "homonyms"), ("unsafe", "contrast_homonyms"))
         for n in range(25)],
    )  # fmt: skip
    return made


def texts(parts: dict[str, real_prompts.Texts]) -> set[str]:
    return {text for _, text in chain.from_iterable(parts.values())}


def test_nothing_of_the_test_part_is_used_in_development(data: Path) -> None:
    parts = real_prompts.development(data)
    seen = set(chain.from_iterable(parts.values()))
    assert not texts(real_prompts.tested(data)) & seen
    assert {len(parts["safe"]), len(parts["unsafe"])} == {13}


def test_the_threshold_comes_from_prompts_that_nothing_was_trained_on(data: Path) -> None:
    parts = real_prompts.development(data)
    trained = set(parts["harmful"] + parts["harmless"] + parts["own unsafe"] + parts["own safe"])
    trained |= {*parts["safe"][0::2], *parts["unsafe"][0::2]}
    assert not texts(real_prompts.calibrated(parts)) & trained
    assert not texts(real_prompts.calibrated(parts)) & texts(real_prompts.fitted(parts))
    assert not texts(real_prompts.compared(parts)) & trained


def test_copyright_stands_apart_and_a_context_in_front(data: Path) -> None:
    parts = real_prompts.tested(data)
    assert len(parts["copyright"]) == 10
    assert ("harmbench contextual", "words\n\n---\n\ntest 1") in parts["contextual"]
    assert not set(parts["copyright"] + parts["contextual"]) & set(parts["harmful"])
    assert set(parts["attacked"]) < set(parts["harmful"])


def test_a_written_set_is_read_again(data: Path, tmp_path: Path) -> None:
    texts = real_prompts.tested(data)["copyright"]
    real_prompts.write_prompts(tmp_path / "test-copyright.jsonl", "copyright", texts)
    prompts = load_prompts(tmp_path / "test-copyright.jsonl", None, None, "harmful")
    assert {(each.kind, each.text) for each in prompts} == {("harmful", t) for _, t in texts}


def test_rows_refuse_harm_and_answer_harmlessly(data: Path) -> None:
    parts = real_prompts.development(data)
    harmless = parts["harmless"] + real_parts.trained_borderline(parts)
    said = {
        "openings": {"adv 3": "To do this, first", "adv 4": "I'm sorry, but I can't help."},
        "answers": dict.fromkeys(harmless, "Here is an answer."),
    }
    anchor, expert = real_parts.rows_of(parts, said)
    for row in anchor:
        asked = any(row["input"].startswith(text) for text in harmless)
        assert real_parts.refuses(row["output"]) is not asked
    assert {row["output"] for row in expert} == {"To do this, first", "Here is an answer."}
    assert {bool(row.get("prefill")) for row in anchor} == {True, False}
