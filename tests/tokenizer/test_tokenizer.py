"""Text to ids and back: chats as transformers renders them, and users who write control tokens."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from minisafe.config import LlamaConfig
from minisafe.errors import BadInput, ConfigError, PromptError, TokenizerError
from minisafe.tokenizer import (
    Tokenizer,
    check_same_vocabulary,
    check_tokenizer,
    load_tokenizer,
)
from tests.support.templates import CHATS, TEMPLATES, chat, special
from tests.support.worlds import GOLDENS, KINDS, backend, tokenizer, write_json, write_tokenizer

# In `normalized` a control token counts only at the start or after a blank, for transformers too,
# so that most of what a Llama-2 template writes there is text.
CAREFUL = sorted(set(TEMPLATES) - {"odd", "llama2_normalized"})
BYTE_CONTROL = ("<|begin|>", "<|eot|>", "<|end|>", "<|im_end|>", "<|start_header|>", "<|trim|>")
SP_CONTROL = ("<s>", "</s>", "<unk>")
words = st.text(st.sampled_from("ab z\n.é日🦊▁<|>s/"), max_size=12)


def loaded(directory: Path, template: str, **changes: Any) -> Tokenizer:
    kind, settings = TEMPLATES[template]
    write_tokenizer(directory, kind, settings | changes)
    return load_tokenizer(directory)


def of_bytes(name: str) -> bool:
    """Whether this template's tokenizer cuts text into bytes, without a blank before it."""
    return TEMPLATES[name][0] == "byte_level"


# ---- as transformers does ----------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_chats_are_rendered_as_by_transformers(name: str, tmp_path: Path) -> None:
    """Against what `goldens/make_chat_goldens.py` kept: text and ids, equal to the last one."""
    golden = json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))
    assert (golden["tokenizer"], golden["settings"]) == TEMPLATES[name]  # else make them again
    write_tokenizer(tmp_path, golden["tokenizer"], golden["settings"])
    known = load_tokenizer(tmp_path)
    assert [each["messages"] for each in golden["chats"]] == [m for m in CHATS for _ in range(2)]
    for each in golden["chats"]:
        messages, prompt = each["messages"], each["generation_prompt"]
        if "refused" in each:
            with pytest.raises(TokenizerError, match=re.escape(each["refused"])):
                known.encode_chat(messages, None, prompt)
            continue
        assert known.render(messages, prompt) == each["text"]
        assert list(known.encode_chat(messages, None, prompt).ids) == each["ids"]


