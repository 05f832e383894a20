"""The position of a subject in a prompt's ids, and the model's answer to the prompt.

Tokens are found by the characters that they cover, so token boundaries need not match the subject.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from minisafe.editing.rome import Context
from minisafe.errors import PromptError
from minisafe.model import Llama
from minisafe.tokenizer import Message, Tokenizer


def prompt_ids(tokenizer: Tokenizer, text: str, chat: bool) -> list[int]:
    """Ids up to the beginning of the answer or of the text's continuation."""
    if chat:
        return list(tokenizer.encode_chat([_message("user", text)]).ids)
    return tokenizer.encode(text)


def locate(tokenizer: Tokenizer, prompt: str, subject: str, target: str, chat: bool) -> Context:
    """The row of a prompt (with `{}` for the subject) and its target.

    In a chat the target is the whole answer, with the template's ending. Otherwise it follows after
    a blank, unless the prompt ends in one.

    Raises:
        PromptError: the ids of the prompt change when the target follows, or no token covers the
            subject's last character.
    """
    question = prompt.replace("{}", subject)
    end = prompt.index("{}") + len(subject)  # of the subject, in the question
    before = prompt_ids(tokenizer, question, chat)
    if chat:
        messages = [_message("user", question), _message("assistant", target)]
        ids = list(tokenizer.encode_chat(messages, generation_prompt=False).ids)
        text = tokenizer.render(messages, generation_prompt=False)
        end += _start_of(text, question)
    else:
        text = question + ("" if question[-1:].isspace() else " ") + target
        ids = tokenizer.encode(text)
    if ids[: len(before)] != before or len(ids) == len(before):
        raise PromptError(
            f"the ids of {question!r} change when {target!r} follows, so the target's tokens "
            "cannot be told apart; end the prompt in another way"
        )
    ends = {match.end() for match in re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", text)}
    found = _covering(tokenizer, text, ids, ends | {end}, chat)
    if end not in found or found[end] >= len(before):
        raise PromptError(f"no token of {question!r} covers the end of the subject {subject!r}")
    return Context(tuple(ids), len(before), tuple(sorted(set(found.values()))), found[end])


def _start_of(text: str, question: str) -> int:
    """The position of the question in a template's text; raises `PromptError`."""
    place = text.rfind(question)
    if place < 0:
        raise PromptError(f"the chat template does not write {question!r} unchanged")
    return place


def _covering(
    tokenizer: Tokenizer, text: str, ids: Sequence[int], ends: set[int], chat: bool
) -> dict[int, int]:
    """For each end of a range of characters, the position in `ids` of the last token in the range.

    Raises `PromptError` if the text's tokens are not `ids`.
    """
    read = tokenizer.backend.encode(text, add_special_tokens=not chat)
    dropped = len(read.ids) - len(ids)  # a second BOS
    if dropped < 0 or read.ids[dropped:] != list(ids):
        raise PromptError("the prompt contains control tokens of the tokenizer; remove them")
    found = {}
    for end in ends:
        for position, (start, stop) in enumerate(read.offsets[dropped:]):
            if start < end <= stop:
                found[end] = position
    return found


@torch.no_grad()
def greedy(model: Llama, tokenizer: Tokenizer, ids: Sequence[int], limit: int) -> str:
    """The likeliest continuation's text: up to `limit` tokens or the first control token."""
    cache = model.new_cache(1, len(ids) + limit)
    fed, said = torch.tensor([list(ids)], device=model.device), list[int]()
    limit = min(limit, model.config.max_positions - len(ids))
    for _ in range(limit):
        best = int(model(fed, cache, last_only=True).argmax(-1).item())
        if best in tokenizer.control_ids:
            break
        said.append(best)
        fed = torch.tensor([[best]], device=model.device)
    return tokenizer.decode(said)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
