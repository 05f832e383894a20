"""A conversation's ids: the encoded text of the chat template, with the answers' sampled ids.

An answer keeps its ids if the template writes it unchanged, up to blanks around it. If the template
rewrites it (drops its reasoning, changes its case), the template's text is encoded, as for a
conversation that comes from a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

from minisafe.tokenizer.child import common_start
from minisafe.tokenizer.marks import Marks
from minisafe.tokenizer.templates import Message, Part


@dataclass(frozen=True)
class ChatIds:
    """A rendered chat's ids, and the positions of its sampled answers in them.

    answers: [start, stop) in `ids` for each answer whose ids were given, in order; None if the
    template leaves the answer out.
    """

    ids: tuple[int, ...]
    answers: tuple[tuple[int, int] | None, ...] = ()


@dataclass(frozen=True)
class Shown:
    """The position of an answer in a chat's text: [start, stop) in characters.

    verbatim: whether the template writes the answer unchanged. blanks: the blanks at the end of the
    prompt when the answer was sampled; None if the text before the answer has changed since.
    """

    start: int
    stop: int
    verbatim: bool
    blanks: str | None = None


class Encoder(Protocol):
    """What a conversation needs from a tokenizer."""

    def encode_marked(self, text: str, marks: Marks, after: Sequence[int] = ()) -> list[int]: ...

    def without_repeated_end(self, answer: Sequence[int], piece: str) -> str: ...


class Writer(Protocol):
    """What a conversation needs from a chat template."""

    def write(
        self, messages: Sequence[Message], parts: Sequence[Part], required: int = 1
    ) -> list[str | None]: ...


# ---- the positions of answers ------------------------------------------------------------------


def find_answers(
    template: Writer,
    messages: Sequence[Message],
    numbers: Sequence[int],
    marks: Marks,
    generation_prompt: bool,
) -> tuple[str, dict[int, Shown | None]]:
    """The chat's text, and the positions of these messages in it; None for one that is left out.

    Renders the chat again with marks in place of the answers: first all at once, and then one by
    one if the result is not the same text up to the marks.
    """
    whole, marked = len(messages), {number: marks.stand_for(number) for number in numbers}
    parts: list[Part] = [(whole, {}, generation_prompt), (whole, marked, generation_prompt)]
    asked_parts: list[Part] = [(number, {}, True) for number in numbers]
    text, together, *asked = template.write(messages, parts + asked_parts)
    assert text is not None
    said = [messages[number]["content"] for number in numbers]
    found = (
        None if together is None else aligned(text, marks.split_answers(together), numbers, said)
    )
    if found is None:
        parts = [(whole, {number: marked[number]}, generation_prompt) for number in numbers]
        apart = template.write(messages, parts, required=0)
        found = [
            None if other is None else compared(text, marks.split_answers(other), content)
            for other, content in zip(apart, said, strict=True)
        ]
    found = in_order(found)
    return text, {
        number: each and replace(each, blanks=blanks_asked(before, text[: each.start]))
        for number, each, before in zip(numbers, found, asked, strict=True)
    }


def aligned(
    text: str,
    pieces: Sequence[tuple[int | None, str]],
    numbers: Sequence[int],
    said: Sequence[str],
) -> list[Shown | None] | None:
    """The positions of the answers if `text` is these pieces of template text with all answers
    between them, in order; otherwise None."""
    if [number for number, _ in pieces[1:]] != list(numbers) or not text.startswith(pieces[0][1]):
        return None
    place, found = len(pieces[0][1]), list[Shown | None]()
    for content, (_, after) in zip(said, pieces[1:], strict=True):
        fitting = (each for each in written(content) if text.startswith(each + after, place))
        answer = next(fitting, None)
        if answer is None:
            return None
        stop = place + len(answer)
        found.append(Shown(place, stop, verbatim=True))
        place = stop + len(after)
    return found if place == len(text) else None


def compared(text: str, pieces: Sequence[tuple[int | None, str]], content: str) -> Shown | None:
    """The position of one answer, given the pieces of text around its mark; None without a mark."""
    if len(pieces) < 2:
        return None
    before, after = pieces[0][1], pieces[-1][1]
    start = common_start(before, text)
    stop = len(text) - common_start(after[::-1], text[start:][::-1])
    exact = (start, len(text) - stop) == (len(before), len(after))
    verbatim = exact and len(pieces) == 2 and text[start:stop] in written(content)
    return Shown(start, stop, verbatim)


def in_order(found: list[Shown | None]) -> list[Shown | None]:
    """The same positions; none stays verbatim if they are not in the conversation's order."""
    shown = [each for each in found if each is not None]
    if all(one.stop <= other.start for one, other in pairwise(shown)):
        return found
    return [each and replace(each, verbatim=False) for each in found]


def written(content: str) -> tuple[str, ...]:
    """An answer as templates write it: unchanged, or without the blanks around it."""
    return content, content.strip(), content.lstrip(), content.rstrip()


def blanks_asked(asked: str | None, before: str) -> str | None:
    """The blanks at the end of the prompt when the answer was sampled. Some templates add a blank
    once they know the answer (Llama 2). None if the text before the answer has changed."""
    if asked is None or asked.rstrip() != before.rstrip():
        return None
    return asked[len(asked.rstrip()) :]


# ---- ids ---------------------------------------------------------------------------------------


def encode_conversation(
    tokenizer: Encoder,
    text: str,
    shown: Mapping[int, Shown | None],
    answers: Mapping[int, Sequence[int]],
    marks: Marks,
) -> ChatIds:
    """Ids of a chat's text, in which verbatim answers keep their ids."""
    ids: list[int] = []
    spans: dict[int, tuple[int, int]] = {}
    place, after = 0, tuple[int, ...]()
    rewritten: dict[int, Shown] = {}
    stops = [(number, each) for number, each in shown.items() if each is not None]
    for number, each in [*stops, (None, Shown(len(text), len(text), True))]:
        if number is not None and not each.verbatim:
            rewritten[number] = each
            continue
        piece = as_asked(text[place : each.start], each.blanks)
        kept = tokenizer.without_repeated_end(after, piece)
        found = tokenizer.encode_marked(kept, marks, after)
        for other, where in rewritten.items():
            ends = (at - place - (len(piece) - len(kept)) for at in (where.start, where.stop))
            starts = [tokenizer.encode_marked(kept[: max(0, end)], marks, after) for end in ends]
            first, last = (len(ids) + common(found, start) for start in starts)
            if first:  # nothing comes before a text's first token
                spans[other] = first, last
        rewritten.clear()
        ids += found
        if number is not None:
            after = tuple(answers[number])
            spans[number] = len(ids), len(ids) + len(after)
            ids += after
        place = each.stop
    return ChatIds(tuple(ids), tuple(spans.get(number) for number in shown))


def as_asked(piece: str, blanks: str | None) -> str:
    """Template text before an answer, with the blanks at its end when the answer was sampled."""
    return piece if blanks is None or not piece.strip() else piece.rstrip() + blanks


def common(one: Iterable[int], other: Iterable[int]) -> int:
    """The length of the longest common prefix of two sequences of ids."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