@pytest.mark.live
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_chats_are_rendered_as_by_transformers_here(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    known = loaded(tmp_path, name, tokenizer_class="PreTrainedTokenizerFast")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for messages in CHATS:
        for prompt in (True, False):
            options = {"add_generation_prompt": prompt, "return_dict": False}
            try:
                ids = theirs.apply_chat_template(messages, **options)
            except Exception:
                with pytest.raises(TokenizerError):
                    known.encode_chat(messages, None, prompt)
            else:
                assert list(known.encode_chat(messages, None, prompt).ids) == ids


@pytest.mark.live
@pytest.mark.parametrize("name", ["llama2", "llama2_metaspace", "llama3", "marked"])
def test_plain_prompts_as_by_transformers_here(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    known = loaded(tmp_path, name, tokenizer_class="PreTrainedTokenizerFast")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("Hello there", " a  b", "日本 🦊\n", "x", "a <unk><|eot|></s> b"):
        assert known.encode(text) == theirs(text)["input_ids"]
        ids = known.encode(text)
        assert known.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.live
def test_the_story_tokenizer_as_by_transformers_here(story: Path) -> None:
    """Its Auto class makes a tokenizer of its own from the file's vocabulary, which reads blanks at
    the start and control tokens otherwise than the file says; the plain class obeys the file."""
    transformers = pytest.importorskip("transformers")
    known = load_tokenizer(story)
    auto, plain = (
        getattr(transformers, name).from_pretrained(story)
        for name in ("AutoTokenizer", "PreTrainedTokenizerFast")
    )
    texts = ("Once upon a time", "Lily and Tom!", "One day, a cat  sat. The end.")
    for text in (*texts, "  two blanks", "日本", "The end. <|end_story|>", "<|start_story|>Once"):
        ids = known.encode(text)
        assert ids == plain(text)["input_ids"][text.startswith("<") :]
        if text in texts:
            assert ids == auto(text)["input_ids"]
            assert known.decode(ids) == plain.decode(ids[1:]) == text


# ---- templates ---------------------------------------------------------------------------------


def with_template(source: Any, **settings: Any) -> Tokenizer:
    return Tokenizer(backend("byte_level"), {"chat_template": source} | settings, "here")


def test_a_template_may_ask_for_the_date() -> None:
    found = with_template("{{ strftime_now('%Y-%m') }}").render(chat("a"))
    assert found in {datetime.now().strftime("%Y-%m"), f"{datetime.now():%Y-%m}"}


@pytest.mark.parametrize(
    ("token", "text"),
    [("<|end|>", "<|end|>"), (special("<|end|>"), "<|end|>"), (None, ""), ({"lstrip": True}, "")],
)
def test_special_tokens_as_string_object_or_null(token: Any, text: str) -> None:
    known = with_template("[{{ bos_token }}]", bos_token=token)
    assert known.render(chat("a")) == f"[{text}]"


def test_templates_by_name() -> None:
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]
    assert with_template(named).render(chat("a")) == "yes"
    with pytest.raises(TokenizerError, match="no chat template named default, only rag"):
        with_template(named[:1]).render(chat("a"))


@pytest.mark.parametrize("source", [None, 3, {}], ids=str)
def test_no_template(source: Any) -> None:
    with pytest.raises(TokenizerError, match="has no chat template; use a plain prompt"):
        with_template(source).encode_chat(chat("a"))


def test_the_template_file_beside_the_tokenizer_wins(tmp_path: Path) -> None:
    loaded(tmp_path, "llama3")
    (tmp_path / "chat_template.jinja").write_text("file é", encoding="utf-8")
    assert load_tokenizer(tmp_path).render(chat("a")) == "file é"


@pytest.mark.parametrize(
    "source",
    [
        "{% for",
        "{% endif %}",
        "{{ raise_exception('not today') }}",
        "{{ messages[7].content.upper() }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ range(10 ** 9) | list }}",
        "{{ 'a'.encode('nonsense') }}",
        "{{ nonsense() }}",
        "{% include 'file' %}",
        "{%- macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_that_fails_is_one_named_error(source: str) -> None:
    with pytest.raises(TokenizerError, match=r"^here: the chat template"):
        with_template(source).encode_chat(chat("a"))


def test_messages_are_not_the_templates_to_change() -> None:
    messages = chat("a", "b", "c")
    with_template("{% for m in messages %}{% set m = 1 %}{% endfor %}x").encode_chat(messages)
    assert messages == chat("a", "b", "c")


# ---- control tokens in a user's text -----------------------------------------------------------


@pytest.mark.parametrize("name", CAREFUL)
@given(data=st.data())
def test_control_tokens_in_messages_stay_text(name: str, data: st.DataObject) -> None:
    """Wherever they stand, in whichever message: the template's own control ids are all there are,
    and what the message says can be read back."""
    known, control = tokenizer(name), BYTE_CONTROL if of_bytes(name) else SP_CONTROL
    plain = data.draw(words.filter(lambda text: text.strip()))
    place = data.draw(st.integers(0, len(plain)))
    token = data.draw(st.sampled_from(control))
    attack = plain[:place] + token + plain[place:]
    where = data.draw(st.sampled_from(("system", "user", "assistant", "last")))
    texts = dict.fromkeys(("system", "user", "assistant", "last"), "a")

    def encode(text: str) -> tuple[int, ...]:
        said = texts | {where: text}
        messages = chat(said["user"], said["assistant"], said["last"], system=said["system"])
        return known.encode_chat(messages).ids

    attacked, harmless = encode(attack), encode(plain)
    assert control_ids(known, attacked) == control_ids(known, harmless)
    assert token in backend_text(known, attacked)


def control_ids(known: Tokenizer, ids: tuple[int, ...]) -> list[int]:
    return [id_ for id_ in ids if id_ in known.control_ids]


def backend_text(known: Tokenizer, ids: tuple[int, ...]) -> str:
    """What the ids that are no control tokens say."""
    return known.backend.decode([id_ for id_ in ids if id_ not in known.control_ids])


@pytest.mark.parametrize("name", CAREFUL)
def test_the_rest_of_the_chat_is_read_as_ever(name: str) -> None:
    """A control token in one message changes no other message's ids, nor the template's."""
    known, token = tokenizer(name), "<|eot|>" if of_bytes(name) else "</s>"

    def encode(last: str) -> tuple[int, ...]:
        return known.encode_chat(chat("Hello there!", "The fox.", f"well {last} then")).ids

    ids, plain = encode(token), encode("q")
    start = next(n for n, (a, b) in enumerate(zip(ids, plain, strict=False)) if a != b)
    stop = next(n for n, (a, b) in enumerate(zip(ids[::-1], plain[::-1], strict=False)) if a != b)
    assert "well" in known.backend.decode(list(ids[:start]))[-6:]
    assert known.backend.decode(list(ids[-stop:])).startswith((" then", "then"))
    assert known.backend.decode(list(ids[start:-stop])).strip() == token


def test_nested_and_overlapping_control_tokens_stay_text() -> None:
    known = tokenizer("llama3")
    for text in ("<|e<|eot|>ot|>", "<|eot|><|eot|>", "<|begin<|begin|>|>", "<|trim|> <|eot|>"):
        ids = known.encode_chat(chat(text)).ids
        assert control_ids(known, ids) == control_ids(known, known.encode_chat(chat("a")).ids)
        assert text in backend_text(known, ids)


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
@pytest.mark.parametrize(
    ("normalizer", "attack"),
    [
        ("NFKC", "\uff1c|im_end|\uff1e"),
        ("NFKC", "\uff1c/\uff53>"),
        ("Lowercase", "<|IM_END|>"),
        ("Lowercase", "</S>"),
        ("NFKC", "</s> <|im_end|> \uff1c/s\uff1e"),
    ],
)
def test_text_that_normalizing_makes_a_control_token_stays_text(
    kind: str, normalizer: str, attack: str
) -> None:
    """Where control tokens are looked for in the normalized text, as a user may foresee."""
    data = json.loads((GOLDENS / "tokenizers" / f"{kind}.json").read_text(encoding="utf-8"))
    parts = [{"type": normalizer}, *((data["normalizer"] or {}).get("normalizers", []))]
    data["normalizer"] = {"type": "Sequence", "normalizers": parts}
    for token in data["added_tokens"]:
        token["normalized"] = True
    _, settings = TEMPLATES["chatml" if kind == "byte_level" else "vicuna"]
    known = Tokenizer(Backend.from_str(json.dumps(data)), settings, "here")
    forged = known.backend.encode(f"a {attack} b").ids
    assert known.control_ids & set(forged) or (kind == "byte_level") == ("s>" in attack.lower())
    for texts in ((f"a {attack} b",), ("a", f"b{attack}", "c"), (attack, attack, f"{attack}.")):
        ids = known.encode_chat(chat(*texts)).ids
        plain = known.encode_chat(chat(*("q" * len(texts)))).ids
        assert control_ids(known, ids) == control_ids(known, plain)
    answer = tuple(known.backend.encode("x", add_special_tokens=False).ids)
    ids = known.encode_chat(chat("a", "x", attack), {1: answer}).ids
    plain = known.encode_chat(chat("a", "x", "q"), {1: answer}).ids
    assert control_ids(known, ids) == control_ids(known, plain)


@pytest.mark.parametrize("name", ["llama3", "vicuna"])
def test_a_message_of_all_private_use_characters(name: str) -> None:
    """And a control token; another message holds the characters in another order."""
    known = tokenizer(name)
    planes = ((0xE000, 0xF900), (0xF0000, 0xFFFFE), (0x100000, 0x10FFFE))
    taken = "".join(chr(code) for first, stop in planes for code in range(first, stop))
    token = "<|eot|>" if name == "llama3" else "</s>"
    for messages in (chat(taken + token), chat(taken[::-1], token + taken, "a")):
        ids = known.encode_chat(messages).ids
        plain = known.encode_chat([m | {"content": "q"} for m in messages]).ids
        assert control_ids(known, ids) == control_ids(known, plain)
        assert token in backend_text(known, ids)
        assert taken in backend_text(known, ids)


def test_no_blank_before_text_after_a_logo() -> None:
    """U+F8FF, which some keyboards write, once stood for control tokens."""
    known = tokenizer("vicuna")

    def control_and(text: str) -> tuple[int, ...]:
        return known.encode_chat(chat("a", "b</s>", text)).ids

    with_logo, without = control_and("\uf8ff"), control_and("q")
    assert len(with_logo) == len(without) + 2  # its three bytes


def test_private_use_characters_are_only_characters() -> None:
    """They stand in for control tokens while the template runs; a user's own stay what they are."""
    known = tokenizer("llama3")
    text = "\ue000 \ue001<|eot|>\ue002 \uf8ff"
    assert text in backend_text(known, known.encode_chat(chat(text)).ids)


def test_marks_do_not_run_out() -> None:
    """However many control tokens the chat holds, and though it holds a whole plane of marks."""
    known = tokenizer("llama3")
    everything = "".join(BYTE_CONTROL)
    ids = known.encode_chat(chat(*[everything] * 1101)).ids
    assert ids.count(known.id_of("<|eot|>")) == 1101
    taken = "".join(map(chr, range(0xE000, 0xF900)))
    ids = known.encode_chat(chat(taken + everything)).ids
    assert ids.count(known.id_of("<|eot|>")) == 1
    assert taken + everything in backend_text(known, ids)


def test_markup_that_is_no_control_token_is_read_as_ever() -> None:
    known = tokenizer("llama3")
    assert known.id_of("<note>") in known.encode_chat(chat("a <note> b")).ids


# ---- plain prompts -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama2", "llama2_metaspace", "llama3"])
def test_one_bos_whoever_wrote_it(name: str) -> None:
    known = tokenizer(name)
    bos = known.special["bos_token"]
    ids = known.encode("Hello")
    assert ids[0] == known.id_of(bos)
    assert ids.count(ids[0]) == 1
    again = known.encode(f"{bos}Hello")
    assert again.count(ids[0]) == 1
    assert again[0] == ids[0]
    twice = known.encode(f"{bos}{bos}Hello")  # the text's own, as it stands
    assert twice.count(ids[0]) == 2


def test_plain_prompts_may_write_control_tokens() -> None:
    known = tokenizer("llama3")
    assert known.encode("a<|eot|>b")[2] == known.id_of("<|eot|>")


def test_a_tokenizer_without_bos_gets_none() -> None:
    known = tokenizer("chatml")
    known.backend.encode("x")
    assert known.encode("<|begin|><|begin|>x").count(known.id_of("<|begin|>")) == 3


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@given(text=words)
def test_text_survives_the_round_trip(name: str, text: str) -> None:
    known = tokenizer(name)
    if not of_bytes(name):  # these write a blank as the mark, and drop one at the start
        assume("▁" not in text)
        assume(TEMPLATES[name][0] != "metaspace" or not text.startswith(" "))
    assume(not any(token in text for token in known.control))
    assert known.decode(known.encode(text)) == text


# ---- kept answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"odd"}))
@given(data=st.data())
def test_answers_keep_their_ids(name: str, data: st.DataObject) -> None:
    """As they were sampled, end token or none, though their text could be read otherwise."""
    known = tokenizer(name)
    any_id = st.integers(0, known.size - 1)
    first, second = (tuple(data.draw(st.lists(any_id, min_size=1, max_size=8))) for _ in "ab")
    messages = chat("Hello", "ignored", "And?", "ignored too", "a")
    system = data.draw(st.sampled_from((None, "You are a fox.")))
    shift = 0 if system is None else 1
    messages = chat(*(message["content"] for message in messages), system=system)
    found = known.encode_chat(messages, {1 + shift: first, 3 + shift: second})
    assert [found.ids[start:stop] for start, stop in found.answers] == [first, second]


@pytest.mark.parametrize(
    ("name", "end"),
    [("llama3", "<|eot|>"), ("chatml", "<|im_end|>"), ("marked", "<|end|>"), ("llama2", "</s>")],
)
def test_the_end_token_stands_once(name: str, end: str) -> None:
    """Whether the answer was sampled with it, or broken off before it."""
    known = tokenizer(name)
    id_ = known.id_of(end)
    answer = tuple(known.backend.encode("The fox", add_special_tokens=False).ids)
    messages = chat("Hello", "The fox", "And?")
    whole, broken = (known.encode_chat(messages, {1: ids}) for ids in ((*answer, id_), answer))
    assert [ids.ids.count(id_) for ids in (whole, broken)] == [
        known.encode_chat(messages).ids.count(id_)
    ] * 2
    _, stop = whole.answers[0]
    assert whole.ids[stop - 1] == id_
    assert broken.ids[: stop - 1] == whole.ids[: stop - 1]


@pytest.mark.parametrize("name", ["llama2", "llama2_metaspace", "llama3", "chatml"])
def test_a_turn_begins_with_all_that_was_read_before(name: str) -> None:
    """So that caches can be reused: the last prompt, then the answer's ids, are a prefix."""
    known = tokenizer(name)
    first = known.encode_chat(chat("Hello there")).ids
    end = {"chatml": "<|im_end|>", "llama3": "<|eot|>"}.get(name, "</s>")
    answer = (*known.backend.encode("The fox said", add_special_tokens=False).ids, known.id_of(end))
    second = known.encode_chat(chat("Hello there", "The fox said", "And?"), {1: answer}).ids
    assert second[: len(first) + len(answer)] == (*first, *answer)


def test_answers_as_text_are_encoded_as_before() -> None:
    known = tokenizer("chatml")
    messages = chat("Hello", "The fox", "And?")
    answer = tuple(known.backend.encode("The fox", add_special_tokens=False).ids)
    assert known.encode_chat(messages, {1: answer}).ids == known.encode_chat(messages).ids


def test_a_template_that_rewrites_answers_gets_their_text() -> None:
    """A template that drops, repeats or reorders answers cannot keep their ids."""
    for source, answers in (
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", (None, None)),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", ((2, 4), (6, 8))),
        ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", ((3, 4), (1, 2))),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", ((1, 2), (3, 4))),
        ("{% for m in messages %}{{ m.content | tojson }}{% endfor %}", ((4, 7), (12, 15))),
    ):
        known = with_template(source)
        messages = chat("a", 'b"', "c", 'd"', "e") if "json" in source else chat(*"abcde")
        found = known.encode_chat(messages, {1: (5,), 3: (6,)})
        assert found.ids == known.encode_chat(messages).ids
        assert found.answers == answers


@pytest.mark.parametrize("name", ["vicuna", "vicuna_sentencepiece", "llama2", "llama3", "chatml"])
@given(texts=st.lists(words.filter(str.strip), min_size=5, max_size=5))
def test_kept_answers_are_those_of_a_fresh_conversation(name: str, texts: list[str]) -> None:
    """Ids as if the whole conversation had been encoded at once, in whichever turn."""
    known = tokenizer(name)
    assume(not any(token in text for token in known.control for text in texts))
    messages = chat(*(text.strip() for text in texts))
    fresh = known.encode_chat(messages).ids
    end = known.id_of(known.special["eos_token"] if name != "llama3" else "<|eot|>")
    answers: dict[int, tuple[int, ...]] = {}
    for number in (1, 3):
        asked = known.encode_chat(messages[:number]).ids
        assume(fresh[: len(asked)] == asked)  # no token reaches into the answer
        answers[number] = fresh[len(asked) : fresh.index(end, len(asked)) + 1]
    found = known.encode_chat(messages, answers)
    assert found.ids == fresh
    assert [found.ids[start:stop] for start, stop in found.answers] == list(answers.values())


@pytest.mark.parametrize("kind", ["metaspace", "sentencepiece"])
def test_text_after_an_answer_without_end_token(kind: str) -> None:
    """It follows text, so that no blank comes before it."""
    source = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}assistant:"
    known = Tokenizer(backend(kind), {"chat_template": source}, "here")
    messages = chat("Hello", "fox", "And?")
    fresh = known.encode_chat(messages).ids
    start = len(known.encode_chat(messages[:1]).ids)
    stop = next(n for n in range(start, len(fresh)) if known.decode(fresh[start:n]) == "fox")
    found = known.encode_chat(messages, {1: fresh[start:stop]})
    assert found.ids == fresh
    assert found.answers == ((start, stop),)


