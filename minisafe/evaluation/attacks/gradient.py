"""White box: how a beginning's likelihood under the whole defence changes with a prompt's words.

All streams read the prompt and the beginning once, with the vector and the adapters that they
answer with, and the session's rule combines them. The gate is left out: a yes or no has no
derivative. Gradients run to what the embedding gives; times the embedding's rows they say how a
whole other word would change the likelihood, to first order (Zou et al., 2023, arXiv 2307.15043).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from minisafe.errors import SettingError
from minisafe.evaluation.likelihood.scoring import Pair
from minisafe.guidance import Plain, Rule
from minisafe.lockstep import Stream, log_probs_of
from minisafe.lora import AdaptedRows
from minisafe.model import Llama
from minisafe.policy import Policy, Seen
from minisafe.session import Session


def check_white_box(session: Session) -> None:
    """Raise `SettingError` if a model of the session has no gradients."""
    for stream in session.streams:
        if stream.model.weights != "plain":
            raise SettingError(
                f"a white-box attack needs gradients, and the weights are {stream.model.weights}; "
                "use --weights plain, or leave the attack out"
            )


def word_gradient(
    session: Session, pair: Pair, words: Sequence[int], others: Sequence[int]
) -> Tensor:
    """How the negative log-likelihood of a pair's answer changes, in nats and to first order, with
    each id of `others` in the place of each word, (words, others) float32 on the CPU.

    words: the ids of words that stand next to each other in every stream's prompt; of several
    places the last. Where the rule's own derivative is not finite (a rule that forbids tokens),
    that of the steered base stands for it. Weights, their flags and the grad mode stay as they are.

    Raises `SettingError` if the words are not found, or the weights have no gradients.
    """
    check_white_box(session)
    with torch.inference_mode(False), torch.enable_grad():
        found = through(session, session.rule, pair, words, others)
        if not bool(found.isfinite().all()):
            found = through(session, Plain(), pair, words, others)
    return found


def through(
    session: Session, rule: Rule, pair: Pair, words: Sequence[int], others: Sequence[int]
) -> Tensor:
    """`word_gradient` under a rule."""
    places = [place_of(words, prompt) for prompt in pair.prompts]
    log_probs: dict[int, Tensor] = {}
    read: dict[int, tuple[Tensor, int]] = {}  # by stream: what was embedded, and its row
    for model, members in by_model(session.streams):
        with embedded(model) as kept:
            log_probs |= read_answer(session, model, members, pair)
        read |= {stream: (kept[0], row) for row, stream in enumerate(members)}
    seen = [Seen(tokens=n, variation=0.0) for n in range(len(pair.answer))]
    ordered = [log_probs[stream] for stream in range(len(session.streams))]
    final = Policy(rule).decide(seen, ordered).log_probs
    loss = -final[range(len(pair.answer)), list(pair.answer)].sum()
    leaves = list(dict.fromkeys(leaf for leaf, _ in read.values()))
    # a stream that the rule does not read has a gradient of zeros
    found = torch.autograd.grad(loss, leaves, materialize_grads=True)
    grads = dict(zip(leaves, found, strict=True))
    total = torch.zeros(len(words), len(others))
    for stream, (leaf, row) in read.items():
        model = session.streams[stream].model
        rows = model.embed_tokens(torch.tensor(list(others), device=model.device)).detach()
        along = grads[leaf][row, places[stream] : places[stream] + len(words)]
        total += (along.float() @ rows.float().T).cpu()
    return total


def by_model(streams: Sequence[Stream]) -> list[tuple[Llama, list[int]]]:
    """Each model with the numbers of the streams that share its weights."""
    found: dict[int, tuple[Llama, list[int]]] = {}
    for number, stream in enumerate(streams):
        found.setdefault(id(stream.model), (stream.model, []))[1].append(number)
    return list(found.values())


def read_answer(
    session: Session, model: Llama, members: Sequence[int], pair: Pair
) -> dict[int, Tensor]:
    """By stream, float32 log-probabilities of each token of the pair's answer, (T, n_ids)."""
    texts = [(*pair.prompts[stream], *pair.answer[:-1]) for stream in members]
    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts]).to(model.device)
    adapters = tuple(
        AdaptedRows(adapter, slice(row, row + 1))
        for row, stream in enumerate(members)
        if (adapter := session.streams[stream].adapter) is not None
    )
    steered = session.slots(0, pair.prompts, pair.answers)
    slots = [
        slot.shifted(row) for row, stream in enumerate(members) for slot in steered.get(stream, ())
    ]
    logits = model(ids, counts=tuple(map(len, texts)), slots=slots, adapters=adapters)
    found = {}
    for row, stream in enumerate(members):
        start = len(pair.prompts[stream]) - 1
        said = logits[row, start : start + len(pair.answer), : session.n_ids]
        found[stream] = log_probs_of(said)
    return found


@contextmanager
def embedded(model: Llama) -> Iterator[list[Tensor]]:
    """Until it closes, what the model's embedding gives is kept, and is what gradients run to."""
    kept: list[Tensor] = []

    def keep(module: object, given: object, x: Tensor) -> Tensor:
        kept.append(x.detach().requires_grad_())
        return kept[-1]

    handle = model.embed_tokens.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def place_of(words: Sequence[int], prompt: Sequence[int]) -> int:
    """Where these ids stand in a prompt, the last time. Raises `SettingError`."""
    n, wanted = len(words), list(words)
    for start in range(len(prompt) - n, -1, -1):
        if list(prompt[start : start + n]) == wanted:
            return start
    raise SettingError(
        f"{n} inserted words are not {n} ids in the prompt: the chat template or the tokenizer "
        "changes them; leave the white-box attacks out"
    )
