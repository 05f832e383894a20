"""The steps of a traced answer as a table for people: one row a token, and the other tokens below
it that some stream likes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from minisafe.cli.chat.wrap import columns
from minisafe.errors import SettingError
from minisafe.files.display import harmless, one_line, visible
from minisafe.session.answer import Result
from minisafe.session.settings import Settings
from minisafe.trace.pieces import in_short
from minisafe.trace.step import Residuals, Step

WIDE = 14  # columns of a token
LEAST = 0.01  # a token that no stream gives so much is not shown
MEASURES = {"penalty": 9, "KL": 8, "moved": 7, "entropy": 9}  # behind the probabilities: widths


class Table:
    """The lines of a trace. names: of the streams. show: how many other tokens a step shows.
    layers: whether it shows its layers. only: the columns to show, without the lines about
    weights and settings; None: all. Colours say nothing that words do not.

    Raises `SettingError` if there is no such column."""

    def __init__(
        self, names: Sequence[str], show: int, layers: bool, only: Sequence[str] | None = None
    ):
        every = ("base", "steered", *names[1:], "safe")
        if unknown := [each for each in only or () if each not in (*every, *MEASURES)]:
            known = ", ".join((*every, *MEASURES))
            raise SettingError(f"--columns has {unknown[0]!r}; here there are {known}")
        self.names = tuple(each for each in every if only is None or each in only)
        self.measures = tuple(each for each in MEASURES if only is None or each in only)
        self.whole = only is None
        self.show, self.layers = show, layers
        # click leaves colours out unless standard output is a terminal
        self.color = False if os.environ.get("NO_COLOR") else None

    # ---- before the steps ------------------------------------------------------------------

    def head(self, header: Mapping[str, Any], acts: str) -> Iterator[str]:
        """What is traced, and the names of the columns. acts: the safety stages, in words."""
        usual = vars(Settings()) | {"stop": []}
        own = {n: v for n, v in header["settings"].items() if v != usual.get(n)}
        yield f"read      {in_short(header['pieces'])}"
        if header["alone"] is not None:
            left = "nothing in it is" if header["left"] else "this part is"
            yield f"alone     {left} harmful by itself (worst {header['alone']:.3f})"
        elif header["reads_alone"] is not None:
            yield "alone     nothing was taken out to be answered alone"
        yield f"acts      {one_line(acts)}"
        if self.whole:
            yield f"weights   {listed(header['fingerprints'])}"
            yield f"settings  {listed(own)}"
        yield ""
        yield bold(
            f"{'n':>3} {'token':{WIDE}}" + "".join(f"{name[:9]:>10}" for name in self.names)
            + "".join(f"{each:>{MEASURES[each]}}" for each in self.measures)
        )  # fmt: skip

    # ---- a step ----------------------------------------------------------------------------

    def rows(self, step: Step) -> Iterator[str]:
        """A step's token, other tokens, and layers."""
        place = step.candidates.ids.index(step.id)
        moves = step.moves
        found = {"KL": moves.kl, "moved": moves.moved, "entropy": moves.entropy_safe}
        numbers = "".join(
            f"{found[each]:{MEASURES[each]}.3f}" for each in self.measures if each in found
        )
        yield self.row(step, place, f"{step.n:>3}", chosen=True) + numbers + self.note(step)
        others = self.others(step)
        for other in others[: self.show]:
            yield self.row(step, other, "   ", chosen=False)
        if self.show and len(others) > self.show:
            yield f"    \u2026 {len(others) - self.show} more"
        if self.layers:
            yield from self.layer_rows(step)

    def row(self, step: Step, place: int, number: str, chosen: bool) -> str:
        """A token with its probability in every stream, and its penalty."""
        found, id_ = step.candidates, step.candidates.ids[place]
        token = padded(visible(step.texts[id_]))
        cells = "".join(
            f"{chance(found.log_probs[name][place]) if name in found.log_probs else '-':>10}"
            for name in self.names
        )
        penalty = 0.0 if found.penalty is None else found.penalty[place]
        lost = click.style(f"{penalty:9.2f}", fg="red") if penalty >= 0.005 else " " * 9 * chosen
        lost = lost if "penalty" in self.measures else ""
        return f"{number} {bold(token) if chosen else token}{cells}{lost}"

    def others(self, step: Step) -> list[int]:
        """The places of the other tokens that some stream likes, the likeliest in any first."""
        found = step.candidates
        best = {
            place: max(values[place] for values in found.log_probs.values())
            for place, id_ in enumerate(found.ids)
            if id_ != step.id
        }
        liked = [place for place, value in best.items() if math.exp(value) >= LEAST]
        return sorted(liked, key=lambda place: -best[place])

    def note(self, step: Step) -> str:
        """What changed the likeliest token, if anything did."""
        if step.changed_by_rule:
            return click.style("  guidance changed the likeliest", fg="yellow")
        if step.changed:
            return click.style("  the vector changed the likeliest", fg="yellow")
        return ""

    def layer_rows(self, step: Step) -> Iterator[str]:
        """Each layer's norm, cosine and logit lens, without the vector and with it."""
        layers = step.layers
        where = f"{layers.stream}, position {layers.position}"
        added = ", the vector is added here" if layers.added else ""
        yield f"      {where}{added}"
        names = f"      {'layer':>5}  {heads('')}" + (f"  {heads('+v')}" if layers.steered else "")
        yield names.rstrip()
        for layer in range(len(layers.unsteered.norm)):
            row = f"      {layer:>5}  {cells(layers.unsteered, layer, step)}"
            if layers.steered is not None:
                row += f"  {cells(layers.steered, layer, step)}"
            yield row.rstrip()

    # ---- after the steps -------------------------------------------------------------------

    def foot(self, result: Result) -> Iterator[str]:
        """The answer and why it ended."""
        yield ""
        yield f"answer    {harmless(result.text)}"
        count = len(result.tokens)
        yield f"ended     {result.finish_reason}, after {count} token{'s' * (count != 1)}"
        if result.applied.gate is not None and result.applied.gate.variation is not None:
            gate = result.applied.gate
            left = "guided" if gate.open else "left to the base"
            yield f"gate      {gate.variation:.3f}, threshold {gate.threshold:.3f}: {left}"


