"""Text as it leaves: streamed decoding, stop strings, and what a terminal may be shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from minisafe.amplify import Demonstration, load_demonstrations
from minisafe.cli.options import harmless
from minisafe.finetune import load_conversations
from minisafe.session.answer import StopFilter
from minisafe.tokenizer import TextStream, Tokenizer
from tests.support.worlds import KINDS, backend

KNOWN = {kind: Tokenizer(backend(kind), {}, kind) for kind in KINDS}
texts = st.text(st.sampled_from("ab z\n.é日🦊▁e t"), max_size=20)
kinds = st.sampled_from(KINDS)


@st.composite
def runs(draw: st.DrawFn) -> tuple[Tokenizer, list[int]]:
    """A tokenizer, and ids: any at all, real text with some ids left out, or bytes alone."""
    known = KNOWN[draw(kinds)]
    any_id = st.integers(0, known.size - 1)
    if draw(st.booleans()):
        ids = known.encode(draw(texts))
        gone = draw(st.sets(st.integers(0, len(ids)), max_size=3))
        return known, [id_ for place, id_ in enumerate(ids) if place not in gone]
    one_byte = st.sampled_from(sorted(known.byte_ids) or list(range(9, 265)))
    return known, draw(st.lists(st.one_of(any_id, one_byte), max_size=40))


def visible(known: Tokenizer, ids: Sequence[int]) -> list[int]:
    return [id_ for id_ in ids if id_ not in known.control_ids]


def whole(known: Tokenizer, ids: Sequence[int]) -> str:
    """What the tokenizers library makes of all the ids at once."""
    return known.backend.decode(visible(known, ids), skip_special_tokens=False)


@given(runs())
def test_pieces_joined_are_the_decoded_whole(case: tuple[Tokenizer, list[int]]) -> None:
    known, ids = case
    stream = TextStream(known)
    pieces = [*map(stream.push, ids), stream.finish()]
    assert "".join(pieces) == whole(known, ids) == known.decode(ids)


@given(runs(), texts)
def test_after_a_context_too(case: tuple[Tokenizer, list[int]], context: str) -> None:
    """The text of an answer is what it adds to its prompt: its first blank is kept."""
    known, ids = case
    before = known.encode(context)
    expected = whole(known, [*before, *ids])
    assume(expected.startswith(whole(known, before)))  # else the answer changed the prompt's text
    stream = TextStream(known, before)
    pieces = [*map(stream.push, ids), stream.finish()]
    assert "".join(pieces) == expected[len(whole(known, before)) :]


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
def test_a_character_comes_whole_and_at_once(kind: str, text: str) -> None:
    """Real text never shows the sign for a broken character, and nothing that is sure is kept."""
    known = KNOWN[kind]
    ids = visible(known, known.encode(text))
    stream = TextStream(known)
    shown = ""
    for number, id_ in enumerate(ids, 1):
        shown += stream.push(id_)
        assert "\ufffd" not in shown
        sure = whole(known, ids[:number]).rstrip("\ufffd")
        held = len(sure) - len(shown)
        assert held >= 0
        assert held == 0 or id_ in known.byte_ids  # a run of bytes is known once it ends
    assert shown + stream.finish() == whole(known, ids)


@pytest.mark.parametrize("kind", KINDS[1:])
@given(prompt=st.integers(1, 12), answer=st.integers(1, 4))
def test_bytes_that_go_on_from_the_prompt(kind: str, prompt: int, answer: int) -> None:
    """A run of byte tokens decodes as one, however much of the prompt it takes up."""
    known = KNOWN[kind]
    ids = known.encode("日" * (prompt + answer))
    cut = len(ids) - 3 * answer
    stream = TextStream(known, ids[:cut])
    assert "".join([*map(stream.push, ids[cut:]), stream.finish()]) == "日" * answer


@pytest.mark.parametrize("kind", KINDS)
def test_the_blank_before_an_answer(kind: str) -> None:
    known = KNOWN[kind]
    ids = visible(known, known.encode("fox and bird"))
    cut = next(n for n in range(1, len(ids)) if whole(known, ids[:n]) == "fox")
    stream = TextStream(known, ids[:cut])
    assert "".join([*map(stream.push, ids[cut:]), stream.finish()]) == " and bird"
    alone = TextStream(known)
    first = "" if kind != "byte_level" else " "  # these take it for the mark of a text's start
    assert "".join([*map(alone.push, ids[cut:]), alone.finish()]) == first + "and bird"


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_are_no_text(kind: str) -> None:
    known = KNOWN[kind]
    ids = visible(known, known.encode("fox and bird"))
    for control in sorted(known.control_ids):
        mixed = [control, *ids[:2], control, control, *ids[2:], control]
        assert known.decode(mixed) == "fox and bird"


def test_long_texts_are_decoded_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token costs the same, however long the text has become."""
    known = KNOWN["sentencepiece"]
    longest = []
    decode = Tokenizer.decode_all
    monkeypatch.setattr(
        Tokenizer, "decode_all", lambda self, ids: (longest.append(len(ids)), decode(self, ids))[1]
    )
    ids = known.encode("once there was a fox " * 30)
    assert known.decode(ids) == "once there was a fox " * 30
    assert max(longest) < 30


