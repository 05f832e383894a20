"""What a defence can see of a text: hidden states, token ids, and how surprised the base is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minisafe.errors import PromptError
from minisafe.model import Llama
from minisafe.session import Session
from minisafe.session.chat_prompt import ChatPrompt
from minisafe.slots import Record

FEATURES = ("hidden", "words")


@torch.inference_mode()
def hidden_mean(model: Llama, ids: Sequence[int], start: int, stop: int) -> Tensor:
    """The residual stream after every layer, averaged over positions [start, stop): (n_layers,
    hidden) float32 on the CPU. The model reads the ids without steering or an adapter."""
    if not 0 <= start < stop <= len(ids):
        raise PromptError(f"positions {start} to {stop} of {len(ids)} tokens are none")
    layers = range(model.config.n_layers)
    records = [Record(layer=layer, spans=((start, stop),)) for layer in layers]
    model(torch.tensor([list(ids)], device=model.device), slots=records, last_only=True)
    return torch.stack([record.values().float().mean(dim=0) for record in records]).cpu()


@torch.inference_mode()
def surprise(model: Llama, ids: Sequence[int]) -> Tensor:
    """Negative log-likelihood, in nats, of each id after the first, (n - 1,) on the CPU."""
    block = torch.tensor([list(ids)], device=model.device)
    said = torch.log_softmax(model(block)[0, :-1].float(), dim=-1)
    return -said.gather(1, block[0, 1:, None])[:, 0].cpu()


def asked_ids(session: Session, prompt: ChatPrompt) -> tuple[int, ...]:
    """The ids that the base reads before the answer, without its prefill."""
    encoded = session.encode_prompt(prompt, chat=True)
    return encoded.ids[0][: encoded.answers[-1][0]]


def whole_ids(session: Session, prompt: ChatPrompt, answer: str) -> tuple[tuple[int, ...], int]:
    """A conversation's ids with the whole answer behind it, and where the answer begins."""
    asked = asked_ids(session, prompt)
    return (*asked, *session.tokenizer.encode_begun(answer, asked)), len(asked)


def last_state(session: Session, prompt: ChatPrompt) -> Tensor:
    """The state from which the answer's first token is predicted, (n_layers, hidden)."""
    ids = asked_ids(session, prompt)
    return hidden_mean(session.model, ids, len(ids) - 1, len(ids))


def mean_state(session: Session, prompt: ChatPrompt) -> Tensor:
    """The mean state over the whole conversation, (n_layers, hidden)."""
    ids = asked_ids(session, prompt)
    return hidden_mean(session.model, ids, 0, len(ids))


def user_texts(prompt: ChatPrompt) -> list[str]:
    """Every message of the user's, in order."""
    return [each["content"] for each in prompt.turns if each["role"] == "user"]


def message_ids(session: Session, text: str) -> tuple[tuple[int, ...], int, int]:
    """The ids of a chat of this one message, and the range of them that is the message: what two
    other messages' chats do not have in common."""
    one, other = (asked_ids(session, ChatPrompt.of(each)) for each in ("a", "b"))
    ids = asked_ids(session, ChatPrompt.of(text))
    before = common(one, other)
    after = common(one[::-1], other[::-1])
    stop = max(before + 1, len(ids) - after)
    return ids, before, min(stop, len(ids))


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two texts begin with alike, but for the last one of the shorter text."""
    shortest = min(len(one), len(other)) - 1
    return next((n for n in range(shortest) if one[n] != other[n]), shortest)


def features_of(session: Session, kind: str, ids: Sequence[int], start: int, stop: int) -> Tensor:
    """Features of ids[start:stop] for a classifier, (f,): "hidden", the mean states of all layers;
    "words", which ids of the vocabulary occur."""
    if kind == "hidden":
        return hidden_mean(session.model, ids, start, stop).flatten()
    found = torch.zeros(session.n_ids)
    found[list(ids[start:stop])] = 1.0
    return found


def message_features(session: Session, kind: str, text: str) -> Tensor:
    """Features of one message of the user's, read alone."""
    return features_of(session, kind, *message_ids(session, text))


def answer_features(session: Session, kind: str, prompt: ChatPrompt, answer: str) -> Tensor:
    """Features of an answer, read after its conversation."""
    ids, start = whole_ids(session, prompt, answer)
    return features_of(session, kind, ids, start, len(ids))


def perplexity(session: Session, text: str, window: int) -> float:
    """Mean surprise, in nats per token (log perplexity), of one message of the user's under the
    base: of the whole, or with a window above 0 of the worst that many tokens in a row."""
    ids, start, stop = message_ids(session, text)
    found = surprise(session.model, ids)[max(0, start - 1) : max(1, stop - 1)]
    if 0 < window < len(found):
        found = found.unfold(0, window, 1).mean(dim=1)
        return float(found.max())
    return float(found.mean())
