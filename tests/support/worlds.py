"""Small worlds to decode in: tokenizers, model directories, profiles, and runs to compare."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from torch import Tensor

from minisafe.checkpoint import fingerprint, save_adapter, save_model
from minisafe.checkpoint.vectors import save_vector
from minisafe.engine import Generation, Request
from minisafe.guidance import Rule
from minisafe.lockstep import Lockstep, Stream
from minisafe.lora import LoraAdapter
from minisafe.model import Llama
from minisafe.sampling import row_generator
from minisafe.slots import Span, covered
from minisafe.tokenizer import Tokenizer
from minisafe.vectors import SafetyVector, Steering
from tests.support.reference import read
from tests.support.templates import TEMPLATES
from tests.support.tiny import random_adapter, random_model, tensors_of, tiny_config

GOLDENS = Path(__file__).parents[1] / "goldens" / "chat"
KINDS = ("byte_level", "sentencepiece", "metaspace", "normalized")

# ---- tokenizers --------------------------------------------------------------------------------


@cache
def backend(kind: str) -> Backend:
    """A tiny tokenizer of one of `KINDS`."""
    return Backend.from_file(str(GOLDENS / "tokenizers" / f"{kind}.json"))


@cache
def tokenizer(template: str) -> Tokenizer:
    """The tokenizer and settings of one of `TEMPLATES`."""
    kind, settings = TEMPLATES[template]
    return Tokenizer(backend(kind), settings, template)


def write_tokenizer(directory: Path, kind: str, settings: Mapping[str, Any]) -> None:
    """`tokenizer.json` and `tokenizer_config.json` in a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(GOLDENS / "tokenizers" / f"{kind}.json", directory / "tokenizer.json")
    write_json(directory / "tokenizer_config.json", settings)


