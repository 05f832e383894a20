"""Log-probabilities after every token of a block, for one stream: needed to verify drafts."""

from __future__ import annotations

import torch
from torch import Tensor

from minisafe.cache import KVCache
from minisafe.lockstep import Lockstep, Tokens
from minisafe.lora import AdaptedRows


@torch.inference_mode()
def score(lockstep: Lockstep, stream: int, tokens: Tokens) -> list[Tensor]:
    """Append `tokens[row]` to what one stream has read, without slots and in one forward.

    Returns, per row, (n, n_ids) float32 log-probabilities after each of its tokens. They end before
    the first that is not finite: the caller may not need the rest, and can rewind and `wipe`.
    """
    before = [lockstep.length(stream, row) for row in range(lockstep.rows)]
    found = score_block(lockstep, stream, tokens)
    if all(len(each) == len(ids) for each, ids in zip(found, tokens, strict=True)):
        return found
    # masked columns have weight 0, but 0 * NaN is NaN: a bad token also spoils those before it
    for row, length in enumerate(before):
        lockstep.rewind(stream, row, length)
        wipe(lockstep, stream, row)
    found = [each[:0] for each in found]
    for column in range(max(map(len, tokens))):
        fed = [
            ids[column : column + 1] if len(each) == column else []
            for ids, each in zip(tokens, found, strict=True)
        ]
        if any(map(len, fed)):
            single = score_block(lockstep, stream, fed)
            found = [torch.cat(both) for both in zip(found, single, strict=True)]
    return found


def score_block(lockstep: Lockstep, stream: int, tokens: Tokens) -> list[Tensor]:
    """`score`, but correct only if everything is finite or no row has two tokens."""
    group, adapter = lockstep.group_of[stream], lockstep.streams[stream].adapter
    counts = [len(ids) for ids in tokens]
    block = torch.zeros(lockstep.rows, max(counts), dtype=torch.long)
    for row, ids in enumerate(tokens):
        block[row, : len(ids)] = torch.tensor(list(ids), dtype=torch.long)
    first = group.row(stream, 0)
    logits = group.model(
        block.to(group.model.device), group.cache, counts=counts,
        rows=slice(first, first + lockstep.rows),
        adapters=() if adapter is None else (AdaptedRows(adapter, slice(0, lockstep.rows)),),
    )[..., : lockstep.n_ids].float()  # fmt: skip
    sound = logits.isfinite().all(dim=-1).long().cumprod(dim=1).sum(dim=1).tolist()
    log_probs = torch.log_softmax(logits, dim=-1)
    return [log_probs[row, : min(n, sound[row])] for row, n in enumerate(counts)]


@torch.inference_mode()
def wipe(lockstep: Lockstep, stream: int, row: int) -> None:
    """Zero the values that rewinding left in a stream's cache, after logits that were not finite:
    even masked, they would spoil sums."""
    group = lockstep.group_of[stream]
    wipe_row(group.cache, group.row(stream, row))


def wipe_row(cache: KVCache, row: int) -> None:
    """Zero the columns after a row's tokens."""
    for each in cache.held:
        each[:, row, :, cache.lengths[row] :] = 0
