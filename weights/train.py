"""A plain training loop for small models: bucketed documents, AdamW, resumable."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from lexicon import ASSISTANT, BEGIN, END, SYSTEM, USER
from tokenizers import Tokenizer
from torch import Tensor, nn
from world import Document

from minisafe.config import LlamaConfig
from minisafe.lora import Applied, LoraAdapter, LoraDelta
from minisafe.model import Llama

MAX_TOKENS = 640  # longer documents are cut
WINDOW = 4096  # documents among which rows of like length are found


@dataclass(frozen=True)
class Encoded:
    """One document's ids and how much the loss of predicting each of them counts."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Settings:
    """How to train."""

    batch_tokens: int
    lr: float
    warmup: int
    epochs: int = 1
    decay: float = 0.1
    seed: int = 0
    clip: float = 1.0
    muon: float = 0.0  # its rate for the layers' matrices; 0: AdamW for everything
    final: float = 0.05  # of the peak rate at the end


def config(vocab_size: int) -> LlamaConfig:
    """The shape of the shipped model."""
    layers = 8
    return LlamaConfig(
        family="llama", vocab_size=vocab_size, hidden=192, intermediate=512, n_layers=layers,
        n_heads=6, n_kv_heads=2, head_dim=32, norm_eps=1e-5, max_positions=2048,
        rope_theta=10000.0, rope_scaling=None, tied=True, qkv_bias=False, o_bias=False,
        mlp_bias=False, windows=(None,) * layers,
    )  # fmt: skip


def initialise(model: Llama, seed: int) -> None:
    """Normal weights; smaller ones where a layer writes to the residual stream."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.tensors().items():
        with torch.no_grad():
            if weight.dim() == 1:
                weight.fill_(1.0)
                continue
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            scale = 0.02 / math.sqrt(2 * model.config.n_layers) if writes else 0.02
            weight.normal_(0.0, scale, generator=generator)


def encode(tokenizer: Tokenizer, documents: Sequence[Document], user: float) -> list[Encoded]:
    """Ids as the chat template would give; the user's words count `user`, the answers 1."""
    texts: list[str] = []
    for document in documents:
        texts.append(document.system)
        for turn in document.turns:
            texts += [turn.user, turn.answer]
    pieces = iter(tokenizer.encode_batch(texts, add_special_tokens=False))
    begin, system, asked, told, end = (
        tokenizer.token_to_id(t) for t in (BEGIN, SYSTEM, USER, ASSISTANT, END)
    )
    made = []
    for document in documents:
        ids, weights = [begin], [0.0]
        said = next(pieces).ids
        if said:
            ids += [system, *said, end]
            weights += [0.0] * (len(said) + 2)
        for _ in document.turns:
            for mark, weight in ((asked, user), (told, 1.0)):
                said = next(pieces).ids
                ids += [mark, *said, end]
                weights += [0.0, *[weight] * (len(said) + 1)]
        made.append(Encoded(tuple(ids[:MAX_TOKENS]), tuple(weights[:MAX_TOKENS])))
    return made


def batches(
    documents: Sequence[Encoded], batch_tokens: int, rng: random.Random
) -> Iterator[list[Encoded]]:
    """Batches of about `batch_tokens` tokens with rows of like length, in random order."""
    order = rng.sample(range(len(documents)), len(documents))
    made: list[list[Encoded]] = []
    for start in range(0, len(order), WINDOW):
        rows = sorted(
            (documents[i] for i in order[start : start + WINDOW]), key=lambda d: len(d.ids)
        )
        batch: list[Encoded] = []
        for row in rows:
            if batch and len(row.ids) * (len(batch) + 1) > batch_tokens:
                made.append(batch)
                batch = []
            batch.append(row)
        made.append(batch)
    rng.shuffle(made)
    yield from made