def write_json(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


# ---- directories -------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """A base and all that could make it safe, on disk. Do not change what lies there: `copy` it."""

    root: Path
    base: Path
    expert: Path  # another checkpoint
    adapter: Path  # a LoRA adapter on the base
    vector: Path
    profile: Path  # base, adapter and vector

    def copy(self, part: Path, to: Path) -> Path:
        """A copy of a part to spoil."""
        return Path(shutil.copytree(part, to / part.name))

    def edited(self, part: Path, to: Path, name: str, **changes: Any) -> Path:
        """A copy of a part with other keys in one of its JSON files."""
        path = self.copy(part, to) / name
        data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        write_json(path, data | changes)
        return path.parent

    def flags(self, **changes: Any) -> dict[str, Any]:
        """What to give `load` for a fully safe session on the parts; None leaves a thing out."""
        given = {"base": self.base, "expert": self.adapter, "vector": self.vector} | changes
        return {name: value for name, value in given.items() if value is not None}


def base_model(template: str = "llama3", seed: int = 0, **shape: Any) -> Llama:
    """A random Llama with one embedding for each id of a template's tokenizer."""
    size = tokenizer(template).size
    shape = {"vocab_size": size, "n_layers": 3, "max_positions": 512} | shape
    return random_model(tiny_config(**shape), seed)


def make_world(root: Path, template: str = "llama3", eos: Iterable[str] = ("<|eot|>",)) -> World:
    """A base with the template's tokenizer, two experts, a vector and a profile."""
    kind, settings = TEMPLATES[template]
    known = tokenizer(template)
    ends = [known.id_of(text) for text in eos]
    base, adapter, expert = (root / each for each in ("base", "adapter", "expert"))
    model = base_model(template)
    save_model(model, base, {"eos_token_id": ends or None})
    save_adapter(random_adapter(model), adapter, rank=3, alpha=1.5)
    save_model(base_model(template, seed=1, n_layers=2, hidden=24), expert)
    for directory in (base, expert):
        write_tokenizer(directory, kind, settings)
    vector = root / "vector.safetensors"
    save_vector(safety_vector(model, known), vector)
    profile = {
        "minisafe_profile": 1, "base": "base", "expert": "adapter", "vector": vector.name,
        "max_new_tokens": 12,
    }  # fmt: skip
    return World(root, base, expert, adapter, vector, write_json(root / "profile.json", profile))


def safety_vector(model: Llama, known: Tokenizer, layer: int = 1) -> SafetyVector:
    """A random vector about as long as the residual stream, with the metadata of a made one."""
    values = torch.randn(model.config.hidden, generator=torch.Generator().manual_seed(5))
    metadata = {
        "sa_scale": 1.25, "sa_positions": "last", "n_layers": model.config.n_layers,
        "tokenizer": known.fingerprint, "weights": fingerprint(model),
    }  # fmt: skip
    return SafetyVector({layer: values}, metadata)


# ---- runs --------------------------------------------------------------------------------------

E = 1e-4  # what a log-probability may differ by, in float32, from one order of sums to another


@dataclass
class Step:
    """One token of one row: what the streams said, what guidance made of it, what was taken."""

    log_probs: list[Tensor]
    final: Tensor
    id: int


@dataclass
class Run:
    """A row's steps and how it ended."""

    steps: list[Step] = field(default_factory=list)
    finish: str | None = None

    @property
    def ids(self) -> list[int]:
        return [step.id for step in self.steps]


class Recorder:
    """Guidance that keeps what it was given and what it gave."""

    def __init__(self, rule: Rule):
        self.rule = rule
        self.n_streams, self.first_tokens = rule.n_streams, rule.first_tokens
        self.drawn_from = rule.drawn_from
        self.seen: list[tuple[tuple[Tensor, ...], Tensor]] = []

    def __call__(self, log_probs: tuple[Tensor, ...]) -> Tensor:
        self.seen.append((log_probs, self.rule(log_probs)))
        return self.seen[-1][1]


def run(
    streams: Sequence[Stream],
    rule: Rule,
    requests: Sequence[Request],
    steering: Steering | None = None,
    eos: frozenset[int] = frozenset(),
    cancel: Mapping[int, int] | None = None,
    **options: Any,
) -> list[Run]:
    """Generate, keeping every step of every row. `cancel`: row -> after how many of its tokens."""
    recorder = Recorder(rule)
    lockstep = Lockstep(streams, len(requests), capacity=8, **options)
    generation = Generation(lockstep, recorder, requests, steering, eos)
    runs = [Run() for _ in requests]
    place, forwards = 0, 0
    for event in generation:
        place = place + 1 if forwards == len(recorder.seen) else 0
        forwards = len(recorder.seen)
        if event.id is not None:
            log_probs, final = recorder.seen[-1]
            said = [each[place] for each in log_probs]
            runs[event.request].steps.append(Step(said, final[place], event.id))
        runs[event.request].finish = event.finish
        if cancel and cancel.get(event.request) == len(runs[event.request].steps):
            generation.cancel(event.request)
    return runs


def same(one: Run, other: Run, request: Request, magnified: float) -> int:
    """Assert that two runs of a request agree; returns how many steps could be compared.

    Log-probabilities may differ by `E`, what guidance makes of them by `magnified` times as much,
    and tokens only where that decides; what follows such a token is another text.
    """
    for number, (a, b) in enumerate(zip(one.steps, other.steps, strict=False)):
        for x, y in zip(a.log_probs, b.log_probs, strict=True):
            torch.testing.assert_close(x, y, atol=E, rtol=0)
        torch.testing.assert_close(a.final, b.final, atol=magnified * E, rtol=0)
        if a.id != b.id:
            assert hangs_in_the_balance(a.final, a.id, b.id, request, number, magnified * E)
            return number
    assert one.ids == other.ids
    assert one.finish == other.finish
    return len(one.steps)


def hangs_in_the_balance(
    final: Tensor, a: int, b: int, request: Request, number: int, e: float
) -> bool:
    """Whether either token is right for scores that are known to within `e`."""
    settings = request.sampling
    if settings.temperature == 0:
        best = final.max() - 2 * e
        return bool(final[a] >= best and final[b] >= best)
    generator = row_generator(settings.seed, request.index)
    draw = torch.rand(number + 1, generator=generator, dtype=torch.float64)[-1]
    cumulative = torch.softmax(final.double() / settings.temperature, -1).cumsum(0)
    return bool((cumulative[min(a, b)] - draw).abs() < 4 * e / settings.temperature)


def merged(model: Llama, adapter: LoraAdapter | None) -> dict[str, Tensor]:
    """A model's tensors with an adapter's deltas added into them."""
    tensors = dict(tensors_of(model))
    for name, delta in ({} if adapter is None else adapter.deltas).items():
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"] + delta.weight()
    return tensors


def slow_log_probs(
    stream: Stream, ids: Sequence[int], steering: Steering | None = None, spans: Sequence[Span] = ()
) -> Tensor:
    """(vocab,) float64 log-probabilities after `ids`, read without a cache by `reference.read`."""
    config = stream.model.config
    add = {}
    for layer, vector in ({} if steering is None else steering.vectors).items():
        for position in covered(spans, 0, len(ids)):
            add[layer, position] = steering.scale * vector.double()
    reading = read(merged(stream.model, stream.adapter), config, list(ids), add)
    return torch.log_softmax(reading.logits[-1], dim=-1)


def published(lb: Tensor, lu: Tensor, lam: float) -> Tensor:
    """The rule as the paper states it, unnormalised."""
    return (lb - lam * torch.maximum(lu, lb)) / (1 - lam)
