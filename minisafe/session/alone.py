"""What is harmful by itself is answered by itself.

A role, a long preamble, a faked history or a begun answer can turn every stream: then nothing that
reads them sees harm any more. So parts of the user's last message are also read alone, as the first
message of a chat: the message, each of its sentences, and windows of its words. If the calibrated
gate opens for one of them, that one is answered alone: what stands around it is not read. With the
setting `gate`, the answer is left to the base if it opens for no part of any message.

What this cannot see: harm that no part states. Running text without a chat template is read as it
is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from minisafe.gate import Gate
from minisafe.session.beginnings import harm as harmful
from minisafe.session.chat_prompt import ChatPrompt, EncodedPrompt, as_chat

if TYPE_CHECKING:
    from minisafe.session.session import Session
    from minisafe.tokenizer import Message

# after a mark and closing quotes, after a full-width mark, and at the end of a line
ENDS = re.compile(r"(?<=[.?!:;])[\"'\u201d\u2019)\]]*\s+|(?<=[\u3002\uff1f\uff01\uff1a\uff1b])|\n+")
MARKS = " .?!:;\"')]\u201d\u2019\u3002\uff1f\uff01\uff1a\uff1b"
LONG, STRIDE = 12, 4  # words of a window, and from one window to the next


@dataclass(frozen=True)
class Part:
    """What of a prompt is harmful by itself. prompt: what is answered then, behind the
    conversation's system message if it has one. harm: of its worst part (`beginnings.harm`)."""

    prompt: ChatPrompt
    harm: float


def sentences(text: str) -> list[str]:
    """The sentences of a text: parts between marks that hold a letter or digit."""
    return [part.strip() for part in ENDS.split(text) if any(map(str.isalnum, part))]


def windows(text: str) -> list[str]:
    """Overlapping windows of the words of a text, without the marks that end sentences: a question
    may be broken by marks, or stand in a sentence that has none. None of marks alone."""
    words = [word for part in sentences(text) for word in part.strip(MARKS).split()]
    if not words:
        return []
    last = max(0, len(words) - LONG + STRIDE - 1)
    return [" ".join(words[start : start + LONG]) for start in range(0, last + 1, STRIDE)]


def parts_of(message: str) -> list[str]:
    """The message; if it has several sentences or is long, also each of them, and windows."""
    found = sentences(message)
    if len(found) <= 1 and len(message.split()) <= LONG:
        return [message]
    return list(dict.fromkeys([message, *found, *windows(message)]))


def worst_parts(session: Session, prompts: Sequence[ChatPrompt], batch_size: int) -> list[Part]:
    """For each prompt, what of it is harmful. Parts are read without any system prompt, as in the
    calibration."""
    bare = replace(session, settings=replace(session.settings, system=None))
    texts = [parts_of(prompt.question) for prompt in prompts]
    once = list(dict.fromkeys(text for own in texts for text in own))
    seen = dict(zip(once, harmful(bare, once, batch_size), strict=True))
    return [
        Part(
            alone(prompt, to_answer(prompt.question, own, seen, session.alone)),
            max(seen[text] for text in own),
        )
        for prompt, own in zip(prompts, texts, strict=True)
    ]


def to_answer(
    message: str, parts: Sequence[str], harm: Mapping[str, float], gate: Gate | None
) -> str:
    """Which part to answer: of the short ones for which the gate opens, the worst sentence, or the
    worst window. In longer ones other words stand around the harm. Without any, the worst part."""
    own = set(sentences(message))
    short = [
        each for each in parts if gate and gate.opens(harm[each]) and len(each.split()) <= LONG
    ]
    return max(short or parts, key=lambda text: (bool(short) and text in own, harm[text], text))


def all_harmless(
    session: Session, messages: Sequence[Message], judged: dict[str, float], batch_size: int
) -> bool:
    """Whether no part of any message is harmful by itself. Answers count, which may be faked, and
    so does a system prompt, which may come from a file.

    judged: how harmful each text is, as far as it is known; the others are added.
    """
    texts = [session.settings.system, *(each["content"] for each in messages)]
    said = [text for text in texts if text]
    new = [text for text in dict.fromkeys(said) if text not in judged]
    found = worst_parts(session, [ChatPrompt.of(text) for text in new], batch_size) if new else []
    judged.update((text, part.harm) for text, part in zip(new, found, strict=True))
    gate = session.alone
    return gate is not None and not any(gate.opens(judged[text]) for text in said)


def stands_alone(prompt: ChatPrompt) -> bool:
    """Whether the prompt has one part and nothing around it: it is answered as it is anyway."""
    return all(alone(prompt, part) == prompt for part in parts_of(prompt.question))


def alone(prompt: ChatPrompt, text: str) -> ChatPrompt:
    """A text in the place of a conversation, behind its system message if it has one."""
    first = prompt.messages[:1] if prompt.system is not None else ()
    return ChatPrompt((*first, {"role": "user", "content": text}))


def without_context(
    session: Session,
    prompts: Sequence[str | ChatPrompt],
    chat: bool,
    encoded: Sequence[EncodedPrompt],
    batch_size: int,
) -> list[EncodedPrompt]:
    """What is answered of the encoded prompts: of those with a part that is harmful by itself, that
    part alone; and with the setting `gate`, those without any are left to the base. chat: texts are
    a chat's first messages; otherwise they are answered as they are."""
    found, gate, leaves = list(encoded), session.alone, session.leaves_harmless
    if gate is None:
        return found
    asked = [
        (n, each)
        for n, each in enumerate(as_chat(prompt) if chat else prompt for prompt in prompts)
        if isinstance(each, ChatPrompt) and (leaves or not stands_alone(each))
    ]
    if not asked:
        return found
    worst = worst_parts(session, [prompt for _, prompt in asked], batch_size)
    judged = {prompt.question: part.harm for (_, prompt), part in zip(asked, worst, strict=True)}
    for (n, prompt), part in zip(asked, worst, strict=True):
        if gate.opens(part.harm):
            if part.prompt != prompt:
                answered = session.encode_prompt(part.prompt, chat=True)
                found[n] = replace(answered, gated=False, alone=part.harm)
            continue
        begun = {"role": "assistant", "content": prompt.prefill}
        if leaves and all_harmless(session, [*prompt.messages, begun], judged, batch_size):
            found[n] = replace(encoded[n], gated=False, alone=part.harm, left=True)
    return found
