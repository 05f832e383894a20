"""The output of `minisafe inspect --plan`: what decoding will take of memory; it loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minisafe.errors import SettingError
from minisafe.files.display import one_line
from minisafe.session.asked import gather
from minisafe.session.memory import fitted, plan_of


def describe_plan(path: Path, flags: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The plan for a profile, or for a model directory alone, under flags that take precedence;
    with a memory limit, for the settings that fit it.

    Raises `SettingError` for rows below 1, and as `minisafe.load` does for what it would refuse.
    """
    if rows < 1:
        raise SettingError(f"rows is {rows}; expected 1 or more")
    is_profile = path.suffix == ".json" or (path / "profile.json").is_file()
    asked = gather(path, flags) if is_profile else gather(None, {"base": path, **flags})
    plan = plan_of(fitted(asked.settings), rows)
    return {
        "path": str(path), "context": plan.context, "rows": rows, "weights": plan.weights,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "cache_dtype": plan.settings.cache_dtype,
        "bytes": asdict(plan.memory) | {"total": plan.memory.total},
    }  # fmt: skip


def plan_lines(found: Mapping[str, Any]) -> list[str]:
    """Lines of text: what it is for, then bytes in MiB."""
    parts = found["bytes"]
    table = {"weights": parts["weights"]}
    table |= {f"{name} weights": size for name, size in parts["others"].items() if size}
    table |= {f"{name} cache": size for name, size in parts["caches"].items()}
    table |= {"workspace": parts["workspace"], "kept by kernels": parts["kernels"]}
    table |= {"parts read alone": parts["alone"]} if parts["alone"] else {}
    table |= {"only while loading": parts["loading"]}
    width = max(map(len, table))
    return [
        f"{one_line(found['path'], 600)}: {found['context']:,} tokens, rows {found['rows']}, "
        f"weights {found['weights']}, {found['dtype']}, cache {found['cache_dtype']}",
        *(f"  {name:{width}}  {mib(size)}" for name, size in table.items()),
        f"  {'peak':{width}}  {mib(parts['total'])}, beside the libraries and the tokenizer",
    ]


def mib(size: int) -> str:
    """A size in MiB, aligned for the table."""
    return f"{size / 2**20:9,.1f} MiB"
