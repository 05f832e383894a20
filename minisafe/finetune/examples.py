"""Conversations as ids and labels, in batches. The loss covers the answers only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minisafe.errors import PromptError, TokenizerError
from minisafe.finetune.forms import BEGUN, CUT
from minisafe.lora import AdaptedRows
from minisafe.model import Llama
from minisafe.tokenizer import Marks, Message, Tokenizer

Conversation = Sequence[Message]
IGNORED = -100  # a label that the loss leaves out
OPENED = re.compile(r"(<[\w-]+>)\s*\Z")  # a tag, such as <think>, at a generation prompt's end


@dataclass(frozen=True)
class Example:
    """A training text: ids, and labels that mark the learned ids."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def learned(self) -> int:
        """The number of learned tokens; nothing precedes the first token, so it never counts."""
        return sum(label != IGNORED for label in self.labels[1:])

    def cut(self, length: int) -> Example:
        """Its first `length` tokens."""
        return Example(self.ids[:length], self.labels[:length])


def encode_all(
    tokenizer: Tokenizer, conversations: Sequence[Conversation], max_length: int
) -> tuple[list[Example], int]:
    """The examples of conversations, cut at `max_length` tokens, and the number of examples left
    out because no token of an answer is within that length.

    Raises:
        PromptError: a conversation is unusable (the error has its number), or all were left out.
        TokenizerError: the chat template raises an error for one.
    """
    found: list[Example] = []
    for number, messages in enumerate(conversations, 1):
        try:
            found += encode_examples(tokenizer, messages)
        except (PromptError, TokenizerError) as error:
            raise type(error)(f"conversation {number}: {error}") from None
    kept = [each.cut(max_length) for each in found]
    kept = [each for each in kept if each.learned]
    if found and not kept:
        need = min(next(n for n, x in enumerate(each.labels) if x != IGNORED) for each in found) + 1
        raise PromptError(
            f"no answer begins within max_length {max_length}, so nothing would be learned; "
            f"expected {need} or more, so that the first answer's first token is within it"
        )
    return kept, len(found) - len(kept)


def encode_examples(tokenizer: Tokenizer, messages: Conversation) -> list[Example]:
    """The examples of a conversation that ends with an answer.

    There is one example if each turn only appends to the template's text: then every prompt begins
    with the text of the earlier turns. Some templates instead drop earlier thoughts, move the
    system prompt, or write an extra ending after the last turn. Then each answer is a separate
    example, after the prompt that asks for it.

    An answer reaches from the end of that prompt, including the generation prompt, to the end of
    the template's text for the answer, so the end token is learned too.

    If the last message has a `prefill`, even an empty one, that answer alone is learned, from where
    the prefill ends: what a user may put before an answer is read and not imitated. If it is `cut`,
    that answer alone is learned, without its end.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise PromptError("a conversation to learn from must end with an answer")
    if BEGUN in messages[-1] or CUT in messages[-1]:
        return [part_of_answer(tokenizer, messages)]
    places = [place for place, each in enumerate(messages) if each["role"] == "assistant"]
    whole = growing(tokenizer, messages, places)
    if whole is not None:
        return [whole]
    return [last_answer(tokenizer, messages[: place + 1]) for place in places]


def growing(tokenizer: Tokenizer, messages: Conversation, places: Sequence[int]) -> Example | None:
    """The conversation as one text with its answers at `places`, or None if turns do not only
    append."""
    ids: list[int] = []
    labels: list[int] = []
    for place in places:
        before = list(tokenizer.encode_chat(messages[:place]).ids)
        after = list(tokenizer.encode_chat(messages[: place + 1], generation_prompt=False).ids)
        if after[: len(before)] != before or before[: len(ids)] != ids:
            return None
        labels += [IGNORED] * (len(before) - len(ids)) + after[len(before) :]
        ids = after
    return Example(tuple(ids), tuple(labels))


def last_answer(tokenizer: Tokenizer, messages: Conversation) -> Example:
    """The last answer, after the prompt that asks for it; raises `PromptError`."""
    single = growing(tokenizer, messages, [len(messages) - 1])
    if single is not None:
        return single
    before = tokenizer.encode_chat(messages[:-1]).ids
    ids = appended(tokenizer, messages)
    if ids[: len(before)] != before or len(ids) == len(before):
        raise PromptError(
            "the chat template or the tokenizer changes the prompt when an answer follows, so the "
            f"answer {messages[-1]['content'][:40]!r} cannot be told apart"
        )
    return Example(ids, (IGNORED,) * len(before) + ids[len(before) :])


def part_of_answer(tokenizer: Tokenizer, messages: Conversation) -> Example:
    """The last answer, after the prompt that asks for it and the answer's given beginning; without
    its end if it is cut."""
    last = messages[-1]
    whole = last_answer(tokenizer, messages)
    start = whole.labels.count(IGNORED)
    asked, answer = whole.ids[:start], whole.ids[start:]
    before = (*asked, *tokenizer.encode_begun(last.get(BEGUN, ""), asked))
    if CUT in last:
        answer = tuple(tokenizer.encode_begun(last["content"], before))
    return Example(before + answer, (IGNORED,) * len(before) + answer)


def appended(tokenizer: Tokenizer, messages: Conversation) -> tuple[int, ...]:
    """Ids of the prompt, the last answer, and the template's text after an answer."""
    marks = Marks(messages)
    asked_of: list[Message] = [
        {**each, "content": marks.hide(each["content"], tokenizer.control)}
        for each in messages[:-1]
    ]
    asked, answer = tokenizer.render(asked_of), messages[-1]["content"]
    opened = OPENED.search(asked)
    if opened is not None and answer.lstrip().startswith(opened[1]):  # the prompt has it already
        answer = answer.lstrip().removeprefix(opened[1]).lstrip("\n")
    mark = marks.stand_for(len(messages) - 1)
    shown = tokenizer.render([*asked_of, {"role": "assistant", "content": mark}], False)
    if shown.count(mark) != 1:
        raise PromptError("the chat template does not write the last answer once")
    text = asked + marks.hide(answer, tokenizer.control) + shown.partition(mark)[2]
    return tuple(tokenizer.encode_marked(text, marks))


# ---- batches -----------------------------------------------------------------------------------


def batches_an_epoch(examples: int, size: int) -> int:
    """The number of batches per epoch; an incomplete last batch is left out."""
    return max(1, examples // size)


def batches(
    examples: Sequence[Example], size: int, seed: int, skip: int
) -> Iterator[list[Example]]:
    """Endless batches: every example once per epoch, in an order that the seed fixes."""
    n = batches_an_epoch(len(examples), size)
    epoch, first = divmod(skip, n)
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(len(examples))
        for number in range(first, n):
            yield [examples[i] for i in order[number * size : (number + 1) * size]]
        epoch, first = epoch + 1, 0


def collate(examples: Sequence[Example], device: torch.device) -> tuple[Tensor, Tensor]:
    """Right-padded (B, T) ids and labels; padding is never a label."""
    width = max(len(example.ids) for example in examples)
    ids = [list(each.ids) + [0] * (width - len(each.ids)) for each in examples]
    labels = [list(each.labels) + [IGNORED] * (width - len(each.ids)) for each in examples]
    return torch.tensor(ids, device=device), torch.tensor(labels, device=device)


def answer_loss(
    model: Llama, ids: Tensor, labels: Tensor, adapters: tuple[AdaptedRows, ...] = ()
) -> Tensor:
    """Mean cross-entropy of the labelled tokens, each predicted from the tokens before it."""
    logits = model(ids, adapters=adapters)[:, :-1]
    targets = labels[:, 1:]
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)
