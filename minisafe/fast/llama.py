"""A model with fast paths in it."""

from __future__ import annotations

from torch import Tensor, nn

from minisafe.cache import KVCache, Placement
from minisafe.errors import SettingError
from minisafe.fast.left import linear
from minisafe.fast.packing import Unpadded
from minisafe.layout import Layout
from minisafe.model import Llama
from minisafe.step import Step


class FastLlama(Llama):
    """A model for decoding; `prepare` turns a plain one into it, in place."""

    def head(self, x: Tensor, step: Step) -> Tensor:
        if self.lm_head is None:
            return linear(x, self.embed_tokens.weight, None)
        return super().head(x, step)

    def layout(self, place: Placement, cache: KVCache | None) -> Layout:
        if cache is None or place.uniform or place.width == 1 or not any(place.counts):
            return super().layout(place, cache)
        return Unpadded.of(place, self.device)

    def tensors(self) -> dict[str, nn.Parameter]:
        """Raises `SettingError` where the weights are stored in another way than plain."""
        if self.weights != "plain":
            raise SettingError(
                f"the model's weights are {self.weights}, for decoding only; training, "
                "amplifying, editing and saving need it loaded with weights plain"
            )
        return super().tensors()
