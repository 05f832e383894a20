"""A method's scores for given answers: log-likelihoods, and changes to the base's choices.

The answer is known, so no step waits for the one before it (teacher forcing): every stream reads
the prompt and then the answer in blocks. At each token, the result is the same as in decoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minisafe.divergence import kl
from minisafe.errors import PromptError, SettingError
from minisafe.evaluation.likelihood.shared import read_shared
from minisafe.lockstep import Lockstep, Stream, log_probs_of
from minisafe.lora import AdaptedRows
from minisafe.policy import Policy, Seen
from minisafe.session import Session
from minisafe.session.chat_prompt import ChatPrompt
from minisafe.slots import Slot
from minisafe.tokenizer import Message, Tokenizer

Text = str | Sequence[int]  # text, or its token ids
Where = list[tuple[int, int]]  # for each token its row in a batch, and its index in the answer
WIDEST = 256  # most answer tokens of a text per forward
LOGITS = 1 << 25  # most logits per forward: 128 MiB in float32


@dataclass(frozen=True)
class Pair:
    """A prompt, by stream as in `engine.Request`, and the answer to score, both as token ids.
    gated: whether the session's gate may act, as there. answers: where answers stand in the base's
    prompt, as for `Session.spans`. left: whether the answer was left to the base before it."""

    prompts: tuple[tuple[int, ...], ...]
    answer: tuple[int, ...]
    gated: bool = False
    answers: tuple[tuple[int, int | None], ...] | None = None
    left: bool = False


@dataclass(frozen=True, eq=False)
class Scored:
    """A method's scores for an answer of T tokens. The tensors are float32 or bool, on the CPU.

    log_probs: (T,) of the answer's tokens under the method. plain_log_probs: (T,) under the base
    without steering or guidance. changed: (T,) whether the method's likeliest token differs from
    that base's. kl: (T,) KL(method || that base) in nats. greedy: whether every token is the
    method's likeliest, so that greedy decoding would give this answer.
    """

    ids: tuple[int, ...]
    log_probs: Tensor
    plain_log_probs: Tensor
    changed: Tensor
    kl: Tensor
    greedy: bool

    @property
    def total(self) -> float:
        """The answer's log-likelihood under the method, in nats."""
        return float(self.log_probs.double().sum())


@dataclass(frozen=True)
class Changes:
    """A method's changes to the base over `tokens` answer tokens: the share of tokens at which the
    likeliest token differs, and the mean KL(method || unsteered base) in nats."""

    share_changed: float
    mean_kl: float
    tokens: int


def score(
    session: Session,
    contexts: Sequence[Text],
    continuations: Sequence[Text],
    chat: bool = False,
    batch_size: int = 8,
) -> list[Scored]:
    """Score each continuation after its context, under the session's steering, guidance and gate.

    Args:
        contexts: texts, or token ids without changes. `chat` puts a text into the chat template,
            and what is scored is what the session would read of it: a part alone, if it would
            answer that, and the base if it would leave the answer to the base.
        continuations: texts or token ids; see `encode_pair` for where a text's ids begin.
        batch_size: texts per batch; it does not change results.

    Raises:
        PromptError: a text is empty or exceeds the context, or an id is not in the vocabulary.
        SettingError: their numbers differ, or batch_size is below 1.
    """
    both = paired(contexts, continuations)
    return score_pairs(session, encode_pairs(session, both, chat, batch_size), batch_size)


def changes(
    session: Session,
    prompts: Sequence[str],
    answers: Sequence[Text],
    chat: bool = True,
    batch_size: int = 8,
) -> Changes:
    """The changes of the session's method to the base along answers, such as `Result.tokens`.

    An answer without tokens does not count; raises `PromptError` if none has any.
    """
    both = answered(prompts, answers)
    scored = score_pairs(session, encode_pairs(session, both, chat, batch_size), batch_size)
    changed = torch.cat([each.changed for each in scored]).double()
    moved = torch.cat([each.kl for each in scored]).double()
    return Changes(changed.mean().item(), moved.mean().item(), len(moved))


@dataclass(frozen=True)
class Surprise:
    """How much a method is surprised by answers. nll: mean negative log-likelihood in nats per
    token, infinite if it makes one impossible. tokens: how many."""

    nll: float
    tokens: int


