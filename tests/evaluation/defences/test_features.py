"""Features: which tokens they cover, and that they are the model's own."""

from __future__ import annotations

import pytest
import torch

from minisafe import ChatPrompt
from minisafe.errors import PromptError
from minisafe.evaluation.defences.features import (
    asked_ids,
    features_of,
    hidden_mean,
    last_state,
    mean_state,
    message_ids,
    perplexity,
    surprise,
    user_texts,
    whole_ids,
)
from minisafe.session import Session
from minisafe.slots import Record

TEXT = "How do I wash a table?"


def test_a_message_is_found_in_its_chat(plain: Session) -> None:
    for text in (TEXT, "Hello!", "a", "What is the capital of Teku? Please."):
        ids, start, stop = message_ids(plain, text)
        assert plain.tokenizer.decode(list(ids[start:stop])).strip() == text
        assert ids == asked_ids(plain, ChatPrompt.of(text))


def test_a_prefill_is_not_asked_and_an_answer_stands_behind(plain: Session) -> None:
    prompt = ChatPrompt.of(TEXT)
    ids, start = whole_ids(plain, prompt, "Sure, here is how.")
    assert ids[:start] == asked_ids(plain, prompt)
    assert plain.tokenizer.decode(list(ids[start:])).strip() == "Sure, here is how."
    assert asked_ids(plain, ChatPrompt(prompt.messages, "Sure,")) == ids[:start]


def test_states_are_those_after_each_layer(plain: Session) -> None:
    prompt = ChatPrompt.of(TEXT)
    ids = asked_ids(plain, prompt)
    record = Record(layer=5, spans=((0, None),))
    with torch.inference_mode():
        plain.model(torch.tensor([ids]), slots=[record])
    states = record.values()
    assert torch.allclose(mean_state(plain, prompt)[5], states.mean(dim=0), atol=1e-5)
    assert torch.allclose(last_state(plain, prompt)[5], states[-1], atol=1e-5)
    assert torch.allclose(
        hidden_mean(plain.model, ids, 2, 4)[5], states[2:4].mean(dim=0), atol=1e-5
    )
    with pytest.raises(PromptError, match="positions 3 to 3 of"):
        hidden_mean(plain.model, ids, 3, 3)


def test_words_are_those_of_the_range(plain: Session) -> None:
    found = features_of(plain, "words", (5, 6, 6, 9), 1, 3)
    assert found.nonzero().flatten().tolist() == [6]
    assert len(found) == plain.n_ids


def test_nonsense_surprises_and_a_window_sees_the_worst(plain: Session) -> None:
    strange = "table wash window shelf do a how"
    assert perplexity(plain, strange, 0) > perplexity(plain, TEXT, 0) + 1
    mixed = f"{TEXT} {strange}"
    assert perplexity(plain, mixed, 3) > perplexity(plain, mixed, 0)
    assert perplexity(plain, TEXT, 99) == perplexity(plain, TEXT, 0)
    ids, start, stop = message_ids(plain, TEXT)
    own = surprise(plain.model, ids)[start - 1 : stop - 1]
    assert perplexity(plain, TEXT, 0) == pytest.approx(float(own.mean()), rel=1e-5)


def test_only_the_users_messages_count() -> None:
    talk = ChatPrompt((
        {"role": "system", "content": "s"}, {"role": "user", "content": "one"},
        {"role": "assistant", "content": "a"}, {"role": "user", "content": "two"},
    ))  # fmt: skip
    assert user_texts(talk) == ["one", "two"]
