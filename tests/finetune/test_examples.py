"""Conversations as ids and labels, under templates that make it easy and such that do not."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken

from minisafe.errors import PromptError
from minisafe.finetune import IGNORED, Example, batches, encode_all, encode_examples
from minisafe.tokenizer import Message, Tokenizer
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.worlds import TEMPLATES as COMMON
from tests.support.worlds import tokenizer

TOKENIZER = byte_tokenizer()


def talk(*texts: str, system: str | None = None) -> list[Message]:
    """Questions and answers by turns."""
    said: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return said + [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


def test_only_answers_and_their_end_tokens_are_labels() -> None:
    said = talk("hi", "yo", "x", "zz", system="s")
    (example,) = encode_examples(TOKENIZER, said)
    assert example.ids == TOKENIZER.encode_chat(said, None, generation_prompt=False).ids
    learned = [id_ for id_ in example.labels if id_ != IGNORED]
    end = TOKENIZER.id_of("</s>")
    assert learned == [*TOKENIZER.encode("yo"), end, *TOKENIZER.encode("zz"), end]
    assert all(a in (b, IGNORED) for a, b in zip(example.labels, example.ids, strict=True))
    assert len(example.cut(5).ids) == len(example.cut(5).labels) == 5


@pytest.mark.parametrize("begun", ["Sure, ", ""])
def test_what_an_answer_is_given_to_begin_with_is_read_as_in_decoding_and_not_learned(
    begun: str,
) -> None:
    """Nor are earlier answers: they may be a faked history."""
    said = talk("hi", "yo", "x", "zz", system="s")
    given: list[Message] = [*said[:-1], {**said[-1], "prefill": begun}]
    (example,) = encode_examples(TOKENIZER, given)
    asked = TOKENIZER.encode_chat(said[:-1]).ids
    answer = (*TOKENIZER.encode("zz"), TOKENIZER.id_of("</s>"))
    assert example.ids == (*asked, *TOKENIZER.encode_begun(begun, asked), *answer)
    assert example.labels == (IGNORED,) * (len(example.ids) - len(answer)) + answer


def test_the_end_of_an_answer_that_breaks_off_is_not_learned() -> None:
    said = talk("hi", "yo", "x", "zz")
    (whole,) = encode_examples(TOKENIZER, [*said[:-1], {**said[-1], "prefill": "a"}])
    (cut,) = encode_examples(TOKENIZER, [*said[:-1], {**said[-1], "prefill": "a", "cut": "true"}])
    assert (cut.ids, cut.labels) == (whole.ids[:-1], whole.labels[:-1])
    assert whole.ids[-1] == TOKENIZER.id_of("</s>")


def test_a_conversation_without_an_answer_is_refused() -> None:
    with pytest.raises(PromptError, match="must end with an answer"):
        encode_examples(TOKENIZER, talk("hi"))
    with pytest.raises(PromptError, match=r"conversation 2: .* must end with an answer"):
        encode_all(TOKENIZER, [talk("hi", "yo"), talk("hi")], 64)


def test_what_is_cut_off_before_its_answer_is_left_out_and_counted() -> None:
    """`<s><|user|>hi<|assistant|>yo</s>`: the answer's first token is the sixth."""
    short, long = talk("hi", "yo"), talk("a longer question", "yo")
    kept, left_out = encode_all(TOKENIZER, [short, long], 8)
    assert (len(kept), left_out) == (1, 1)
    assert kept[0].learned == 3
    assert encode_all(TOKENIZER, [short], 6)[0][0].learned == 1
    with pytest.raises(PromptError, match=r"max_length 5, .* expected 6 or more"):
        encode_all(TOKENIZER, [short, long], 5)


# ---- templates that do not write a growing text ------------------------------------------------

# the generation prompt opens a thought; earlier thoughts are dropped
THINKS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "<|assistant|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}"
    "{% else %}<|{{ m.role }}|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
# ChatML of the same habit, with a line break behind every turn
THINKS_IN_LINES = (
    "{% for m in messages %}{% set text = m.content.split('</think>')[-1].lstrip('\n') if m.role =="
    " 'assistant' else m.content %}<|{{ m.role }}|>\n{{ text }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n<think>\n{% endif %}"
)
# the system prompt stands in the last turn, and only if that is the user's
SYSTEM_LAST = (
    "{{ bos_token }}"
    "{% set system = messages[0].content if messages[0].role == 'system' else none %}"
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>"
    "{% if loop.last and system %}{{ system }}\n\n{% endif %}{{ m.content }}<|assistant|>"
    "{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
# the last answer gets an empty thought, those before it none
EMPTY_THOUGHT = (
    "{% for m in messages %}<|{{ m.role }}|>\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content.split('</think>')[-1] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# a text that is not asked on ends in one more token
ENDS_TWICE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}<s>{% endif %}"
)


def known(template: str, thinks: bool = False) -> Tokenizer:
    """The byte tokenizer with another template; `thinks`: with the tags of a thought as tokens."""
    backend = byte_tokenizer().backend
    if thinks:
        tags = [
            AddedToken(text, normalized=False, special=False) for text in ("<think>", "</think>")
        ]
        backend.add_tokens(tags)
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    return Tokenizer(backend, settings, "bytes")