# ---- stop strings ------------------------------------------------------------------------------

letters = st.text(st.sampled_from("ab\n"), max_size=25)
stops = st.lists(st.text(st.sampled_from("ab\n"), min_size=1, max_size=4), max_size=3)


@st.composite
def pieces_of(draw: st.DrawFn, text: str) -> list[str]:
    """A text cut anywhere, some pieces empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(st.data(), letters, stops)
@example(None, "ab", ["ab"])
@example(None, "aab", ["ab"])
@example(None, "aba", ["abb", "bb"])
def test_no_part_of_a_stop_string_is_shown(
    data: st.DataObject | None, text: str, stops: list[str]
) -> None:
    pieces = list(text) if data is None else data.draw(pieces_of(text))
    stream = StopFilter(stops)
    shown, read, end = "", "", None
    for piece in pieces:
        read += piece
        shown += stream.push(piece)
        found = [place for stop in stops if (place := read.find(stop)) >= 0]
        if found and end is None:
            end = min(found)
        assert stream.stopped == (end is not None)
        assert read.startswith(shown)
        held = read[len(shown) :] if end is None else ""
        assert not held or any(stop.startswith(held) for stop in stops)  # else it was sure
        assert not any(stop in shown for stop in stops)
        if end is not None:
            assert shown == read[:end]
            break
    shown += stream.finish()
    assert shown == (text if end is None else text[:end])


@given(letters, st.text(st.sampled_from("ab\n"), min_size=1, max_size=4), st.data())
def test_one_stop_string_ends_the_text_where_it_first_stands(
    text: str, stop: str, data: st.DataObject
) -> None:
    """However the text comes in pieces."""
    stream = StopFilter([stop])
    shown = "".join(map(stream.push, data.draw(pieces_of(text)))) + stream.finish()
    assert shown == text.split(stop)[0]


def test_the_first_of_several_stop_strings_counts() -> None:
    for stops in (["b", "cd"], ["cd", "b"]):
        assert StopFilter(stops).push("abcd") == "a"
        assert StopFilter(stops).push("acdb") == "a"


def test_after_a_stop_string_nothing_is_shown() -> None:
    stream = StopFilter(["."])
    assert [stream.push(piece) for piece in ("a.b", "c", "")] == ["a", "", ""]
    assert stream.finish() == ""


def test_what_is_no_stop_string_in_the_end_is_shown() -> None:
    stream = StopFilter(["end!"])
    assert [stream.push(piece) for piece in ("the e", "n", "d", "ing")] == [
        "the ",
        "",
        "",
        "ending",
    ]
    assert stream.push("en") == ""
    assert stream.finish() == "en"


# ---- files of texts ----------------------------------------------------------------------------


def test_lines_end_at_newlines_only(tmp_path: Path) -> None:
    """Other separators stand in JSON and CSV as text, and CSV may quote a newline."""
    text = "a\u2028b\x85c\x1cd"
    row = {"input": text, "output": "e"}
    (tmp_path / "d.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\r\n", "utf-8")
    (tmp_path / "d.csv").write_text(f'input,output\r\n"{text}\nf",e\r\n', "utf-8")
    assert load_demonstrations(tmp_path / "d.jsonl") == [Demonstration(text, "e")]
    assert load_demonstrations(tmp_path / "d.csv") == [Demonstration(f"{text}\nf", "e")]
    ((question, _),) = load_conversations(tmp_path / "d.jsonl")
    assert question == {"role": "user", "content": text}


# ---- terminals ---------------------------------------------------------------------------------

ATTACKS = (
    "\x1b[2J", "\x1b]0;title\x07", "\x1b]52;c;aGk=\x1b\\", "\x9b31m", "\r", "\x08", "\x00", "\x7f",
    "\x85", "\u202a", "\u202e", "\u2066", "\x0e", "\x1bP1$r", "\u2069", "\x05",
)  # fmt: skip


@given(st.text())
def test_nothing_shown_commands_a_terminal(text: str) -> None:
    shown = harmless(text)
    assert len(shown) == len(text)
    for before, after in zip(text, shown, strict=True):
        code = ord(after)
        assert code >= 0x20 or after in "\n\t"
        assert not 0x7F <= code < 0xA0
        assert not 0x202A <= code <= 0x202E
        assert not 0x2066 <= code <= 0x2069
        if before.isprintable() or before in "\n\t":
            assert after == before


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_control_sequences_are_spelled_out(attack: str) -> None:
    shown = harmless(f"a{attack}b")
    assert shown.startswith("a")
    assert shown.endswith("b")
    assert not set("\x1b\x9b\r\x08\x00\x7f\x07\x85\u202a\u202e\u2066\u2069\x0e\x05") & set(shown)
    assert harmless(shown) == shown
