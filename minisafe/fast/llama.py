"""A model with fast paths in it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from minisafe.cache import KVCache, Placement
from minisafe.errors import SettingError
from minisafe.fast.attention import needed_windows
from minisafe.fast.cache import FastCache
from minisafe.fast.left import linear
from minisafe.fast.packing import PackedStep
from minisafe.lora import AdaptedRows
from minisafe.model import Llama
from minisafe.slots import Slot
from minisafe.step import Step, Window, make_masks


class FastLlama(Llama):
    """A model for decoding; `prepare` turns a `Llama` into one, in place."""

    def head(self, x: Tensor, step: Step) -> Tensor:
        if self.lm_head is None:
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
        """As `Llama.make_step`, but the step of a padded block is packed, so padding costs
        nothing."""
        step = super().make_step(counts, width, cache, rows, slots, adapters)
        if cache is None or width == 1 or step.place.uniform or not any(counts):
            return step
        return PackedStep.of(step)

    def masks(self, positions: Tensor, n: int, place: Placement) -> dict[Window, Tensor]:
        """Only the masks that are needed; see `needed_windows`."""
        windows = needed_windows(set(self.config.windows), n, place)
        return make_masks(windows, positions, n, self.dtype) if windows else {}

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
