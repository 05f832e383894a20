"""Lockstep: several streams read the same answer and advance together, one step at a time.

Streams that share weights share one cache and one forward: the base's rows come first, then the
expert's, with its low-rank delta. Decoding spends its time reading weights, so such a step costs
little more than a plain one. A stream with its own weights needs its own forward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minisafe.errors import NonFiniteError
from minisafe.lora import AdaptedRows, LoraAdapter
from minisafe.model import Llama
from minisafe.slots import Slot

Tokens = Sequence[Sequence[int]]  # [row] -> ids
FEW_COLUMNS = 128  # shorter blocks of a batch are slower (docs/log.md)


@dataclass(frozen=True)
class Stream:
    """One reader of the text: a model, and optionally a low-rank change of its weights."""

    model: Llama
    adapter: LoraAdapter | None = None


class SharedWeights:
    """The streams of one model. They share a cache: one stream's rows, then the next one's."""

    def __init__(
        self, model: Llama, members: list[int], rows: int, capacity: int, cache_dtype: str
    ):
        self.model, self.members, self.rows = model, members, rows
        self.cache = model.new_cache(rows * len(members), capacity, cache_dtype)

    def row(self, stream: int, row: int) -> int:
        """The cache row of a stream's batch row."""
        return self.members.index(stream) * self.rows + row


