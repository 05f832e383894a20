"""A prompt becomes the ids that each stream reads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from minisafe.errors import PromptError
from minisafe.session.chat_prompt import ChatPrompt, EncodedPrompt

if TYPE_CHECKING:
    from minisafe.session.session import Session


def encode_text(session: Session, text: str, chat: bool) -> tuple[tuple[int, ...], ...]:
    """The ids of a text, per stream; with `chat`, as a conversation's first message. Raises
    `PromptError`."""
    if not text:
        raise PromptError("the prompt is empty; expected some text")
    if chat:
        return tuple(each.ids for each in session.encode_chat([{"role": "user", "content": text}]))
    if not session.one_text:
        raise PromptError(
            "an expert with its own system prompt needs the chat template; use --chat"
        )
    ids = tuple(session.tokenizer.encode(text))
    if not ids:
        raise PromptError("the prompt has no tokens; expected some text")
    return (ids,) * len(session.streams)


def encode_turns(session: Session, prompt: ChatPrompt) -> EncodedPrompt:
    """A conversation's ids. Answers in it keep the ids that they would have had while they were
    given, so they are steered as in a chat. Raises `PromptError`."""
    if prompt.system is not None:
        if session.settings.system:
            raise PromptError(
                "the conversation has a system message, and so have the settings; give one of them"
            )
        session = replace(session, settings=replace(session.settings, system=prompt.system))
    answers: dict[int, tuple[int, ...]] = {}
    for number in range(1, len(prompt.turns), 2):
        asked = session.encode_chat(prompt.turns[:number], answers)[0].ids
        content = prompt.turns[number]["content"]
        answers[number] = tuple(session.tokenizer.encode_begun(content, asked))
    chats = session.encode_chat(prompt.turns, answers)
    begun = tuple(session.tokenizer.encode_begun(prompt.prefill, chats[0].ids))
    past = [place for place in chats[0].answers if place is not None]
    return EncodedPrompt(
        ids=tuple((*chat.ids, *begun) for chat in chats),
        answers=(*past, (len(chats[0].ids), None)),
        context=begun,
        gated=prompt.is_first_turn,
    )