def parts(own: Tokenizer, example: Example) -> tuple[str, str]:
    """The text that is asked and the text that is learned, control tokens included."""
    start = next(n for n, label in enumerate(example.labels) if label != IGNORED)
    assert example.labels[start:] == example.ids[start:]
    shown = [own.backend.decode(list(ids), skip_special_tokens=False)
             for ids in (example.ids[:start], example.ids[start:])]  # fmt: skip
    return shown[0], shown[1]


@pytest.mark.parametrize(
    ("template", "said", "expected"),
    [
        (THINKS, talk("hi", "yo"), [("<s><|user|>hi<|assistant|><think>\n", "yo</s>")]),
        (
            THINKS,
            talk("hi", "<think>\nhm\n</think>\n\nyo", "x", "z"),
            [
                ("<s><|user|>hi<|assistant|><think>\n", "hm\n</think>\n\nyo</s>"),
                ("<s><|user|>hi<|assistant|>\n\nyo</s><|user|>x<|assistant|><think>\n", "z</s>"),
            ],
        ),
        (
            THINKS_IN_LINES,
            talk("hi", "yo", system="s"),
            [("<|system|>\ns</s>\n<|user|>\nhi</s>\n<|assistant|>\n<think>\n", "yo</s>\n")],
        ),
        (
            SYSTEM_LAST,
            talk("hi", "yo", "x", "z", system="s"),
            [
                ("<s><|user|>s\n\nhi<|assistant|>", "yo</s>"),
                ("<s><|user|>hi<|assistant|>yo</s><|user|>s\n\nx<|assistant|>", "z</s>"),
            ],
        ),
        (
            EMPTY_THOUGHT,
            talk("hi", "yo", "x", "z"),
            [
                ("<|user|>\nhi</s>\n<|assistant|>\n", "<think>\n\n</think>\n\nyo</s>\n"),
                (
                    "<|user|>\nhi</s>\n<|assistant|>\nyo</s>\n<|user|>\nx</s>\n<|assistant|>\n",
                    "<think>\n\n</think>\n\nz</s>\n",
                ),
            ],
        ),
        (
            ENDS_TWICE,
            talk("hi", "yo", "x", "z"),
            [
                ("<|user|>\nhi</s>\n<|assistant|>\n", "yo</s>\n<s>"),
                (
                    "<|user|>\nhi</s>\n<|assistant|>\nyo</s>\n<|user|>\nx</s>\n<|assistant|>\n",
                    "z</s>\n<s>",
                ),
            ],
        ),
    ],
)
@pytest.mark.parametrize("thinks", [False, True])
def test_each_answer_stands_behind_the_prompt_that_asks_for_it(
    template: str, said: list[Message], expected: list[tuple[str, str]], thinks: bool
) -> None:
    own = known(template, thinks)
    examples = encode_examples(own, said)
    assert [parts(own, example) for example in examples] == expected
    places = [n for n, message in enumerate(said) if message["role"] == "assistant"]
    for place, example in zip(places, examples, strict=True):
        asked = own.encode_chat(said[:place]).ids  # just as at inference
        assert example.ids[: len(asked)] == asked
        assert set(example.labels[: len(asked)]) == {IGNORED}


def test_control_tokens_that_are_spelled_out_stay_text_where_an_answer_is_appended() -> None:
    own = known(THINKS)
    (example,) = encode_examples(own, talk("</s>", "a</s>b"))
    end = own.id_of("</s>")
    assert example.ids.count(end) == 1
    assert example.ids[-1] == end


@pytest.mark.parametrize("name", [name for name in COMMON if name not in ("marked", "odd")])
def test_common_templates_write_growing_texts(name: str) -> None:
    own = tokenizer(name)
    said = talk("Who is there?", "A red fox.", "Where?", "In the old town.")
    (example,) = encode_examples(own, said)
    assert example.ids == own.encode_chat(said, generation_prompt=False).ids
    learned = own.decode([id_ for id_ in example.labels if id_ != IGNORED])
    assert "red fox" in learned
    assert "Where" not in learned


@pytest.mark.parametrize(
    "template",
    [
        THINKS.replace("{{ m.content.split('</think>')[-1] }}", "ok"),
        THINKS.replace("{{ m.content.split('</think>')[-1] }}", "{{ m.content }}{{ m.content }}"),
    ],
)
def test_a_template_that_does_not_write_the_answer_is_refused(template: str) -> None:
    with pytest.raises(PromptError, match="does not write the last answer once"):
        encode_examples(known(template), talk("hi", "yo"))


def test_an_answer_that_grows_together_with_its_prompt_is_refused() -> None:
    """A token that reaches from one into the other would be learned from half of itself."""
    own = known(THINKS.replace("<think>\n{% endif", "<think>-{% endif"))
    own.backend.add_tokens([AddedToken("-yo", normalized=False, special=False)])
    with pytest.raises(PromptError, match="changes the prompt"):
        encode_examples(own, talk("hi", "yo"))
    assert encode_examples(own, talk("hi", "oh -yo"))


# ---- batches -----------------------------------------------------------------------------------


def test_batches_show_every_example_once_an_epoch_and_skip_what_was_seen() -> None:
    examples = [Example((n,), (n,)) for n in range(6)]
    source = batches(examples, 2, seed=3, skip=0)
    seen = [next(source) for _ in range(6)]
    for epoch in (seen[:3], seen[3:]):
        assert sorted(each.ids[0] for batch in epoch for each in batch) == list(range(6))
    assert seen[:3] != seen[3:]
    assert next(batches(examples, 2, seed=3, skip=4)) == seen[4]
