"""The tables of `real_edits.py`, from the numbers of its stages."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from minisafe.evaluation.statistics import wilson

HEADS = {
    "took": "edits that took",
    "paraphrase": "in other words",
    "others": "other countries right",
}


def refused(summary: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """By method and kind (`harmful, STYLE`; `benign`; `borderline`): per cent refused, and n."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in summary["rows"]:
        if row["category"] == "all":
            by_kind = found.setdefault(row["method"], {})
            by_kind[f"harmful, {row['style']}"] = [row["refused"], row["n"]]
    for row in summary["over_refusal"]:
        found.setdefault(row["method"], {})[row["kind"]] = [row["refused"], row["n"]]
    return found


def markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Two tables: what the edits did to facts, and to refusals."""
    return f"{facts_table(results)}\n{safety_table(results)}"


def facts_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Per cent with Wilson 95 % intervals, nats per token, and the cost of an edit."""
    heads = [*HEADS.values(), "NLL of the base's own answers", "s an edit", "peak, MiB"]
    lines = [row("variant", *heads), row(*["---"] * (len(heads) + 1))]
    for name, found in results.items():
        if "facts" in found:
            facts, made = found["facts"], found.get("edit")
            cost = ("", "") if made is None else (f"{made['seconds'] / made['made']:.1f}",
                                                  f"{made['peak_mib']:.0f}")  # fmt: skip
            shares = [percent(*facts[each]) for each in HEADS]
            lines.append(row(name, *shares, f"{facts['own_nll']:.3f}", *cost))
    return "\n".join(lines) + "\n"


def percent(hits: int, n: int) -> str:
    """A share with its interval, in per cent."""
    low, high = wilson(hits, n)
    return f"{100 * hits / n:.0f} ({100 * low:.0f} to {100 * high:.0f}, n {n})"


def safety_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Per cent refused by variant and method, and what the calibration found."""
    measured = {name: found for name, found in results.items() if "safety" in found}
    columns = list(dict.fromkeys(
        kind for found in measured.values()
        for kinds in found["safety"]["refused"].values() for kind in kinds
    ))  # fmt: skip
    lines = [row("variant", "method", *columns), row(*["---"] * (len(columns) + 2))]
    for name, found in measured.items():
        for method, kinds in found["safety"]["refused"].items():
            lines.append(row(name, method, *(cell(kinds.get(kind)) for kind in columns)))
        if found.get("calibration", {}).get("threshold") is None:
            lines.append(row(name, "profile", *["not calibrated"] * len(columns)))
    return "\n".join(lines) + "\n"


def cell(found: Sequence[float] | None) -> str:
    """Per cent refused, and the number of prompts."""
    return "" if found is None else f"{found[0]:.0f} (n {found[1]:.0f})"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