def surprise(
    session: Session, prompts: Sequence[str], answers: Sequence[Text], batch_size: int = 8
) -> Surprise:
    """A method's mean negative log-likelihood of given answers in a chat, such as the base's.

    An answer without tokens does not count; raises `PromptError` if none has any.
    """
    both = answered(prompts, answers)
    scored = score_pairs(session, encode_pairs(session, both, True, batch_size), batch_size)
    found = torch.cat([each.log_probs for each in scored]).double()
    return Surprise(-found.mean().item(), len(found))


def answered(prompts: Sequence[str], answers: Sequence[Text]) -> list[tuple[Text, Text]]:
    """The prompts with an answer that has tokens; raises `PromptError` if there is none."""
    both = [(prompt, answer) for prompt, answer in paired(prompts, answers) if answer]
    if not both:
        raise PromptError("no answer has a token; expected at least one answer with tokens")
    return both


def paired(contexts: Sequence[Text], answers: Sequence[Text]) -> list[tuple[Text, Text]]:
    """Each context with its continuation."""
    if isinstance(contexts, str) or isinstance(answers, str):
        raise PromptError("got a single text; expected lists of contexts and continuations")
    if len(contexts) != len(answers):
        raise SettingError(
            f"{len(contexts)} contexts, {len(answers)} continuations; expected as many"
        )
    return list(zip(contexts, answers, strict=True))


def encode_pair(session: Session, context: Text, continuation: Text, chat: bool = False) -> Pair:
    """Ids of a context, by stream, and of its continuation. Raises `PromptError`.

    Two texts are encoded as one and split at the end of the context. Without `chat`, blanks at the
    end of a context go to the continuation, because most tokenizers join a blank to the next word.
    This is the convention of lm-evaluation-harness, so numbers are comparable. If the context is
    given as ids, the continuation is encoded alone.
    """
    if isinstance(context, str):
        if isinstance(continuation, str) and not chat and context.strip():
            kept = context.rstrip()
            context, continuation = kept, context[len(kept) :] + continuation
        prompts = session.encode(context, chat)
        if not isinstance(continuation, str):
            return Pair(prompts, tuple(continuation), chat)
        if chat:
            system = session.settings.system
            first: list[Message] = [{"role": "system", "content": system}] if system else []
            before = session.tokenizer.render([*first, {"role": "user", "content": context}])
            return Pair(prompts, following(session.tokenizer, before, continuation), True)
        answer = session.tokenizer.encode(context + continuation)[len(prompts[0]) :]
        return Pair(prompts, tuple(answer) or following(session.tokenizer, "", continuation))
    if chat:
        raise PromptError("got token ids for the chat template; expected a text")
    if not session.one_text:
        raise PromptError(
            "the expert reads another system prompt, so ids are not enough; give texts, chat=True"
        )
    if isinstance(continuation, str):
        continuation = following(session.tokenizer, "", continuation)
    return Pair((tuple(context),) * len(session.streams), tuple(continuation))


def encode_pairs(
    session: Session, both: Sequence[tuple[Text, Text]], chat: bool, batch_size: int
) -> list[Pair]:
    """Contexts and continuations as they are scored: `encode_pair`, but in a chat of which messages
    are read alone too, what the session answers."""
    if not chat or session.alone is None:
        return [encode_pair(session, *each, chat) for each in both]
    for context, _ in both:
        if not isinstance(context, str):
            raise PromptError("got token ids for the chat template; expected a text")
    prompts = [ChatPrompt.of(str(context)) for context, _ in both]
    return begun_pairs(session, prompts, [answer for _, answer in both], batch_size)


def begun_pairs(
    session: Session,
    prompts: Sequence[ChatPrompt],
    beginnings: str | Sequence[Text],
    batch_size: int = 8,
    whole: bool = False,
) -> list[Pair]:
    """Conversations and the beginning of each one's answer, as they are scored. beginnings: one for
    all, or one each. whole: as they are written; otherwise as they are answered
    (`Session.encode_prompts`)."""
    if isinstance(beginnings, str):
        beginnings = [beginnings] * len(prompts)
    if whole:
        found = [session.encode_prompt(prompt, chat=True) for prompt in prompts]
    else:
        found = session.encode_prompts(prompts, chat=True, batch_size=batch_size)
    pairs = []
    for encoded, text in zip(found, beginnings, strict=True):
        begun: Sequence[int]
        if isinstance(text, str):
            begun = session.tokenizer.encode_begun(text, encoded.ids[0])
        else:
            begun = text
        pairs.append(Pair(encoded.ids, tuple(begun), encoded.gated, encoded.answers, encoded.left))
    return pairs


