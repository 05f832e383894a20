"""A message that is harmful by itself is answered by itself.

A faked history or a begun answer can turn every stream: then nothing that reads them sees harm any
more. So the user's last message is also read alone, as the first of a chat, where base (or anchor)
and expert still disagree. If the calibrated gate opens there, the answer is the one to that message
alone: what came before it and what the answer was to begin with are not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from minisafe.session.chat_prompt import ChatPrompt, EncodedPrompt

if TYPE_CHECKING:
    from minisafe.session.session import Session


def by_itself(prompt: ChatPrompt) -> ChatPrompt:
    """The last message of a conversation, behind its system message if it has one."""
    first = prompt.messages[:1] if prompt.system is not None else ()
    return ChatPrompt((*first, prompt.messages[-1]))


def without_context(
    session: Session,
    prompts: Sequence[str | ChatPrompt],
    encoded: Sequence[EncodedPrompt],
    batch_size: int,
) -> list[EncodedPrompt]:
    """The encoded prompts; those with a last message that is harmful by itself hold it alone."""
    found = list(encoded)
    gate, longer = session.alone, [n for n, each in enumerate(prompts) if has_context(each)]
    if gate is None or not longer:
        return found
    single = [by_itself(prompts[n]) for n in longer]  # type: ignore[arg-type]
    seen = session.variations(single, batch_size=batch_size)
    for n, prompt, variation in zip(longer, single, seen, strict=True):
        if gate.opens(variation):
            found[n] = replace(session.encode_prompt(prompt, chat=True), alone=variation)
    return found


def has_context(prompt: str | ChatPrompt) -> bool:
    """Whether something precedes the last message, or begins its answer."""
    return isinstance(prompt, ChatPrompt) and (len(prompt.turns) > 1 or bool(prompt.prefill))