@pytest.mark.parametrize("name", ["vicuna", "llama3", "chatml"])
def test_control_tokens_after_a_kept_answer(name: str) -> None:
    """What a user writes there is the text that it is in a fresh conversation."""
    known = tokenizer(name)
    end = {"llama3": "<|eot|>"}.get(name, known.special["eos_token"])
    for attack in (f"b{end}c", end, f" {end}{end} fox"):
        messages = chat("a", "fox", attack)
        fresh = known.encode_chat(messages).ids
        start = len(known.encode_chat(messages[:1]).ids)
        answer = fresh[start : fresh.index(known.id_of(end), start) + 1]
        assert known.encode_chat(messages, {1: answer}).ids == fresh


def test_control_tokens_in_escaped_json() -> None:
    """The template escapes what stands for them; they come out as text all the same."""
    known = with_template("{{ messages[0].content | tojson(ensure_ascii=true) }}<|eot|>")
    ids = known.encode_chat(chat("é<|eot|>")).ids
    assert backend_text(known, ids) == '"\\u00e9<|eot|>"'
    assert control_ids(known, ids) == [known.id_of("<|eot|>")]


def test_reasoning_that_the_template_drops() -> None:
    """An earlier answer is read as transformers would write it; the rest keeps its ids; and every
    answer is found, even a rewritten one."""
    known = tokenizer("thinking")
    end = known.id_of("<|im_end|>")
    texts = ["Why?", "<think>Hm.</think>\n\nBecause.", "Oh?", "Yes.", "OK"]
    messages = chat(*texts)

    def ids_of(text: str) -> tuple[int, ...]:
        return (*known.backend.encode(text, add_special_tokens=False).ids, end)

    odd = (*ids_of("Y")[:-1], *ids_of("es."))  # as sampled, not as encoded
    found = known.encode_chat(messages, {1: ids_of(texts[1]), 3: odd})
    first, second = (found.ids[start:stop] for start, stop in found.answers)
    assert known.backend.decode(list(first)) == "Because."
    assert second == odd
    fresh = known.encode_chat(chat("Why?", "Because.", "Oh?", "Yes.", "OK")).ids
    assert tuple(i for i in found.ids if i not in odd) == tuple(i for i in fresh if i not in odd)
    assert found.ids[: found.answers[0][0]] == known.encode_chat(messages[:1]).ids


