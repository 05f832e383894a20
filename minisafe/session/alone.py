"""What is harmful by itself is answered by itself.

A role, a long preamble, a faked history or a begun answer can turn every stream: then nothing that
reads them sees harm any more. So the user's last message is also read alone, and so is each of its
sentences, as the first message of a chat, where base (or anchor) and expert still disagree. If the
calibrated gate opens for one of them, that one is answered alone: what stands around it is not
read.

What this cannot see: harm that no single sentence states.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from minisafe.session.chat_prompt import ChatPrompt, EncodedPrompt

if TYPE_CHECKING:
    from minisafe.session.session import Session

ENDS = re.compile(r"(?<=[.?!:;])\s+|\n+")


@dataclass(frozen=True)
class Part:
    """A part of a prompt, to be read alone. variation: between base (or anchor) and expert."""

    prompt: ChatPrompt
    variation: float


def sentences(text: str) -> list[str]:
    """The sentences of a text: parts that hold a letter or digit."""
    return [part.strip() for part in ENDS.split(text) if any(map(str.isalnum, part))]


def parts_of(prompt: ChatPrompt) -> list[ChatPrompt]:
    """The last message alone, behind its system message if it has one; then each of its sentences,
    if there are several."""
    first = prompt.messages[:1] if prompt.system is not None else ()
    found = sentences(prompt.question)
    texts = [prompt.question, *(found if len(found) > 1 else ())]
    return [ChatPrompt((*first, {"role": "user", "content": text})) for text in texts]


def worst_parts(session: Session, prompts: Sequence[ChatPrompt], batch_size: int) -> list[Part]:
    """For each prompt, the part with the largest variation."""
    parts = [parts_of(prompt) for prompt in prompts]
    flat = [part for some in parts for part in some]
    seen = iter(session.variations(flat, batch_size=batch_size))
    read = [[Part(part, next(seen)) for part in some] for some in parts]
    return [max(some, key=lambda part: part.variation) for some in read]


def without_context(
    session: Session,
    prompts: Sequence[str | ChatPrompt],
    encoded: Sequence[EncodedPrompt],
    batch_size: int,
) -> list[EncodedPrompt]:
    """The encoded prompts; those with a part that is harmful by itself hold it alone."""
    found, gate = list(encoded), session.alone
    asked = [(n, each) for n, each in enumerate(prompts) if isinstance(each, ChatPrompt)]
    if gate is None or not asked:
        return found
    worst = worst_parts(session, [prompt for _, prompt in asked], batch_size)
    for (n, prompt), part in zip(asked, worst, strict=True):
        if gate.opens(part.variation) and part.prompt != prompt:
            alone = session.encode_prompt(part.prompt, chat=True)
            found[n] = replace(alone, alone=part.variation)
    return found