class Lockstep:
    """Feeds tokens to streams and returns each stream's next-token log-probabilities.

    Args:
        streams: the readers; the first is the base.
        rows: prompts in the batch; every stream has that many rows.
        capacity: tokens per row that the caches hold at first; they grow when needed.
        n_ids: how many token ids the streams have in common; by default the smallest vocabulary.
        chunk: about how many tokens a forward reads, over all its rows; at least the smaller of
            `chunk` and `FEW_COLUMNS` per row. Longer texts take several forwards. A larger chunk
            needs more memory and is hardly faster (docs/log.md).
        fuse: whether streams that share weights share forwards; False is the slow reference.
        cache_dtype: how keys and values are stored, one of `cache_dtype.CACHE_DTYPES`.
        limit: most tokens of a row; by default what every model's context holds.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        rows: int = 1,
        capacity: int = 256,
        n_ids: int | None = None,
        chunk: int = 256,
        fuse: bool = True,
        cache_dtype: str = "auto",
        limit: int | None = None,
    ):
        self.streams, self.rows, self.chunk = tuple(streams), rows, chunk
        capacity = capacity if limit is None else min(capacity, limit)
        sizes = [stream.model.config.vocab_size for stream in streams]
        self.n_ids = min(sizes) if n_ids is None else n_ids
        members: list[tuple[Llama, list[int]]] = []
        for number, stream in enumerate(streams):
            for model, numbers in members:
                if fuse and model is stream.model:
                    numbers.append(number)
                    break
            else:
                members.append((stream.model, [number]))
        self.groups = [
            SharedWeights(model, numbers, rows, capacity, cache_dtype) for model, numbers in members
        ]
        self.group_of = {n: group for group in self.groups for n in group.members}  # by stream
        self.limit = min(group.cache.limit for group in self.groups)  # of every context, in tokens
        if limit is not None:
            self.limit = min(self.limit, limit)
            for group in self.groups:
                group.cache.limit = self.limit

    def length(self, stream: int, row: int) -> int:
        """How many tokens of a row a stream has read."""
        group = self.group_of[stream]
        return group.cache.lengths[group.row(stream, row)]

    def rewind(self, stream: int, row: int, length: int) -> None:
        """Shorten what a stream has read of a row to `length` tokens. Later values stay in the
        cache, but nothing reads them."""
        group = self.group_of[stream]
        group.cache.rewind(group.row(stream, row), length)

    def keep(self, rows: Sequence[int]) -> None:
        """Continue with these rows only, in this order."""
        for group in self.groups:
            group.cache.keep([group.row(stream, row) for stream in group.members for row in rows])
            group.rows = len(rows)
        self.rows = len(rows)

    @torch.inference_mode()
    def feed(
        self, tokens: Sequence[Tokens], slots: Sequence[Sequence[Slot]] = ()
    ) -> tuple[Tensor | None, ...]:
        """Append `tokens[stream][row]` to what each stream has read of each row.

        Args:
            tokens: ids by stream and row. A stream that gets no ids for any row rests.
            slots: per stream; a slot's rows are batch rows.

        Returns:
            Per stream, (rows, n_ids) float32 log-probabilities after each row's last token, or
            None if the stream rests. A row that got no tokens has zeros.

        Raises:
            NonFiniteError: a model produced NaN or infinite logits.
            PromptError: a text does not fit a model's context.
        """
        found: dict[int, Tensor] = {}
        for group in self.groups:
            found |= self._feed_group(group, tokens, slots)
        return tuple(found.get(stream) for stream in range(len(self.streams)))

    def _feed_group(
        self, group: SharedWeights, tokens: Sequence[Tokens], slots: Sequence[Sequence[Slot]]
    ) -> dict[int, Tensor]:
        active = [n for n, s in enumerate(group.members) if any(map(len, tokens[s]))]
        if not active:
            return {}
        # one slice of the cache's rows, from the first stream that reads to the last
        first, rows = active[0], self.rows
        members = group.members[first : active[-1] + 1]
        ids = [list(tokens[stream][row]) for stream in members for row in range(rows)]
        shifted = [
            slot.shifted(n * rows)
            for n, stream in enumerate(members)
            for slot in (slots[stream] if slots else ())
        ]
        adapters = tuple(
            AdaptedRows(adapter, slice(n * rows, (n + 1) * rows))
            for n, stream in enumerate(members)
            if (adapter := self.streams[stream].adapter) is not None
        )
        cache_rows = slice(first * rows, (first + len(members)) * rows)
        log_probs = self._forward(group, ids, cache_rows, shifted, adapters)
        found = dict(zip(members, torch.split(log_probs, rows), strict=True))
        return {group.members[n]: found[group.members[n]] for n in active}

    def _forward(
        self,
        group: SharedWeights,
        tokens: list[list[int]],
        rows: slice,
        slots: list[Slot],
        adapters: tuple[AdaptedRows, ...],
    ) -> Tensor:
        """Log-probabilities after each row's last token; rows may have any lengths and are fed in
        chunks."""
        model = group.model
        longest = max(map(len, tokens))
        lengths = group.cache.lengths[rows]
        group.cache.reserve(max(n + len(ids) for n, ids in zip(lengths, tokens, strict=True)))
        result = torch.zeros(len(tokens), self.n_ids, device=model.device)
        chunk = max(self.chunk // len(tokens), min(self.chunk, FEW_COLUMNS))
        for start in range(0, longest, chunk):
            blocks = [row_ids[start : start + chunk] for row_ids in tokens]
            counts = [len(block) for block in blocks]
            width = max(counts)
            ids = torch.tensor(
                [block + [0] * (width - len(block)) for block in blocks], device=model.device
            )
            ends = (start < len(row_ids) <= start + chunk for row_ids in tokens)
            ending = [row for row, ends_here in enumerate(ends) if ends_here]
            logits = model(
                ids, group.cache, counts=counts, rows=rows, slots=slots, adapters=adapters,
                last_only=True, no_logits=not ending,
            )  # fmt: skip
            if len(ending) == len(tokens):
                return log_probs_of(logits[:, : self.n_ids])
            if ending:
                result[ending] = log_probs_of(logits[ending, : self.n_ids])
        return result


def log_probs_of(logits: Tensor) -> Tensor:
    """float32 log-softmax; raises `NonFiniteError` if any logit is NaN or infinite."""
    logits = logits.float()
    # one non-finite value makes the sum non-finite; the full check is slow and follows only then
    if not math.isfinite(logits.sum().item()) and not bool(logits.isfinite().all()):
        bad = int((~logits.isfinite()).sum())
        raise NonFiniteError(
            f"the model produced {bad} NaN or infinite logits, so the answer stops; try --dtype "
            "float32, a smaller --sa-scale, or other weights"
        )
    return torch.log_softmax(logits, dim=-1)