def tensors(batch: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """ids and weights, (B, T), padded on the right with weight 0.

    T is a multiple of 8: kernels are compiled and kept for every shape that comes up.
    """
    width = -(-max(len(row.ids) for row in batch) // 8) * 8
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    weights = torch.zeros(len(batch), width)
    for i, row in enumerate(batch):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        weights[i, : len(row.ids)] = torch.tensor(row.weights)
    return ids, weights


def loss_of(
    model: Llama, ids: Tensor, weights: Tensor, adapters: tuple[Applied, ...] = ()
) -> Tensor:
    """Weighted mean cross-entropy of each next token.

    This is `Llama.forward` with the head applied only where the loss counts.
    """
    given, asked, counts = ids[:, :-1], ids[:, 1:].reshape(-1), weights[:, 1:].reshape(-1)
    picked = counts.nonzero().squeeze(1)
    with torch.autocast("cpu", torch.bfloat16):
        step = model.make_step((given.shape[1],) * len(given), given.shape[1], adapters=adapters)
        x = model.embed_tokens(given)  # (B, T - 1, hidden)
        for layer in model.layers:
            x = layer(x, step)
        logits = model.head(model.norm(x.flatten(0, 1)[picked]), step)
        losses = F.cross_entropy(logits.float(), asked[picked], reduction="none")
    return (losses * counts[picked]).sum() / counts.sum()


def new_adapter(
    model: Llama, rank: int, alpha: float, parts: Iterable[str], seed: int
) -> LoraAdapter:
    """A trainable adapter on the named projections of every layer; B starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for name, weight in model.tensors().items():
        module = name.removesuffix(".weight")
        if module.rsplit(".", 1)[-1] in parts:
            outs, ins = weight.shape
            a = nn.Parameter(torch.randn(rank, ins, generator=generator) / math.sqrt(ins))
            deltas[module] = LoraDelta(a, nn.Parameter(torch.zeros(outs, rank)), alpha / rank)
    return LoraAdapter(deltas)


class Muon:
    """Momentum whose steps are made orthogonal (Jordan et al., 2024), for the layers' matrices.

    Matrices of one shape go through the Newton-Schulz iteration together.
    """

    def __init__(self, matrices: Sequence[nn.Parameter], lr: float, momentum: float = 0.95):
        self.lr, self.momentum = lr, momentum
        self.groups: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for matrix in matrices:
            self.groups.setdefault(tuple(matrix.shape), []).append(matrix)
        self.moments = {shape: torch.zeros(len(g), *shape) for shape, g in self.groups.items()}

    @torch.no_grad()
    def step(self, share: float, decay: float) -> None:
        """One update at `share` of the peak rate."""
        lr = self.lr * share
        for shape, group in self.groups.items():
            gradient = torch.stack([p.grad for p in group if p.grad is not None])
            moment = self.moments[shape].lerp_(gradient, 1 - self.momentum)
            update = orthogonal(gradient.lerp(moment, self.momentum))
            update *= max(1.0, shape[0] / shape[1]) ** 0.5
            for p, change in zip(group, update, strict=True):
                p.mul_(1 - lr * decay).sub_(change, alpha=lr)


def orthogonal(x: Tensor, steps: int = 5) -> Tensor:
    """Roughly U V^T of each matrix's U S V^T. x: (n, rows, columns)"""
    tall = x.shape[1] > x.shape[2]
    y = (x.transpose(1, 2) if tall else x).bfloat16()
    y = y / (y.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = y @ y.transpose(1, 2)
        y = 3.4445 * y + (-4.7750 * square + 2.0315 * square @ square) @ y
    return (y.transpose(1, 2) if tall else y).float()


def parameters_of(model: Llama, adapter: LoraAdapter | None) -> list[nn.Parameter]:
    if adapter is None:
        return list(model.parameters())
    return [p for d in adapter.deltas.values() for p in (d.a, d.b)]  # type: ignore[misc]


def matrices_of(model: Llama) -> list[nn.Parameter]:
    """The weights of the layers' projections."""
    return [p for layer in model.layers for p in layer.parameters() if p.dim() > 1]


def rate(step: int, steps: int, settings: Settings) -> float:
    """Share of the peak rate: warm-up, then a cosine down to `final`."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    share = (step - settings.warmup) / max(1, steps - settings.warmup)
    return settings.final + (1 - settings.final) * 0.5 * (1 + math.cos(math.pi * share))


def train(
    name: str,
    model: Llama,
    documents: Sequence[Encoded],
    settings: Settings,
    checkpoint: Path,
    adapter: LoraAdapter | None = None,
    save_every: int = 100,
    say: Callable[[str], None] = print,
) -> None:
    """Train the model, or only the adapter, in place; goes on from `checkpoint` if it is there."""
    model.requires_grad_(adapter is None)
    trained = parameters_of(model, adapter)
    muon = Muon(matrices_of(model) if settings.muon and adapter is None else [], settings.muon)
    optimiser = adamw(trained, [p for group in muon.groups.values() for p in group], settings)
    order: list[list[Encoded]] = []
    for epoch in range(settings.epochs):
        rng = random.Random(f"{settings.seed} {epoch}")
        order += batches(documents, settings.batch_tokens, rng)
    done = resume(checkpoint, trained, optimiser, muon)
    adapters: tuple[Applied, ...] = ()
    started, recent = time.time(), 0.0
    for step in range(done, len(order)):
        ids, weights = tensors(order[step])
        if adapter is not None:
            adapters = (Applied(adapter, slice(0, len(ids))),)
        share = rate(step, len(order), settings)
        for group in optimiser.param_groups:
            group["lr"] = settings.lr * share
        loss = loss_of(model, ids, weights, adapters)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, settings.clip)
        optimiser.step()
        muon.step(share, settings.decay)
        for p in trained:
            p.grad = None
        recent = loss.item() if step == done else 0.95 * recent + 0.05 * loss.item()
        if (step + 1) % 20 == 0 or step + 1 == len(order):
            left = (time.time() - started) / (step + 1 - done) * (len(order) - step - 1)
            say(
                f"{name}: step {step + 1}/{len(order)}  loss {recent:.4f}  {left / 60:.1f} min left"
            )
        if (step + 1) % save_every == 0 or step + 1 == len(order):
            save(checkpoint, trained, optimiser, muon, step + 1)
    model.requires_grad_(False)


def adamw(
    trained: Sequence[nn.Parameter], others: Sequence[nn.Parameter], settings: Settings
) -> torch.optim.AdamW:
    """AdamW for what is trained, but for the `others`; norms do not decay."""
    left_out = {id(p) for p in others}
    mine = [p for p in trained if id(p) not in left_out]
    groups = [
        {"params": [p for p in mine if p.dim() > 1], "weight_decay": settings.decay},
        {"params": [p for p in mine if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98), fused=True)


def save(
    path: Path,
    trained: Sequence[Tensor],
    optimiser: torch.optim.Optimizer,
    muon: Muon,
    step: int,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "step": step,
        "tensors": [t.detach() for t in trained],
        "optimiser": optimiser.state_dict(),
        "moments": list(muon.moments.values()),
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def resume(
    path: Path, trained: Sequence[Tensor], optimiser: torch.optim.Optimizer, muon: Muon
) -> int:
    """Steps done so far, with tensors and optimisers as they were then."""
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    now = [*trained, *muon.moments.values()]
    with torch.no_grad():
        for tensor, kept in zip(now, [*state["tensors"], *state["moments"]], strict=True):
            tensor.copy_(kept)
    optimiser.load_state_dict(state["optimiser"])
    step: int = state["step"]
    return step
