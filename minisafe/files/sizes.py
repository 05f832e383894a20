"""Sizes of memory as people write them."""

from __future__ import annotations

import re

from minisafe.files.display import shown

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
SIZE = re.compile(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([kmg]i?)?b?\s*", re.ASCII | re.IGNORECASE)


def parse_size(value: int | str) -> int:
    """Bytes: a number of them, or a text such as "900MB" (10**6 each), "1.5GiB" (2**30) or "2G"; 0
    for what is no size."""
    if isinstance(value, int):
        return max(value, 0)
    found = SIZE.fullmatch(value)
    return int(float(found[1]) * UNITS[(found[2] or "").lower()]) if found is not None else 0


def size_refused(value: int | str) -> str:
    """What is wrong with a value that is no size, in words that follow its name; "" if it is."""
    if parse_size(value) > 0:
        return ""
    return f"is {shown(value)}; expected a size such as 900MB, 1.5GiB or 2G"


def size_words(size: int) -> str:
    """Bytes in the unit that people compare: 900 MB, 1,530 MB."""
    return f"{size / 10**6:,.0f} MB"
