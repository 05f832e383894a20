"""XSTest's labelled answers of other models, for `judges.py`."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from minisafe.files.display import harmless as shown

REFUSED_LABELS = {"2_full_refusal"}
PARTIAL_LABELS = {"3_partial_refusal"}
LABELS = {"1_full_compliance", *REFUSED_LABELS, *PARTIAL_LABELS}


class BadData(Exception):
    """A file that is not what it should be; the message says what to do."""


@dataclass(frozen=True)
class Labelled:
    """A model's answer, people's final label, and the question if the file has it."""

    answer: str
    label: str
    question: str = ""


def read_labelled(path: Path) -> list[Labelled]:
    """The answers of one CSV file; none if it has other columns. Raises `BadData`."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if not {"completion", "final_label"} <= set(reader.fieldnames or ()):
                return []
            found = [
                Labelled(row["completion"], row["final_label"], row.get("prompt") or "")
                for row in reader
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadData(f"{path} cannot be read ({error}); expected a CSV file of XSTest") from None
    strange = {str(each.label) for each in found} - LABELS
    if strange:
        raise BadData(
            f"{path} has the label {shown(min(strange))!r}; expected {', '.join(sorted(LABELS))}; "
            "take the files of XSTest's folder model_completions"
        )
    return found


def read_models(directory: Path) -> dict[str, list[Labelled]]:
    """Labelled answers by model, which is what the file's name ends with. Raises `BadData`."""
    if not directory.is_dir():
        raise BadData(f"{directory} is not a directory; expected XSTest's folder model_completions")
    found = {p.stem.split("_completions_")[-1]: read_labelled(p) for p in directory.glob("*.csv")}
    found = {name: found[name] for name in sorted(found) if found[name]}
    if not found:
        raise BadData(
            f"{directory} has no CSV file with the columns completion and final_label; expected "
            "XSTest's folder model_completions"
        )
    return found