def following(tokenizer: Tokenizer, before: str, text: str) -> tuple[int, ...]:
    """Ids of `text` after `before`, split from the ids of both, without the tokenizer's own tokens.
    A text that fully merges into the token before it is encoded alone."""

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.backend.encode(text, add_special_tokens=False).ids)

    return encode(before + text)[len(encode(before)) :] or encode(text)


# ---- pairs to scores ---------------------------------------------------------------------------


@torch.inference_mode()
def score_pairs(
    session: Session, pairs: Sequence[Pair], batch_size: int = 8, lean: bool = False
) -> list[Scored]:
    """`score` for pairs of ids. Texts that differ only in their last token are read once.

    lean: for log-probabilities under the method alone, in less time: what all prompts of a batch
    begin with is read once, and without a gate the steered base stands for the unsteered one in
    all else that is scored.
    """
    if batch_size < 1:
        raise SettingError(f"batch_size is {batch_size}; expected 1 or more")
    same: dict[Pair, list[int]] = {}
    for number, pair in enumerate(pairs):
        check_pair(session, pair, number)
        same.setdefault(replace(pair, answer=pair.answer[:-1]), []).append(number)
    texts = sorted(same, key=lambda text: len(text.prompts[0]) + len(text.answer))
    numbers: list[int] = []  # for each token, the number of its pair
    values = [torch.empty(5, 0)]  # (5, tokens) per block
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        for said in read_batch(session, batch, lean):
            found = [(n, pair) for n, (row, _) in enumerate(said.at) for pair in same[batch[row]]]
            ids = [pairs[pair].answer[said.at[n][1]] for n, pair in found]
            values.append(said.about([n for n, _ in found], ids))
            numbers += [pair for _, pair in found]
    # blocks are in the answers' order, so a stable sort groups each pair's tokens
    order = torch.tensor(numbers, dtype=torch.long).argsort(stable=True)
    lengths = [len(pair.answer) for pair in pairs]
    by_pair = torch.split(torch.cat(values, dim=1)[:, order], lengths, dim=1)
    return [
        Scored(pair.answer, row[0], row[1], row[2].bool(), row[3], bool(row[4].all()))
        for pair, row in zip(pairs, by_pair, strict=True)
    ]


def check_pair(session: Session, pair: Pair, number: int) -> None:
    """Raise `PromptError` for a pair that cannot be scored."""
    if not pair.answer or not all(pair.prompts):
        empty = "context" if pair.answer else "continuation"
        raise PromptError(f"{empty} {number} is empty; expected at least one token")
    limit = session.limit
    longest = max(map(len, pair.prompts)) + len(pair.answer)
    if longest - 1 > limit:  # the last token is predicted, not read
        raise PromptError(
            f"context {number} and its continuation have {longest} tokens; expected at most "
            f"{limit + 1}, the model's context and one token that follows it"
        )
    for id_ in set(pair.answer).union(*pair.prompts):
        if not 0 <= id_ < session.n_ids:
            raise PromptError(f"text {number} has the id {id_}; expected 0 to {session.n_ids - 1}")


@dataclass(frozen=True)
class Said:
    """Predictions of n next tokens: log-probabilities, (n, n_ids) each, under the method and under
    the unsteered base."""

    at: Where
    final: Tensor
    plain: Tensor

    def about(self, index: list[int], ids: list[int]) -> Tensor:
        """(5, m) on the CPU, for m of the tokens: the fields of `Scored`, in order."""
        best = self.final.argmax(dim=-1)
        changed = (best != self.plain.argmax(dim=-1)).float()
        moved = kl(self.final, self.plain).clamp(min=0)
        at, id_ = torch.tensor([index, ids], dtype=torch.long, device=best.device)
        noted = self.final[at, id_], self.plain[at, id_], changed[at], moved[at], best[at] == id_
        return torch.stack([each.float() for each in noted]).cpu()


