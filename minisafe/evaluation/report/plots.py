"""Pictures of a report: their values, and how matplotlib draws them.

matplotlib (extra `report`) is imported only to draw.
"""

from __future__ import annotations

import importlib.util
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minisafe.errors import SettingError
from minisafe.files.display import harmless

INSTALL = "pip install 'minisafe[report]'"
MARKERS = "osD^vPX<>*"
LABEL_LENGTH = 40  # most characters of a name in a picture


@dataclass(frozen=True)
class Point:
    """A named point and the ends of its intervals, in per cent."""

    name: str
    x: float
    x_low: float
    x_high: float
    y: float
    y_low: float
    y_high: float


@dataclass(frozen=True)
class Scatter:
    """Points with intervals both ways, in per cent."""

    title: str
    x_label: str
    y_label: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Heat:
    """A grid in per cent: `values[row][column]`, NaN for a missing one. good: high is good."""

    title: str
    x_label: str
    y_label: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    good: bool = False


@dataclass(frozen=True)
class Curves:
    """Lines in per cent over the same x; NaN for a missing value."""

    title: str
    x_label: str
    x: tuple[float, ...]
    lines: tuple[tuple[str, tuple[float, ...]], ...]


Plot = Scatter | Heat | Curves


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def svg(plot: Plot) -> bytes:
    """The picture as an SVG file, the same bytes for the same plot.

    Raises `SettingError` without matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise SettingError(f"pictures need matplotlib: {INSTALL}") from None
    # "$" in a name does not begin a formula. Without a fixed salt and with a date, the file would
    # differ at every run.
    style: Any = {"text.parse_math": False, "svg.hashsalt": "minisafe", "font.size": 9.0}
    buffer = io.BytesIO()
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about letters that the font lacks, drawn as boxes
        figure = Figure(figsize=_size(plot), layout="constrained")
        _draw(plot, figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _size(plot: Plot) -> tuple[float, float]:
    """Inches, width and height."""
    if isinstance(plot, Heat):
        width = 2.6 + 0.55 * len(plot.columns)
        return min(max(width, 4.0), 16.0), min(1.6 + 0.32 * len(plot.rows), 16.0)
    entries = len(plot.points if isinstance(plot, Scatter) else plot.lines)
    return 7.0, max(4.2, 0.6 + 0.19 * entries)  # one line of the legend per entry


def _draw(plot: Plot, figure: Any) -> None:
    axes = figure.add_subplot()
    axes.set_title(_label(plot.title, 90))
    if isinstance(plot, Scatter):
        _scatter(plot, axes)
    elif isinstance(plot, Heat):
        _heat(plot, axes, figure)
    else:
        _curves(plot, axes)


def _scatter(plot: Scatter, axes: Any) -> None:
    for number, point in enumerate(plot.points):
        axes.errorbar(
            point.x, point.y, capsize=3, marker=_marker(number),
            xerr=_ends(point.x, point.x_low, point.x_high),
            yerr=_ends(point.y, point.y_low, point.y_high),
            linestyle="none", label=_label(point.name), color=f"C{number % 10}",
        )  # fmt: skip
    axes.set(xlabel=_label(plot.x_label, 90), ylabel=_label(plot.y_label, 60), ylim=(-3, 103))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)


def _marker(number: int) -> str:
    """The marker: another one from the eleventh line on, when the ten colours repeat."""
    return MARKERS[(number + number // 10) % len(MARKERS)]


def _ends(value: float, low: float, high: float) -> list[list[float]]:
    """The distances to the interval's ends for errorbar; 0 if unknown."""
    reach = (value - low, high - value)
    return [[max(0.0, each) if math.isfinite(each) else 0.0] for each in reach]


def _heat(plot: Heat, axes: Any, figure: Any) -> None:
    colours = "Blues" if plot.good else "OrRd"
    image = axes.imshow(plot.values, cmap=colours, vmin=0, vmax=100, aspect="auto")
    rows = [_label(name) for name in plot.rows]
    axes.set_yticks(range(len(rows)), rows)
    columns = [_label(name) for name in plot.columns]
    tilted = max(map(len, columns), default=0) > 6
    turn = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if tilted else {}
    axes.set_xticks(range(len(columns)), columns, **turn)
    axes.set(xlabel=_label(plot.x_label, 60), ylabel=_label(plot.y_label, 60))
    figure.colorbar(image, label="per cent")
    _write_values(plot.values, axes)


def _write_values(values: Sequence[Sequence[float]], axes: Any) -> None:
    """Write each cell's number on it, dark on light or light on dark."""
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            if math.isfinite(value):
                ink = "white" if value > 65 else "black"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=ink, size=8)


def _curves(plot: Curves, axes: Any) -> None:
    for number, (name, values) in enumerate(plot.lines):
        axes.plot(
            plot.x, values, marker=_marker(number), label=_label(name), color=f"C{number % 10}"
        )
    axes.set(xlabel=_label(plot.x_label, 60), ylabel="per cent", ylim=(-3, 103))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)


def _label(text: str, length: int = LABEL_LENGTH) -> str:
    """Text as one short line."""
    line = " ".join(harmless(text).split())
    return line if len(line) <= length else line[: length - 1] + "…"
