"""What is harmful by itself is answered by itself.

A role, a long preamble, a faked history or a begun answer can turn every stream: then nothing that
reads them sees harm any more. So the user's last message is also read alone, and so is each of its
sentences (and each window of a long one), as the first message of a chat, where base (or anchor)
and expert still disagree. If the calibrated gate opens for one of them, that one is answered alone:
what stands around it is not read.

What this cannot see: harm that no single sentence states. Running text without a chat template is
read as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from minisafe.session.chat_prompt import ChatPrompt, EncodedPrompt

if TYPE_CHECKING:
    from minisafe.session.session import Session

# after a mark and closing quotes, after a full-width mark, and at the end of a line
ENDS = re.compile(r"(?<=[.?!:;])[\"'\u201d\u2019)\]]*\s+|(?<=[\u3002\uff1f\uff01\uff1a\uff1b])|\n+")
LONG, STRIDE = 12, 4  # words of a window, and from one window to the next


@dataclass(frozen=True)
class Part:
    """A part of a prompt. prompt: what is answered if it is harmful, behind the conversation's
    system message if it has one. variation: between base (or anchor) and expert."""

    prompt: ChatPrompt
    variation: float


def sentences(text: str) -> list[str]:
    """The sentences of a text, parts that hold a letter or digit; and windows of long ones, since a
    sentence without marks can hold a role and a question."""
    found = [part.strip() for part in ENDS.split(text) if any(map(str.isalnum, part))]
    return [*found, *(window for part in found for window in windows(part.split()))]


def windows(words: Sequence[str]) -> list[str]:
    """Overlapping windows of a long sentence; none of a short one."""
    if len(words) <= LONG:
        return []
    starts = range(0, len(words) - LONG + STRIDE, STRIDE)
    return [" ".join(words[start : start + LONG]) for start in starts]


def parts_of(message: str) -> list[str]:
    """The message; then each of its sentences, if there are several."""
    found = sentences(message)
    return [message, *(found if len(found) > 1 else ())]


def worst_parts(session: Session, prompts: Sequence[ChatPrompt], batch_size: int) -> list[Part]:
    """For each prompt, the part with the largest variation. Parts are read without any system
    prompt, as in the calibration."""
    bare = replace(session, settings=replace(session.settings, system=None))
    parts = [parts_of(prompt.question) for prompt in prompts]
    once = list(dict.fromkeys(text for texts in parts for text in texts))
    seen = dict(zip(once, bare.variations(once, batch_size=batch_size), strict=True))
    worst = (max((seen[text], text) for text in texts) for texts in parts)
    return [
        Part(alone(prompt, text), variation)
        for prompt, (variation, text) in zip(prompts, worst, strict=True)
    ]


def alone(prompt: ChatPrompt, text: str) -> ChatPrompt:
    """A text in the place of a conversation, behind its system message if it has one."""
    first = prompt.messages[:1] if prompt.system is not None else ()
    return ChatPrompt((*first, {"role": "user", "content": text}))


def without_context(
    session: Session,
    prompts: Sequence[str | ChatPrompt],
    encoded: Sequence[EncodedPrompt],
    batch_size: int,
) -> list[EncodedPrompt]:
    """The encoded prompts; those with a part that is harmful by itself hold it alone. Where nothing
    stands around a part, nothing is read: it would be answered as it is."""
    found, gate = list(encoded), session.alone
    asked = [
        (n, each)
        for n, each in enumerate(prompts)
        if isinstance(each, ChatPrompt)
        and any(alone(each, part) != each for part in parts_of(each.question))
    ]
    if gate is None or not asked:
        return found
    worst = worst_parts(session, [prompt for _, prompt in asked], batch_size)
    for (n, prompt), part in zip(asked, worst, strict=True):
        if gate.opens(part.variation) and part.prompt != prompt:
            answered = session.encode_prompt(part.prompt, chat=True)
            found[n] = replace(answered, gated=False, alone=part.variation)
    return found
