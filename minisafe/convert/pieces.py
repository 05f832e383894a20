"""The merges of a SentencePiece vocabulary, which states scores instead."""

from __future__ import annotations

from minisafe.checkpoint import limits
from minisafe.convert.vocabulary import NORMAL, USER_DEFINED, Vocabulary
from minisafe.errors import TokenizerError


def find_merges(vocabulary: Vocabulary, source: str) -> list[list[str]]:
    """Every pair of pieces that makes a piece; the piece with the best score comes first.

    SentencePiece merges the neighbours whose join has the best score, which is what a list of
    merges in this order does. Only pieces of ordinary text take part: a control token or a byte
    must not come out of a user's text. Where a file states merges, they are taken as they are.

    Raises `TokenizerError` if the pieces are too long to be compared.
    """
    usable = {
        token: id_
        for id_, token in enumerate(vocabulary.tokens[: vocabulary.size])
        if vocabulary.types[id_] in (NORMAL, USER_DEFINED)
    }
    if vocabulary.merges:
        stated = (merge.partition(" ") for merge in vocabulary.merges)
        return [
            [left, right]
            for left, _, right in stated
            if left in usable and right in usable and left + right in usable
        ]
    if sum(len(token) ** 2 for token in usable) > limits.MERGE_WORK:
        raise TokenizerError(
            f"{source}: its tokens are too long to find their merges; expected pieces of up to "
            "about 16 letters, as SentencePiece makes them"
        )
    found = [
        (vocabulary.scores[id_], token[:n], token[n:])
        for token, id_ in usable.items()
        for n in range(1, len(token))
        if token[:n] in usable and token[n:] in usable
    ]
    found.sort(key=lambda each: (each[0], len(each[1]), len(each[2])), reverse=True)
    return [[left, right] for _, left, right in found]
