"""Safety vectors as values: where they are added, and whether they fit a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from minisafe.errors import SettingError, VectorError
from minisafe.slots import Add, Slot, Span


@dataclass(frozen=True)
class SafetyVector:
    """`layers`: 0-based layer -> (hidden,) float32, added after that layer.

    If the file states no layer (the authors' `.npy`), the key is None, and the profile or
    `--sa-layer` gives the layer. `metadata` holds scale, positions, heads, fingerprints and more.
    """

    layers: Mapping[int | None, Tensor]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def hidden(self) -> int:
        return len(next(iter(self.layers.values())))

    def at(self, layer: int | None) -> dict[int, Tensor]:
        """The vectors by layer. layer: moves a one-layer vector there. Raises `VectorError` if no
        layer is known, or if `layer` is given for a vector of several."""
        if layer is None:
            if None in self.layers:
                raise VectorError("the vector's file states no layer; give one with --sa-layer")
            return {int(key): vector for key, vector in self.layers.items() if key is not None}
        if len(self.layers) > 1:
            raise VectorError(
                f"the vector has {len(self.layers)} layers; it cannot be moved to layer {layer}"
            )
        return {layer: next(iter(self.layers.values()))}


POSITIONS = ("prompt", "last", "generated", "all")


@dataclass(frozen=True)
class Steering:
    """Add `scale * vectors[layer]` at some positions of a conversation.

        Steering({8: v}, scale=1.5, positions="prompt")  # as `Generation` takes it

    positions: "prompt", one token per turn: the last of the user's turn as the template renders it,
    which predicts the answer's first token; "last", that token and every generated one (the
    authors' choice); "generated", only the generated ones; "all", every token. streams: numbers of
    the streams that are steered, the base's is 0.
    """

    vectors: Mapping[int, Tensor]
    scale: float
    positions: str
    streams: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if self.positions not in POSITIONS:
            raise SettingError(
                f"sa_positions is {self.positions!r}; expected one of {', '.join(POSITIONS)}"
            )

    def spans(self, answers: Sequence[tuple[int, int | None]]) -> tuple[Span, ...]:
        """The steered positions of a text with answers at `[start, stop)`, stop None: no end."""
        if self.positions == "all":
            return ((0, None),)
        first = 0 if self.positions == "generated" else -1
        if self.positions == "prompt":
            return tuple((start - 1, start) for start, _ in answers)
        spans = [(start + first, stop) for start, stop in answers]
        return tuple(span for span in spans if span[1] is None or span[0] < span[1])

    def slots(self, row: int, spans: tuple[Span, ...]) -> list[Slot]:
        """The slots that steer batch row `row` of a forward at `spans`."""
        return [
            Add(layer=layer, spans=spans, rows=(row,), vector=vector, scale=self.scale)
            for layer, vector in self.vectors.items()
            if self.scale != 0 and spans
        ]


def moved(spans: Sequence[Span], by: int) -> tuple[Span, ...]:
    """The same spans of a text that has `by` tokens more before it; what would lie before position
    0 is left out."""
    shifted = ((max(0, a + by), None if b is None else b + by) for a, b in spans)
    return tuple(span for span in shifted if span[1] is None or span[0] < span[1])


def values_hash(layers: Mapping[int | None, Tensor]) -> str:
    """A hash of a vector's values, which `minisafe amplify` writes into its metadata."""
    found = hashlib.sha256()
    for _, values in sorted(layers.items(), key=lambda each: -1 if each[0] is None else each[0]):
        found.update(values.float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def check_vector(
    vector: SafetyVector, path: str, hidden: int, n_layers: int, tokenizer_fingerprint: str
) -> None:
    """Raise `VectorError` if the vector was made for another shape or tokenizer."""
    if vector.hidden != hidden:
        raise VectorError(
            f"{path}: the vector has {vector.hidden} values; the model's residual stream "
            f"has {hidden}"
        )
    made_for = vector.metadata.get("n_layers")
    if made_for is not None and made_for != n_layers:
        raise VectorError(f"{path}: made for a model of {made_for} layers; this one has {n_layers}")
    tokenizer = vector.metadata.get("tokenizer")
    if tokenizer is not None and tokenizer != tokenizer_fingerprint:
        raise VectorError(f"{path}: made with another tokenizer; make one for this model")
