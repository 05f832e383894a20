"""Readers of the rows of a summary."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from minisafe.errors import SettingError

Row = Mapping[str, Any]
WORST, ANY, MEAN = "worst", "any", "mean"  # rows over all attacks
ALL = "all"  # the category of rows over every category
CLUSTERS = ("category", "verb")  # fields of an answer: questions of one are alike


def rows_of(holder: Row, name: str) -> list[Row]:
    """A list of objects in the summary, empty where it is missing; raises `SettingError`."""
    found = holder.get(name)
    if found is None:
        return []
    listed = isinstance(found, Sequence) and not isinstance(found, str)
    if not listed or not all(isinstance(each, Mapping) for each in found):
        raise SettingError(
            f"the summary's {name!r} is not a list of objects; run the evaluation again, or remove "
            "the field"
        )
    return list(found)


def object_of(holder: Row, name: str) -> Row:
    """An object in the summary, empty where it is missing; raises `SettingError`."""
    found = holder.get(name)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise SettingError(
            f"the summary's {name!r} is {type(found).__name__}; expected an object; run the "
            "evaluation again, or remove the field"
        )
    return found


def text_of(row: Row, name: str) -> str:
    """A field as text, empty where it is missing."""
    value = row.get(name)
    return "" if value is None else str(value)


def number(row: Row, name: str) -> float:
    """A field as a number, NaN if it is missing or not a number."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    return float(value)


def interval(row: Row, kind: str = "") -> tuple[float, float]:
    """The ends of one of a row's intervals, "" for the plain one; NaN if it has none."""
    name = f"_{kind}" if kind else ""
    return number(row, f"low{name}"), number(row, f"high{name}")


def widest(row: Row) -> tuple[float, float]:
    """The widest of a row's intervals, the plain one and those by cluster; NaN if it has none."""
    ends = [interval(row, kind) for kind in ("", *CLUSTERS)]
    known = [(low, high) for low, high in ends if math.isfinite(low) and math.isfinite(high)]
    return max(known, key=lambda each: each[1] - each[0], default=(math.nan, math.nan))


def unique(rows: Iterable[Row], name: str) -> list[str]:
    """The distinct values of a field as text, in the order of their first rows."""
    return list(dict.fromkeys(text_of(row, name) for row in rows))


def pick(rows: Iterable[Row], name: str, value: str) -> list[Row]:
    """The rows whose field equals this text."""
    return [row for row in rows if text_of(row, name) == value]


def key_of(row: Row) -> tuple[str, str, str]:
    """The key of the response that a row is about."""
    return text_of(row, "id"), text_of(row, "method"), text_of(row, "style")


def judges_of(summary: Row) -> list[str]:
    """The names of all judges in the rows."""
    return unique([*rows_of(summary, "rows"), *rows_of(summary, "over_refusal")], "judge")
