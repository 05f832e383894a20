"""A picture of the time per token by system, from the JSON files that the benches write.

    python bench/plot.py bench/results/*-tinyllama.json --out today.svg

One panel per shape, one bar per system. Each bar has a label with its time over that of minisafe's
plain decoding with packed weights, or with plain weights if packed ones were not measured.
matplotlib comes with the extra `report`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisafe.errors import BadInput, SettingError

INSTALL = "pip install 'minisafe[report]'"
GROUPS = (  # the beginning of a system's name, its group, the colour of its bars
    ("plain", "minisafe, plain", "#4477aa"),
    ("safe", "minisafe, safe", "#228833"),
    ("transformers", "transformers", "#ccbb44"),
    ("llama.cpp", "llama.cpp", "#aa3377"),
)
UNITS = ("plain, packed", "plain")  # a panel's 1.0: the first of these in it
BAR = 0.26  # inches


@dataclass(frozen=True)
class Bar:
    """One system: milliseconds per token, its time over the panel's unit, its index in `GROUPS`."""

    name: str
    ms: float
    over: float
    group: int


@dataclass(frozen=True)
class Panel:
    """One shape's bars, group by group; `unit` is the system whose time is 1."""

    label: str
    unit: str
    bars: tuple[Bar, ...]


def read_rows(path: Path) -> list[Mapping[str, Any]]:
    """The rows of a bench's JSON file; raises `SettingError` for anything else."""
    wanted = "expected a file that bench/speed.py wrote with --json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"{path}: cannot be read ({error.strerror}); {wanted}") from None
    except (ValueError, RecursionError):
        raise SettingError(f"{path}: not JSON; {wanted}") from None
    rows = data.get("rows") if isinstance(data, dict) else None
    if not isinstance(rows, list) or not all(map(is_row, rows)):
        raise SettingError(f"{path}: no rows of name, value and unit; {wanted}")
    return rows


def is_row(row: object) -> bool:
    if not isinstance(row, dict) or not {"name", "value", "unit"} <= set(row):
        return False
    return isinstance(row["name"], str) and isinstance(row["value"], (int, float))


def panels_of(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """One panel per shape with a plain system. Rows in tokens/s are the systems; of a repeated
    name, as in joined files, the last row counts."""
    speeds: dict[str, dict[str, float]] = {}
    for row in rows:
        label, _, name = row["name"].partition(": ")
        if row["unit"] == "tokens/s" and row["value"] > 0 and group_of(name) is not None:
            speeds.setdefault(label, {})[name] = float(row["value"])
    return [panel(label, found) for label, found in speeds.items() if set(UNITS) & set(found)]


def panel(label: str, speeds: Mapping[str, float]) -> Panel:
    unit = next(name for name in UNITS if name in speeds)
    bars = [
        Bar(name, 1e3 / speed, speeds[unit] / speed, group)
        for name, speed in speeds.items()
        if (group := group_of(name)) is not None
    ]
    return Panel(label, unit, tuple(sorted(bars, key=lambda bar: bar.group)))


def group_of(name: str) -> int | None:
    """A system's index in `GROUPS`; None for other rows."""
    return next((n for n, group in enumerate(GROUPS) if name.startswith(group[0])), None)


def draw(panels: Sequence[Panel], out: Path) -> None:
    """Write the picture, SVG or PNG by the suffix of `out`; an SVG has the same bytes each time.

    Raises `SettingError` without matplotlib, or for another suffix.
    """
    if out.suffix not in (".svg", ".png"):
        raise SettingError(f"{out}: expected a name that ends in .svg or .png")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise SettingError(f"the plot needs matplotlib: {INSTALL}") from None
    style: Any = {"svg.hashsalt": "minisafe", "svg.fonttype": "none", "font.size": 8}
    heights = [len(each.bars) * BAR + 0.6 for each in panels]
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(7.5, sum(heights) + 0.3), layout="constrained")
        axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)
        for each, axis in zip(panels, axes[:, 0], strict=True):
            draw_panel(each, axis)
        save(figure, out)


def draw_panel(panel: Panel, axis: Any) -> None:
    names = [bar.name for bar in panel.bars]
    colours = [GROUPS[bar.group][2] for bar in panel.bars]
    drawn = axis.barh(range(len(names)), [bar.ms for bar in panel.bars], color=colours, height=0.75)
    labels = [f"{bar.ms:.3g} ms, {bar.over:.2f} x" for bar in panel.bars]
    paper = {
        "facecolor": "white",
        "edgecolor": "none",
        "pad": 0.5,
    }  # hides the line behind the text
    axis.bar_label(drawn, labels=labels, padding=3, bbox=paper)
    axis.axvline(next(bar.ms for bar in panel.bars if bar.name == panel.unit), color="0.4", lw=0.7)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.margins(x=0.22, y=0.02)
    axis.set_title(f"{panel.label}: milliseconds per token, and over “{panel.unit}”", loc="left")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def save(figure: Any, out: Path) -> None:
    """Write whole or not at all, without a date."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    metadata = {"Date": None} if out.suffix == ".svg" else {}
    figure.savefig(temporary, format=out.suffix[1:], dpi=150, metadata=metadata)
    temporary.replace(out)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="JSON files of one machine and day")
    parser.add_argument("--out", type=Path, default=Path("speed.svg"), help=".svg or .png")
    parser.add_argument("--quick", action="store_true", help="read the files and draw nothing")
    args = parser.parse_args(argv)
    try:
        panels = panels_of([row for file in args.files for row in read_rows(file)])
        if not panels:
            names = ", ".join(map(str, args.files))
            raise SettingError(f"{names}: no tokens/s of any system; give what speed.py wrote")
        if not args.quick:
            draw(panels, args.out)
    except (BadInput, OSError) as error:
        print(f"plot.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