def read_batch(session: Session, texts: Sequence[Pair], lean: bool = False) -> Iterator[Said]:
    """Read a batch of texts: the predictions after every prompt, then after every answer token."""
    # without steering, the base is the unsteered base
    may_leave = session.gate is not None or any(text.left for text in texts)
    needed = session.steering is not None and (not lean or may_leave)
    plain = [Stream(session.model)] if needed else []
    prompts = [[text.prompts[stream] for text in texts] for stream in range(len(session.streams))]
    prompts += [prompts[0] for _ in plain]
    slots: list[list[Slot]] = [[] for _ in prompts]
    for row, text in enumerate(texts):
        for stream, its in session.slots(row, text.prompts, text.answers).items():
            slots[stream] += its
    longest = max(len(prompt) + len(text.answer) for text in texts for prompt in text.prompts)
    streams, held = [*session.streams, *plain], session.settings.cache_dtype
    lockstep = Lockstep(streams, len(texts), longest, session.n_ids, cache_dtype=held)
    if lean:
        read_shared(session, lockstep, prompts, texts)
    read = [lockstep.length(stream, 0) for stream in range(len(prompts))]
    rest = [[ids[n:] for ids in rows] for rows, n in zip(prompts, read, strict=True)]
    found = lockstep.feed(rest, slots)
    first = tuple(each for each in found if each is not None)
    policy = Policy(session.rule, session.gate)
    seen = policy.look(
        [Seen(gated=text.gated, left_to_base=text.left) for text in texts],
        first[: len(session.streams)],
    )
    yield decided(
        policy, len(session.streams), first, [(row, 0) for row in range(len(texts))], seen
    )
    width = max(1, min(WIDEST, LOGITS // (len(lockstep.streams) * len(texts) * session.n_ids)))
    for start in range(0, max(len(text.answer) for text in texts), width):
        blocks = [text.answer[start : start + width] for text in texts]
        at = [(row, start + 1 + n) for row, block in enumerate(blocks) for n in range(len(block))]
        said = read_block(lockstep, blocks, slots)
        yield decided(policy, len(session.streams), said, at, seen)


def read_block(
    lockstep: Lockstep, texts: Sequence[Sequence[int]], slots: Sequence[Sequence[Slot]]
) -> tuple[Tensor, ...]:
    """Append the same texts to every stream; returns for each stream float32 log-probabilities
    (n, n_ids) after each of the n tokens, row by row. `Lockstep.feed` returns only the last."""
    n, width = lockstep.rows, max(map(len, texts))
    found: dict[int, Tensor] = {}
    for group in lockstep.groups:
        padded = [[*text, *[0] * (width - len(text))] for text in texts] * len(group.members)
        counts = [len(text) for text in texts] * len(group.members)
        adapters = tuple(
            AdaptedRows(adapter, slice(place * n, (place + 1) * n))
            for place, stream in enumerate(group.members)
            if (adapter := lockstep.streams[stream].adapter) is not None
        )
        shifted = [slot.shifted(group.row(s, 0)) for s in group.members for slot in slots[s]]
        ids = torch.tensor(padded, device=group.model.device)
        logits = group.model(ids, group.cache, counts=counts, slots=shifted, adapters=adapters)
        real = torch.arange(width)[None] < torch.tensor(counts)[:, None]
        log_probs = log_probs_of(logits[real.to(logits.device)][:, : lockstep.n_ids])
        found |= dict(zip(group.members, log_probs.chunk(len(group.members)), strict=True))
    return tuple(found[stream] for stream in range(len(lockstep.streams)))


def decided(
    policy: Policy, n_streams: int, log_probs: tuple[Tensor, ...], at: Where, seen: Sequence[Seen]
) -> Said:
    """The method's predictions from its `n_streams` streams at each token. seen: by row, after the
    prompt. If the base is steered, the unsteered base follows the streams; it replaces the steered
    base in rows that the gate leaves to the base."""
    plain = log_probs[-1] if len(log_probs) > n_streams else log_probs[0]
    there = [replace(seen[row], tokens=place) for row, place in at]
    left = torch.tensor([each.left_to_base for each in there], device=plain.device)[:, None]
    base = torch.where(left, plain, log_probs[0])
    decision = policy.decide(there, (base, *log_probs[1:n_streams]))
    return Said(at, decision.log_probs, plain)
