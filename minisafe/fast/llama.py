"""A model with fast paths in it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from minisafe.cache import KVCache, Placement
from minisafe.errors import SettingError
from minisafe.fast.attention import needed_windows
from minisafe.fast.cache import FastCache
from minisafe.fast.left import linear
from minisafe.fast.norm import scaled
from minisafe.fast.packing import PackedStep
from minisafe.lora import AdaptedRows
from minisafe.model import Llama
from minisafe.slots import BoundSlots, Slot
from minisafe.step import Step, Window, make_masks, positions_of


class FastLlama(Llama):
    """A model for decoding; `prepare` turns a `Llama` into one, in place."""

    def head(self, x: Tensor, step: Step) -> Tensor:
        if self.lm_head is None:
            x = scaled(x, 1 / self.config.logits_scaling)
            return linear(x, self.embed_tokens.weight, None)
        return super().head(x, step)

    def new_cache(self, rows: int, capacity: int, cache_dtype: str = "auto") -> KVCache:
        return FastCache(self.config, rows, capacity, self.dtype, self.device, cache_dtype)

    def make_step(
        self,
        counts: tuple[int, ...],
        width: int,
        cache: KVCache | None = None,
        rows: slice | None = None,
        slots: Iterable[Slot] = (),
        adapters: tuple[AdaptedRows, ...] = (),
    ) -> Step:
        """As `Llama.make_step`, in less time: slices where all rows have the same positions, only
        the masks that say something, and a packed step for a padded block."""
        if cache is None:
            place = Placement(slice(0, len(counts)), (0,) * len(counts), counts, width)
        else:
            place = cache.place(counts, width, rows)
        n = width if cache is None else place.stop
        weight = self.norm.weight
        windows = needed_windows(self.config.windows, n, place)
        cos, sin = self.rotary.tables(n, weight.dtype, weight.device)
        masks: dict[Window, Tensor] = {}
        if place.uniform and not windows:
            same = (None, slice(place.starts[0], n), None)
            cos, sin = cos[same], sin[same]
        else:
            positions = positions_of(place, n, weight.device)
            masks = make_masks(windows, positions, n, weight.dtype) if windows else {}
            cos, sin = cos[positions].unsqueeze(2), sin[positions].unsqueeze(2)
        bound = BoundSlots(slots, self.config.n_layers, place, weight.device)
        step = Step(place, cos, sin, masks, bound, adapters, cache)
        if cache is None or width == 1 or place.uniform or not any(counts):
            return step
        return PackedStep.of(step)

    def run(self, ids: Tensor, step: Step, last_only: bool, no_logits: bool) -> Tensor:
        if not isinstance(step, PackedStep):
            return super().run(ids, step, last_only, no_logits)
        logits = super().run(step.pack(ids), step, last_only, no_logits)
        return logits if last_only or no_logits else step.spread(logits)

    def tensors(self) -> dict[str, nn.Parameter]:
        """Raises `SettingError` unless the weights are plain."""
        if self.weights != "plain":
            raise SettingError(
                f"the model's weights are {self.weights}, for decoding only; for training, "
                "amplifying, editing and saving, load the model with weights plain"
            )
        return super().tensors()
