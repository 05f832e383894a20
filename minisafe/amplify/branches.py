"""One token after a prompt, many times, each time with another head patched.

The slow way reads the whole prompt again for every head. A patch at the last token changes nothing
before it, so this code reads the prompt once; each patched run is a *branch* of its last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from minisafe.cache import KVCache, Placement
from minisafe.model import Layer, Llama
from minisafe.slots import BoundSlots, Slot
from minisafe.step import Step, Window, additive

Head = tuple[int, int]  # (layer, head), both from 0


@dataclass(frozen=True)
class PatchEach(Slot):
    """At "heads": for the n-th touched token, replace the output of head `heads[n]` by `values[n]`.
    One row only. values: (n, head_dim)"""

    heads: tuple[int, ...] = ()
    values: Tensor = field(default_factory=lambda: torch.empty(0))
    site: str = field(default="heads", kw_only=True)

    def apply(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        heads = torch.tensor(self.heads, device=x.device)
        return x.index_put((rows, columns, heads), self.values.to(x))


def read_prefix(model: Llama, ids: Sequence[int], branches: int) -> KVCache:
    """A cache that has read `ids`, which may be empty, with room for this many branches."""
    # branches share one position but need one column each, so columns may outnumber positions
    cache = model.new_cache(1, 0)
    cache.limit = len(ids) + branches
    cache.reserve(cache.limit)
    if ids:
        model(torch.tensor([list(ids)], device=model.device), cache, no_logits=True)
    return cache


def patched_logits(
    model: Llama, prefix: KVCache, id_: int, means: Tensor, heads: Sequence[Head]
) -> Tensor:
    """Logits after one more token, unpatched and with each head patched, (1 + heads, vocab).

    The branches are tokens of one row at the same position; each sees the prefix and itself. So
    they share the prefix's keys and values, and each weight is read once for all. Up to the layer
    of its patch, a branch equals the clean run; from there on it differs.

    Args:
        prefix: from `read_prefix`. The branches do not change it, so it can be used again.
        means: (n_layers, n_heads, head_dim), the values to patch in.
        heads: in ascending order of layers.
    """
    x = model.embed_tokens(torch.tensor([[id_]], device=model.device))  # (1, branches, hidden)
    whole = branch_step(model, prefix, 1 + len(heads))
    for layer in model.layers:
        assert isinstance(layer, Layer)
        mine = tuple(head for number, head in heads if number == layer.layer)
        n = x.shape[1]
        x = torch.cat((x, x[:, :1].expand(-1, len(mine), -1)), dim=1)
        start = prefix.lengths[0] + n
        patches = [
            PatchEach(
                layer=layer.layer, spans=((start, start + len(mine)),), heads=mine,
                values=means[layer.layer, list(mine)],
            )
        ] if mine else []  # fmt: skip
        x = layer(x, narrowed(whole, x.shape[1], patches, model))
    return model.head(model.norm(x), whole)[0]


def branch_step(model: Llama, prefix: KVCache, branches: int) -> Step:
    """The step of this many branches, without slots."""
    n = prefix.lengths[0]
    device = model.device
    columns = torch.arange(n, device=device)
    itself = torch.eye(branches, dtype=torch.bool, device=device)
    masks: dict[Window, Tensor] = {}
    for window in set(model.config.windows):
        first = 0 if window is None else n + 1 - window  # a window counts the token itself
        seen = (columns >= first).expand(branches, -1)
        masks[window] = additive(torch.cat((seen, itself), dim=1)[None, None], model.dtype)
    tables = model.rotary.tables(n + 1, model.dtype, device)
    cos, sin = (table[n].view(1, 1, 1, -1) for table in tables)
    place = Placement(slice(0, 1), (n,), (branches,), branches, device)
    slots = BoundSlots((), model.config.n_layers, place, device)
    return Step(place, cos, sin, masks, slots=slots, cache=prefix)


def narrowed(whole: Step, branches: int, slots: Sequence[Slot], model: Llama) -> Step:
    """The step of the first `branches` branches, with these slots."""
    columns = whole.place.starts[0] + branches
    masks = {window: mask[:, :, :branches, :columns] for window, mask in whole.masks.items()}
    place = replace(whole.place, counts=(branches,), width=branches)
    bound = BoundSlots(slots, model.config.n_layers, place, model.device)
    return replace(whole, place=place, masks=masks, slots=bound)
