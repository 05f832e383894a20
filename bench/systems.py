"""The compared systems: minisafe in its modes, transformers and llama.cpp, on the same weights.

A *system* is a function that starts a greedy answer and yields one token at a time.
"""

from __future__ import annotations

import atexit
import copy
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any

import torch
from huggingface import has_transformers, transformers_model, transformers_tokens
from llamacpp import Peer, write_gguf
from subjects import Ids, Subject

from minisafe import SGDS, Generation, Lockstep, Request, Steering, Stream
from minisafe.checkpoint import save_model
from minisafe.convert.rounded import directory_source, round_model
from minisafe.fast.compiled import compile_step
from minisafe.fast.prepare import prepare, quicken
from minisafe.fast.rounded import load_rounded
from minisafe.guidance import Anchored, Plain, Rule
from minisafe.model import Llama

SYSTEM_PROMPT = 32  # tokens before a prompted expert's prompt
PLAIN, SAFE, PROMPTED = "plain", "safe, LoRA expert", "safe, prompted expert"
ANCHORED = "safe, LoRA expert and anchor"
SEPARATE, PEER, PEERS = f"{SAFE}, separate", "transformers, plain", "transformers, two models"
CPP, CPPS = "llama.cpp BF16, plain", "llama.cpp BF16, two contexts"
CPP8, CPP4 = "llama.cpp Q8_0, plain", "llama.cpp Q4_0, plain"
System = Callable[[], Iterator[int]]


def minisafe_tokens(
    streams: tuple[Stream, ...],
    prompts: tuple[Ids, ...],
    rule: Rule,
    steering: Steering | None = None,
    capacity: int = 256,
    fuse: bool = True,
) -> Iterator[int]:
    """Greedy tokens from minisafe's own sampling loop."""
    lockstep = Lockstep(streams, capacity=capacity, fuse=fuse)
    spans = () if steering is None else steering.spans([(len(prompts[0]), None)])
    generation = Generation(lockstep, rule, [Request(prompts, spans)], steering)
    return (event.id for event in generation if event.id is not None)


def minisafe_systems(subject: Subject, prompt: Ids, new: int) -> dict[str, System]:
    """Plain and safe decoding on the subject's own weights, on the path that a session takes."""
    shared: dict[int, Any] = {id(each): each for each in subject.model.parameters()}
    if subject.model.weights == "plain" and type(subject.model) is Llama:
        model = copy.deepcopy(subject.model, shared)
        quicken(model)
        subject = replace(subject, model=model)
    adapters = (None, subject.adapter, subject.anchor)
    base, expert, anchor = (Stream(subject.model, each) for each in adapters)
    prompted = prompt[-1:] * SYSTEM_PROMPT + prompt
    start = partial(minisafe_tokens, capacity=len(prompted) + new + 1)
    safe = partial(start, rule=SGDS(), steering=subject.steering)
    return {
        PLAIN: partial(start, (base,), (prompt,), Plain()),
        SAFE: partial(safe, (base, expert), (prompt, prompt)),
        SEPARATE: partial(safe, (base, expert), (prompt, prompt), fuse=False),
        PROMPTED: partial(safe, (base, base), (prompt, prompted)),
        ANCHORED: partial(
            start,
            (base, expert, anchor),
            (prompt,) * 3,
            Anchored(),
            replace(subject.steering, streams=(Anchored.drawn_from,)),
        ),
    }


def prepared_systems(subject: Subject, prompt: Ids, new: int) -> dict[str, System]:
    """Plain and safe decoding on copies of the weights, packed and as int8."""
    found: dict[str, System] = {}
    for kind in ("packed", "int8"):
        copied = replace(subject, model=prepare(copy.deepcopy(subject.model), kind))
        systems = minisafe_systems(copied, prompt, new)
        found |= {f"{name}, {kind}": systems[name] for name in (PLAIN, SAFE, PROMPTED, ANCHORED)}
    return found


def rounded_systems(subject: Subject, prompt: Ids, new: int) -> dict[str, System]:
    """Plain and safe decoding on weights in int4, in groups of 32 as llama.cpp's Q4_0."""
    with tempfile.TemporaryDirectory() as name:
        plain, rounded = Path(name) / "plain", Path(name) / "int4"
        save_model(subject.model, plain)
        round_model(directory_source(plain), rounded, "int4", 32, None, lambda n, total: None)
        model = load_rounded(rounded)
    systems = minisafe_systems(replace(subject, model=model), prompt, new)
    return {f"{name}, int4": systems[name] for name in (PLAIN, SAFE)}


def compiled_systems(subject: Subject, prompt: Ids, new: int) -> dict[str, System]:
    """Plain and safe decoding with a compiled step, one graph each, on the subject's tensors."""
    found = {}
    # a graph computes every adapter that it knows, used or not; a plain session's graph knows none
    for name, adapters, rows in ((PLAIN, (), 1), (SAFE, (subject.adapter,), 2)):
        shared: dict[int, Any] = {id(each): each for each in subject.model.parameters()}
        model = compile_step(copy.deepcopy(subject.model, shared), adapters, rows)
        systems = minisafe_systems(replace(subject, model=model), prompt, new)
        found[f"{name}, compiled"] = systems[name]
    return found


def transformers_systems(subject: Subject, prompt: Ids) -> dict[str, System]:
    """The peer on the subject's tensors, alone and with a second model with a merged adapter."""
    if not has_transformers():
        return {}
    base, expert = (transformers_model(subject.model, a) for a in (None, subject.adapter))
    return {
        PEER: partial(transformers_tokens, (base,), prompt),
        PEERS: partial(transformers_tokens, (base, expert), prompt, SGDS()),
    }


def llamacpp_systems(subject: Subject, prompt: Ids, new: int) -> dict[str, System]:
    """llama.cpp on a copy of the base's weights in a temporary file."""
    missing = [name for name in ("llama_cpp", "gguf") if util.find_spec(name) is None]
    if missing:
        print(f"{missing[0]} is not installed here: llama.cpp's rows are skipped (bench/README.md)")
        return {}
    file = Path(tempfile.mkdtemp()) / "model.gguf"
    atexit.register(shutil.rmtree, file.parent, ignore_errors=True)
    write_gguf(subject.model, file)
    capacity = len(prompt) + new + 1
    threads = torch.get_num_threads()
    bf16, q8, q4 = (Peer(file, capacity, threads, form) for form in (None, "Q8_0", "Q4_0"))
    return {
        CPP: partial(bf16.tokens, prompt),
        CPPS: partial(bf16.tokens, prompt, 2, SGDS()),
        CPP8: partial(q8.tokens, prompt),
        CPP4: partial(q4.tokens, prompt),
    }


def all_systems(subject: Subject, prompt: Ids, new: int, compiled: bool) -> dict[str, System]:
    """Every system that can run here, by its name."""
    systems = minisafe_systems(subject, prompt, new)
    systems |= prepared_systems(subject, prompt, new) | transformers_systems(subject, prompt)
    if subject.model.dtype == torch.bfloat16:  # the smoke test's shape is not, and too small
        systems |= rounded_systems(subject, prompt, new)
    systems |= llamacpp_systems(subject, prompt, new)
    return systems | (compiled_systems(subject, prompt, new) if compiled else {})
