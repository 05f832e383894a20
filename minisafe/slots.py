"""Slots: what to add, record or patch inside a forward, as values that are passed to it.

    model(ids, slots=[Add(layer=8, spans=((9, None),), vector=v, scale=1.5)])

adds `1.5 * v` to the residual stream after layer 8, at every position from 9 on. Four fields say
where a slot acts:

- site: "residual", the residual stream after a layer, `(B, T, hidden)`; "heads", every head's
  output, which is the input of the output projection, `(B, T, n_heads, head_dim)`; "mlp", the
  input of the MLP's down projection, `(B, T, intermediate)`.
- layer: counted from 0.
- rows: rows of the forward's batch.
- spans: *absolute* token positions `[start, stop)`, `stop` None for no end. Because they are
  absolute, chunked, cached and rebuilt runs touch the same tokens.

A forward resolves its slots once (`BoundSlots`); each site then applies those that act there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from minisafe.cache import Placement
from minisafe.errors import SlotError

Span = tuple[int, int | None]
SITES = ("residual", "heads", "mlp")


@dataclass(frozen=True)
class Slot:
    """Where to act; see above. A subclass defines what to do there (`apply`)."""

    layer: int
    spans: tuple[Span, ...] = ((0, None),)
    rows: tuple[int, ...] = (0,)
    site: str = field(default="residual", kw_only=True)

    def apply(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """The site's value `x` with the slot applied to `x[rows, columns]`, (n, ...). `x` itself is
        never changed."""
        raise NotImplementedError

    def shifted(self, rows: int) -> Slot:
        """The same slot with `rows` added to each of its row numbers."""
        return replace(self, rows=tuple(row + rows for row in self.rows))


@dataclass(frozen=True)
class Add(Slot):
    """Add `scale * vector` (hidden,) to the residual stream after `layer`, to steer a model."""

    vector: Tensor = field(default_factory=lambda: torch.empty(0))
    scale: float = 1.0

    def apply(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        if self.vector.shape != x.shape[-1:]:
            raise SlotError(
                f"a vector of shape {tuple(self.vector.shape)} cannot be added to a residual "
                f"stream of width {x.shape[-1]}"
            )
        delta = (self.scale * self.vector.float()).to(x)
        return x.index_put((rows, columns), delta.expand(len(rows), -1), accumulate=True)


@dataclass(frozen=True)
class Patch(Slot):
    """Replace the site's value with `value`: (hidden,) at "residual", (intermediate,) at "mlp"; at
    "heads", (head_dim,) for `head`, or (n_heads, head_dim) for all heads if `head` is None."""

    value: Tensor = field(default_factory=lambda: torch.empty(0))
    head: int | None = None

    def apply(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        where: tuple[Tensor, ...] = (rows, columns)
        if self.head is not None:
            if self.site != "heads" or not 0 <= self.head < x.shape[2]:
                raise SlotError(f"no head {self.head} at site {self.site!r} of layer {self.layer}")
            where = (rows, columns, torch.full_like(rows, self.head))
        if self.value.shape != x[where].shape[1:]:
            raise SlotError(
                f"a patch of shape {tuple(self.value.shape)} does not fit site {self.site!r} of "
                f"layer {self.layer}; expected {tuple(x[where].shape[1:])}"
            )
        return x.index_put(where, self.value.to(x).expand_as(x[where]))


@dataclass(frozen=True)
class Record(Slot):
    """Append a copy of the site's values to `into`: (n, ...), ordered by row, then position."""

    into: list[Tensor] = field(default_factory=list, compare=False)

    def apply(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        self.into.append(x[rows, columns].detach().clone())
        return x

    def values(self) -> Tensor:
        """All recorded values, joined over forwards: (n, ...)."""
        if not self.into:
            raise SlotError(f"nothing was recorded at site {self.site!r} of layer {self.layer}")
        return torch.cat(self.into)


class BoundSlots:
    """Slots resolved for one forward: which elements of its (B, T) block each slot touches."""

    def __init__(
        self,
        slots: Iterable[Slot],
        n_layers: int,
        place: Placement,
        device: torch.device,
    ):
        self.waiting: dict[tuple[str, int], list[tuple[Slot, Tensor, Tensor]]] = {}
        for slot in slots:
            check_slot(slot, n_layers, len(place.starts))
            cells = [
                (row, position - place.starts[row])
                for row in dict.fromkeys(slot.rows)
                for position in covered(
                    slot.spans, place.starts[row], place.starts[row] + place.counts[row]
                )
            ]
            if cells:
                rows, columns = torch.tensor(cells, device=device).unbind(1)
                self.waiting.setdefault((slot.site, slot.layer), []).append((slot, rows, columns))

    def at(self, site: str, layer: int, x: Tensor) -> Tensor:
        """`x` with this forward's slots at `site` of `layer` applied; `x` itself if none act."""
        if not self.waiting:
            return x
        for slot, rows, columns in self.waiting.pop((site, layer), ()):
            x = slot.apply(x, rows, columns)
        return x

    def finish(self) -> None:
        """Raise `SlotError` if a slot whose position was fed has not been applied."""
        if self.waiting:
            (site, layer), _ = next(iter(self.waiting.items()))
            raise SlotError(f"the slot at site {site!r} of layer {layer} was fed but never applied")


def check_slot(slot: Slot, n_layers: int, n_rows: int) -> None:
    """Raise `SlotError` if a slot names a missing site, layer or row, or an empty span."""
    if slot.site not in SITES:
        raise SlotError(f"no site {slot.site!r}; expected one of {', '.join(SITES)}")
    if not 0 <= slot.layer < n_layers:
        raise SlotError(f"no layer {slot.layer}; the model has layers 0 to {n_layers - 1}")
    if not slot.rows or not slot.spans:
        raise SlotError(f"a slot with rows {slot.rows} and spans {slot.spans} acts nowhere")
    for row in slot.rows:
        if not 0 <= row < n_rows:
            raise SlotError(f"no row {row}; the batch has rows 0 to {n_rows - 1}")
    for start, stop in slot.spans:
        if start < 0 or (stop is not None and stop <= start):
            raise SlotError(f"span {(start, stop)} is empty; expected 0 <= start < stop")


def covered(spans: Iterable[Span], start: int, stop: int) -> list[int]:
    """Positions in `[start, stop)` that any span covers, ascending and without repeats."""
    found: set[int] = set()
    for first, last in spans:
        found.update(range(max(first, start), stop if last is None else min(last, stop)))
    return sorted(found)
