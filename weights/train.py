"""Training of the shipped weights: weighted tokens, batches of similar lengths, Muon.

The loop, its schedule and its state on disk come from `minisafe.finetune`. This file has what
differs from `finetune.Trainer`: a token's loss has a weight, a batch has a fixed number of tokens
instead of rows, the head runs only where the loss counts, an adapter starts from normal values, and
the layers' matrices may have their own optimiser. Sharing these too would change the recipe.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from lexicon import ASSISTANT, BEGIN, END, SYSTEM, USER
from tokenizers import Tokenizer
from torch import Tensor, nn
from world import Document

from minisafe.config import LlamaConfig
from minisafe.finetune import Loop, Schedule
from minisafe.finetune.state import identity
from minisafe.lora import AdaptedRows, LoraAdapter, LoraDelta
from minisafe.model import Llama

MAX_TOKENS = 640  # longer documents are cut
WINDOW = 4096  # documents to group by length


@dataclass(frozen=True)
class Encoded:
    """One document's ids, and the weight of each id's loss."""

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
    muon: float = 0.0  # Muon's rate for the layers' matrices; 0: AdamW for everything
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
    """Normal weights, with smaller ones for the outputs to the residual stream."""
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
    """Ids as from the chat template; the user's words have weight `user`, the answers 1.

    What an answer was begun with and answers that are not to be learned have weight 0.
    """
    texts: list[str] = []
    for document in documents:
        texts.append(document.system)
        for turn in document.turns:
            texts += [turn.user, turn.begun, turn.answer]
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
        for turn in document.turns:
            question, begun, answer = (next(pieces).ids for _ in range(3))
            ids += [asked, *question, end, told, *begun, *answer, end]
            weights += [0.0, *[user] * (len(question) + 1), *[0.0] * (1 + len(begun))]
            weights += [1.0 if turn.learned else 0.0] * (len(answer) + 1)
        made.append(Encoded(tuple(ids[:MAX_TOKENS]), tuple(weights[:MAX_TOKENS])))
    return made


def batches(
    documents: Sequence[Encoded], batch_tokens: int, rng: random.Random
) -> Iterator[list[Encoded]]:
    """Batches of about `batch_tokens` tokens with rows of similar lengths, in random order."""
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

    T is a multiple of 8, because kernels are compiled and cached for every shape.
    """
    width = -(-max(len(row.ids) for row in batch) // 8) * 8
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    weights = torch.zeros(len(batch), width)
    for i, row in enumerate(batch):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        weights[i, : len(row.ids)] = torch.tensor(row.weights)
    return ids, weights


def loss_of(
    model: Llama, ids: Tensor, weights: Tensor, adapters: tuple[AdaptedRows, ...] = ()
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


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are made orthogonal (Jordan et al., 2024), for the layers' matrices.

    Matrices of one shape go through the Newton-Schulz iteration together.
    """

    moments = ("exp_avg",)  # kept by `minisafe.finetune` besides the step

    def __init__(
        self, matrices: Sequence[nn.Parameter], lr: float, decay: float, momentum: float = 0.95
    ):
        super().__init__(matrices, {"lr": lr, "weight_decay": decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every matrix."""
        for options in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for matrix in options["params"]:
                shapes.setdefault(matrix.shape, []).append(matrix)
            for group in shapes.values():
                self.update(group, options["lr"], options["weight_decay"], options["momentum"])

    def update(
        self, group: Sequence[nn.Parameter], lr: float, decay: float, momentum: float
    ) -> None:
        """One update of matrices of one shape."""
        for p in group:
            if not self.state[p]:
                self.state[p] = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p)}
        gradient = torch.stack([p.grad for p in group if p.grad is not None])
        moment = torch.stack([self.state[p]["exp_avg"] for p in group])
        moment.lerp_(gradient, 1 - momentum)
        update = orthogonal(gradient.lerp(moment, momentum))
        rows, columns = group[0].shape
        update *= max(1.0, rows / columns) ** 0.5
        for p, change, kept in zip(group, update, moment, strict=True):
            p.mul_(1 - lr * decay).sub_(change, alpha=lr)
            self.state[p]["exp_avg"].copy_(kept)
            self.state[p]["step"] += 1


def orthogonal(x: Tensor, steps: int = 5) -> Tensor:
    """An approximation of U V^T for each matrix U S V^T. x: (n, rows, columns)"""
    tall = x.shape[1] > x.shape[2]
    y = (x.transpose(1, 2) if tall else x).bfloat16()
    y = y / (y.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = y @ y.transpose(1, 2)
        y = 3.4445 * y + (-4.7750 * square + 2.0315 * square @ square) @ y
    return (y.transpose(1, 2) if tall else y).float()


def parameters_of(model: Llama, adapter: LoraAdapter | None) -> dict[str, nn.Parameter]:
    """The trained parameters by name."""
    if adapter is None:
        return dict(model.named_parameters())
    return {
        f"{name}.{part}": value  # type: ignore[misc]
        for name, delta in adapter.deltas.items()
        for part, value in (("lora_A", delta.a), ("lora_B", delta.b))
    }


def matrices_of(model: Llama) -> list[nn.Parameter]:
    """The weights of the layers' projections."""
    return [p for layer in model.layers for p in layer.parameters() if p.dim() > 1]


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
    """Train the model, or only the adapter, in place; continues from `checkpoint` if it exists."""
    model.requires_grad_(adapter is None)
    order = [
        batch
        for epoch in range(settings.epochs)
        for batch in batches(
            documents, settings.batch_tokens, random.Random(f"{settings.seed} {epoch}")
        )
    ]
    trained = parameters_of(model, adapter)
    schedule = Schedule(len(order), settings.warmup, settings.final)
    chosen = optimizers(model, list(trained.values()), adapter, settings)
    about = identity(model, ((d.ids, d.weights) for d in documents), asdict(settings))
    loop = Loop(trained, chosen, schedule, settings.clip, about)
    loop.resume(checkpoint)

    def losses() -> Iterator[list[Tensor]]:
        for batch in order[loop.step :]:
            adapted = () if adapter is None else (AdaptedRows(adapter, slice(0, len(batch))),)
            yield [loss_of(model, *tensors(batch), adapted)]

    done, started, recent = loop.step, time.time(), None
    for loss in loop.run(losses(), checkpoint, save_every):
        recent = loss if recent is None else 0.95 * recent + 0.05 * loss
        step, steps = loop.step, len(order)
        if step % 20 == 0 or step == steps:
            left = (time.time() - started) / (step - done) * (steps - step) / 60
            say(f"{name}: step {step}/{steps}  loss {recent:.4f}  {left:.1f} min left")
    model.requires_grad_(False)


def optimizers(
    model: Llama, trained: Sequence[nn.Parameter], adapter: LoraAdapter | None, settings: Settings
) -> list[torch.optim.Optimizer]:
    """AdamW for the trained parameters, except for Muon's matrices; norms do not decay."""
    matrices = matrices_of(model) if settings.muon and adapter is None else []
    left_out = {id(p) for p in matrices}
    mine = [p for p in trained if id(p) not in left_out]
    groups = [
        {"params": [p for p in mine if p.dim() > 1], "weight_decay": settings.decay},
        {"params": [p for p in mine if p.dim() == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98), fused=True)
    return [adamw, *([Muon(matrices, settings.muon, settings.decay)] if matrices else [])]