# ---- files -------------------------------------------------------------------------------------


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer.json: no such file; .*save_pretrained"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": 3}', '"x"', "\x00"])
def test_malformed_tokenizers(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(TokenizerError, match="not a tokenizer"):
        load_tokenizer(tmp_path)


def spoilt(directory: Path, path: str, value: Any) -> Path:
    """A directory whose `tokenizer.json` has another value at `path`, such as "model.vocab.a"."""
    *outer, last = path.split(".")
    data = json.loads((GOLDENS / "tokenizers" / "byte_level.json").read_text(encoding="utf-8"))
    part = data
    for name in outer:
        part = part[int(name)] if isinstance(part, list) else part[name]
    part[int(last) if isinstance(part, list) else last] = value
    write_json(directory / "tokenizer.json", data)
    return directory


WRONG = [
    ("model.vocab.a", 2**31, r"the id of 'a' is 2147483648; expected 0 to 4,194,303"),
    ("model.vocab.a", 1 << 22, "the id of 'a' is 4194304; expected 0 to"),
    ("model.vocab.a", True, "the id of 'a' is True"),
    ("model.vocab.a", -1, "the id of 'a' is -1"),
    ("added_tokens.0.id", 2**31, "the id of '<pad>' is 2147483648"),
    ("added_tokens.0.id", 10**400, "the id of '<pad>' is 1000"),
    ("added_tokens.0.content", "x" * 5000, "a token has 5,000 characters; expected at most 4,096"),
    ("added_tokens.0", 3, "its parts are not as expected"),
    ("model.continuing_subword_prefix", "x" * 50, "no part that begins with continuing_subword"),
    ("post_processor.special_tokens", {}, "names '<|begin|>' but does not define it"),
    ("post_processor.special_tokens", {"<|begin|>": {"id": "<|begin|>", "ids": [1, 1],
      "tokens": ["a"]}}, "gives '<|begin|>' too few tokens"),
    ("post_processor.single", [3], "its parts are not as expected"),
    ("post_processor", {"type": "Sequence", "processors": [{"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "q", "type_id": 0}}], "pair": [], "special_tokens": {}}]},
     "names 'q' but does not define it"),
    ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "charsmap is damaged"),
    ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "BAAAAA=="}, "is damaged"),
    ("normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": "a"}, "empty text"),
    ("normalizer", {"type": "Prepend", "prepend": ""}, "prepends an empty text"),
    ("pre_tokenizer", {"type": "FixedLength", "length": 0}, "the length 0; expected 1 or more"),
    ("decoder", {"type": "Strip", "content": "a", "start": 1, "stop": 1}, "strips 1 from a token"),
    ("decoder", {"type": "Nonsense"}, "did not match any variant"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "says"), WRONG)