def padded(text: str, wide: int = WIDE) -> str:
    """A text in so many columns of a terminal, cut if it has more."""
    kept, used = "", 0
    whole = sum(map(columns, text)) <= wide
    for character in text:
        used += columns(character)
        if used > (wide if whole else wide - 1):
            break
        kept += character
    kept = kept if whole else kept + "\u2026"
    return kept + " " * (wide - sum(map(columns, kept)))


def chance(log_prob: float) -> str:
    """A probability in few letters."""
    p = math.exp(log_prob)
    return f"{p:.4f}" if p >= 0.00005 else (f"{p:.0e}" if p > 0 else "0")


def heads(mark: str) -> str:
    """The columns of `cells`."""
    return f"{'norm' + mark:>9}{'cosine' + mark:>9}  {'lens' + mark:{WIDE}}{'':7}"


def cells(found: Residuals, layer: int, step: Step) -> str:
    """A layer's numbers."""
    cosine = "" if found.cosine is None else f"{found.cosine[layer]:.3f}"
    token = padded(visible(step.texts[found.lens[layer]]))
    return f"{found.norm[layer]:9.2f}{cosine:>9}  {token}{found.lens_p[layer]:7.3f}"


def listed(values: Mapping[str, Any]) -> str:
    """Names and values in one line."""
    return ", ".join(f"{name} {one_line(str(value), 80)}" for name, value in values.items())


def bold(text: str) -> str:
    """A text that stands out at a terminal."""
    return click.style(text, bold=True)
