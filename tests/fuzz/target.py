"""A fuzzing target: one reader of untrusted files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Target:
    """One reader.

    seeds: good and bad files to start from. suffix: the ending of the file that `read` gets, such
    as ".json", from which the mutations are chosen too. read: takes the path of a file that holds
    the mutated bytes, and returns or raises a `MinisafeError`; all else is a defect.
    """

    name: str
    seeds: tuple[bytes, ...]
    suffix: str
    read: Callable[[Path], object]