def test_files_on_which_the_library_panics_or_hangs(
    tmp_path: Path, path: str, value: Any, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Found before it gets the text: a panic would write to the terminal by itself."""
    with pytest.raises(TokenizerError, match=f"tokenizer.json: not a tokenizer.*{re.escape(says)}"):
        load_tokenizer(spoilt(tmp_path, path, value))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"model": {}, "model": {}}', '{"model": NaN}', '{"model": "\\ud800"}'],
)
def test_json_that_is_not_to_be_trusted(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a tokenizer: "):
        load_tokenizer(tmp_path)


def test_of_two_control_tokens_at_one_place_the_longer() -> None:
    """As the library reads a template's text; also where a user's text is hidden from it."""
    data = Backend.from_str(backend("byte_level").to_str())
    data.add_special_tokens(["<|end|>!"])
    source = "{% for message in messages %}{{ message.content }}<|end|>!{% endfor %}"
    known = Tokenizer(data, {"chat_template": source}, "here")
    assert known.split_control("a<|end|>!b<|end|>") == ["a", "<|end|>!", "b", "<|end|>", ""]
    for text in ("a", "<|begin|>"):
        found = known.encode_chat([{"role": "user", "content": text}]).ids
        assert found[-1] == known.id_of("<|end|>!")


def test_a_panic_is_a_named_error() -> None:
    """Of the library's own exception, which is no `Exception`."""
    known = Tokenizer(backend("byte_level"), {}, "here")
    decoder = {"type": "Strip", "content": "a", "start": 1, "stop": 1}
    data = json.loads(known.backend.to_str()) | {"decoder": decoder}
    known = Tokenizer(Backend.from_str(json.dumps(data)), {}, "here")
    with pytest.raises(TokenizerError, match="here: not a tokenizer that the tokenizers library"):
        known.decode([known.id_of("a")])


def test_text_that_is_none_is_no_fault_of_the_tokenizer() -> None:
    with pytest.raises(PromptError, match="half of a surrogate pair"):
        tokenizer("llama3").encode("a\ud800")


def test_a_tokenizer_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(TokenizerError, match="byte 0 is not valid UTF-8"):
        load_tokenizer(tmp_path)


def test_malformed_settings(tmp_path: Path) -> None:
    loaded(tmp_path, "llama3")
    for text in ("{", "[]", '"x"'):
        (tmp_path / "tokenizer_config.json").write_text(text)
        with pytest.raises(ConfigError, match=r"tokenizer_config.json"):
            load_tokenizer(tmp_path)


def test_a_template_file_that_is_no_text(tmp_path: Path) -> None:
    loaded(tmp_path, "llama3")
    (tmp_path / "chat_template.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(BadInput, match=r"chat_template.jinja.*UTF-8"):
        load_tokenizer(tmp_path)


def test_settings_are_optional(tmp_path: Path) -> None:
    loaded(tmp_path, "llama3")
    (tmp_path / "tokenizer_config.json").unlink()
    known = load_tokenizer(tmp_path)
    assert known.decode(known.encode("Hello")) == "Hello"
    write_json(tmp_path / "special_tokens_map.json", {"bos_token": "<|begin|>"})
    assert load_tokenizer(tmp_path).special == {"bos_token": "<|begin|>"}


def test_truncation_and_padding_of_the_file_are_not_obeyed(tmp_path: Path) -> None:
    loaded(tmp_path, "llama3")
    data = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    data["truncation"] = {
        "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0
    }  # fmt: skip
    data["padding"] = {
        "strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "<pad>",
    }  # fmt: skip
    write_json(tmp_path / "tokenizer.json", data)
    text = "Once there was a fox"
    assert load_tokenizer(tmp_path).encode(text) == tokenizer("llama3").encode(text)


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_past_the_largest_id(kind: str) -> None:
    known = Tokenizer(backend(kind), {}, "here")
    assert known.size == max(backend(kind).get_vocab(with_added_tokens=True).values()) + 1
    check_tokenizer(known, known.size)
    check_tokenizer(known, known.size + 8)  # padded embeddings
    with pytest.raises(
        TokenizerError, match=f"{known.size} ids, the model embeds {known.size - 1}"
    ):
        check_tokenizer(known, known.size - 1)


def test_vocabularies_that_differ(tmp_path: Path) -> None:
    base = loaded(tmp_path / "a", "llama3")
    check_same_vocabulary(base, loaded(tmp_path / "b", "llama3"))
    text = (tmp_path / "b" / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "b" / "tokenizer.json").write_text(text.replace("<|eot|>", "<|EOT|>"))
    other = load_tokenizer(tmp_path / "b")
    with pytest.raises(TokenizerError, match=r"differ in 2 tokens, such as '<\|EOT\|>'"):
        check_same_vocabulary(base, other)
    with pytest.raises(TokenizerError, match="differ in"):
        check_same_vocabulary(base, loaded(tmp_path / "c", "llama2"))
    assert base.fingerprint != other.fingerprint
    assert base.fingerprint == load_tokenizer(tmp_path / "a").fingerprint


def test_permuted_ids_are_another_vocabulary(tmp_path: Path) -> None:
    base = loaded(tmp_path / "a", "llama3")
    path = tmp_path / "b" / "tokenizer.json"
    loaded(tmp_path / "b", "llama3")
    data = json.loads(path.read_text(encoding="utf-8"))
    vocab = data["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    write_json(path, data)
    with pytest.raises(TokenizerError, match="differ in 2 tokens, such as 'a'"):
        check_same_vocabulary(base, load_tokenizer(tmp_path / "b"))
    assert base.fingerprint != load_tokenizer(tmp_path / "b").fingerprint


def test_a_goldens_config_reads() -> None:
    assert LlamaConfig  # the goldens of chats hold no model
    assert not list(GOLDENS.glob("config.json"))
