"""A model with fast paths in it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from minisafe.cache import KVCache
from minisafe.errors import SettingError
from minisafe.fast.cache import FastCache
from minisafe.fast.left import linear
from minisafe.fast.packing import PackedStep
from minisafe.lora import AdaptedRows
from minisafe.model import Llama
from minisafe.slots import Slot
from minisafe.step import Step


class FastLlama(Llama):
    """A model for decoding; `prepare` turns a plain one into it, in place."""

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
        """Padding costs nothing: the step of a padded block is packed."""
        step = super().make_step(counts, width, cache, rows, slots, adapters)
        if cache is None or width == 1 or step.place.uniform or not any(counts):
            return step
        return PackedStep.of(step)

    def run(self, ids: Tensor, step: Step, last_only: bool, no_logits: bool) -> Tensor:
        if not isinstance(step, PackedStep):
            return super().run(ids, step, last_only, no_logits)
        logits = super().run(step.pack(ids), step, last_only, no_logits)
        return logits if last_only or no_logits else step.spread(logits)

    def tensors(self) -> dict[str, nn.Parameter]:
        """Raises `SettingError` where the weights are stored in another way than plain."""
        if self.weights != "plain":
            raise SettingError(
                f"the model's weights are {self.weights}, for decoding only; training, "
                "amplifying, editing and saving need it loaded with weights plain"
            )
        return super().tensors()
