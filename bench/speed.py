"""Decoding speed of minisafe, beside itself without safety and beside transformers, in one run.

    python bench/speed.py --shape tinyllama 100m shipped --json bench/results/today.json

A *system* is a function that starts a greedy answer and gives one token at a time. All systems of a
shape work on the same weights; every round runs each of them once, so that noise hits all alike,
and a ratio is the median of the rounds' ratios. bench/README.md tells how to read the numbers.
"""

from __future__ import annotations

import argparse
import atexit
import copy
import gc
import json
import operator
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata, util
from pathlib import Path
from statistics import median
from typing import Any

import torch
from llamacpp import Peer, write_gguf  # beside this file
from torch import Tensor, nn

import minisafe
from minisafe import SGDS, Generation, Llama, LlamaConfig, Lockstep, Request, Steering, Stream
from minisafe.compiled import compile_step
from minisafe.guidance import Guidance, Plain
from minisafe.lora import LoraAdapter, LoraDelta
from minisafe.prepare import prepare

SHIPPED = Path(__file__).resolve().parent.parent / "weights" / "tiny"
SYSTEM_PROMPT, RANK = 32, 4  # tokens before a prompted expert's prompt; of the random adapter
PLAIN, SAFE, PROMPTED = "plain", "safe, LoRA expert", "safe, prompted expert"
SEPARATE, PEER, PEERS = f"{SAFE}, separate", "transformers, plain", "transformers, two models"
CPP, CPPS = "llama.cpp BF16, plain", "llama.cpp BF16, two contexts"
CPP8 = "llama.cpp Q8_0, plain"
RATIOS = (  # of times a token: name, the system above, the one below, target
    ("safe (LoRA) over plain, time", SAFE, PLAIN, "<= 1.3"),
    ("safe (prompted) over plain, time", PROMPTED, PLAIN, "<= 1.3"),
    ("safe (LoRA) separate over fused, time", SEPARATE, SAFE, None),
    ("plain over transformers, speed", PEER, PLAIN, "> 1.0"),
    ("safe (LoRA) over transformers' two models, speed", PEERS, SAFE, None),
    ("packed over plain weights, plain, speed", PLAIN, f"{PLAIN}, packed", None),
    ("packed: safe (LoRA) over plain, time", f"{SAFE}, packed", f"{PLAIN}, packed", "<= 1.1"),
    ("packed: plain over transformers, speed", PEER, f"{PLAIN}, packed", ">= 2.0"),
    ("packed: safe (LoRA) over two models, speed", PEERS, f"{SAFE}, packed", ">= 3.0"),
    (
        "packed: safe (prompted) over plain, time",
        f"{PROMPTED}, packed",
        f"{PLAIN}, packed",
        "<= 1.1",
    ),
    ("packed: plain over llama.cpp BF16, speed", CPP, f"{PLAIN}, packed", ">= 0.75"),
    ("packed: safe (LoRA) over llama.cpp's two, speed", CPPS, f"{SAFE}, packed", ">= 1.1"),
    ("int8: plain over llama.cpp Q8_0, speed (stretch)", CPP8, f"{PLAIN}, int8", ">= 1.0"),
    ("compiled: safe (LoRA) over plain, time", f"{SAFE}, compiled", f"{PLAIN}, compiled", None),
    ("compiled: plain over llama.cpp BF16, speed", CPP, f"{PLAIN}, compiled", ">= 0.95"),
    ("compiled over packed, plain, speed", f"{PLAIN}, packed", f"{PLAIN}, compiled", None),
    ("int8 over packed, plain, speed", f"{PLAIN}, packed", f"{PLAIN}, int8", ">= 1.4"),
    ("int8 over packed, safe (LoRA), speed", f"{SAFE}, packed", f"{SAFE}, int8", ">= 1.4"),
)
Ids = tuple[int, ...]
System = Callable[[], Iterator[int]]
Row = dict[str, Any]  # name, value, unit, target (as "<= 1.3", or None), holds


@dataclass(frozen=True)
class Subject:
    """Weights, and what makes them safe."""

    model: Llama
    adapter: LoraAdapter
    steering: Steering


def llama(dtype: str, tied: bool, *sizes: int) -> LlamaConfig:
    """A Llama's config from the sizes below."""
    data = {"model_type": "llama", "torch_dtype": dtype, "tie_word_embeddings": tied}
    return LlamaConfig.from_json(data | dict(zip(SIZES, sizes, strict=True)))


SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings",
)  # fmt: skip
SHAPES = {
    "tinyllama": llama("bfloat16", False, 32000, 2048, 5632, 22, 32, 4, 2048),  # TinyLlama-1.1B
    "100m": llama("bfloat16", True, 32000, 768, 2048, 12, 12, 4, 2048),
    "tiny": llama("float32", True, 256, 64, 96, 2, 4, 2, 2048),  # for the smoke test
}


def tensors_of(model: Llama) -> dict[str, Tensor]:
    """Every tensor by its Hugging Face name."""
    return {name: getattr(holder, attribute) for name, holder, attribute in model.tensors()}


def random_model(config: LlamaConfig, generator: torch.Generator) -> Llama:
    """Random weights that keep the size of activations; no more memory than they take."""
    with torch.device("meta"):
        model = Llama(config)
    for name, holder, attribute in model.tensors():
        size = getattr(holder, attribute).shape
        tensor = torch.ones(size, dtype=getattr(torch, config.dtype or "float32"))
        if "norm" not in name:
            tensor.normal_(0, size[-1] ** -0.5, generator=generator)
        setattr(holder, attribute, nn.Parameter(tensor, requires_grad=False))
    return model.eval()


def random_subject(config: LlamaConfig) -> Subject:
    """Random weights, a LoRA adapter on all q_proj and v_proj, a vector that acts at every step."""
    generator = torch.Generator().manual_seed(0)
    model = random_model(config, generator)
    deltas = {}
    for name, weight in tensors_of(model).items():
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            a = torch.randn(RANK, weight.shape[1], generator=generator) * config.hidden**-0.5
            b = torch.randn(weight.shape[0], RANK, generator=generator)
            deltas[name.removesuffix(".weight")] = LoraDelta(a.to(weight), b.to(weight), 0.5)
    vector = 0.1 * torch.randn(config.hidden, generator=generator)
    steering = Steering({config.n_layers // 4: vector}, scale=1.5, positions="last")
    return Subject(model, LoraAdapter(deltas), steering)


def shipped_subject() -> Subject:
    """The shipped model in its own dtype, with its own LoRA expert and vector."""
    session = minisafe.load(SHIPPED, {"weights": "plain"})
    adapters = [stream.adapter for stream in session.streams if stream.adapter is not None]
    if not adapters or session.steering is None:
        raise SystemExit(f"{SHIPPED}: expected a profile with a LoRA expert and a vector")
    return Subject(session.model, adapters[0], session.steering)


def bytes_per_token(model: Llama, args: argparse.Namespace) -> float:
    """What one token reads: all weights (of an untied embedding only a row), and the cache."""
    read = [t for name, t in tensors_of(model).items() if model.config.tied or "embed" not in name]
    context = float(args.prompt + args.new / 2)  # tokens in the cache, on average
    return sum(t.nbytes for t in read) + context * model.config.kv_bytes_per_token


def minisafe_tokens(
    streams: tuple[Stream, ...],
    prompts: tuple[Ids, ...],
    guidance: Guidance,
    steering: Steering | None = None,
    capacity: int = 256,
    fuse: bool = True,
) -> Iterator[int]:
    """Greedy tokens through minisafe's own sampling loop."""
    lockstep = Lockstep(streams, capacity=capacity, fuse=fuse)
    spans = () if steering is None else steering.spans([(len(prompts[0]), None)])
    generation = Generation(lockstep, guidance, [Request(prompts, spans)], steering)
    return (event.id for event in generation if event.id is not None)


def minisafe_systems(subject: Subject, prompt: Ids, new: int) -> dict[str, System]:
    base, expert = Stream(subject.model), Stream(subject.model, subject.adapter)
    prompted = prompt[-1:] * SYSTEM_PROMPT + prompt
    start = partial(minisafe_tokens, capacity=len(prompted) + new + 1)
    safe = partial(start, guidance=SGDS(), steering=subject.steering)
    return {
        PLAIN: partial(start, (base,), (prompt,), Plain()),
        SAFE: partial(safe, (base, expert), (prompt, prompt)),
        SEPARATE: partial(safe, (base, expert), (prompt, prompt), fuse=False),
        PROMPTED: partial(safe, (base, base), (prompt, prompted)),
    }


def prepared_systems(subject: Subject, prompt: Ids, new: int) -> dict[str, System]:
    """Plain and safe decoding on copies of the weights, packed and as int8."""
    found = {}
    for kind in ("packed", "int8"):
        copied = replace(subject, model=prepare(copy.deepcopy(subject.model), kind))
        systems = minisafe_systems(copied, prompt, new)
        found |= {f"{name}, {kind}": systems[name] for name in (PLAIN, SAFE, PROMPTED)}
    return found


def compiled_systems(subject: Subject, prompt: Ids, new: int) -> dict[str, System]:
    """Plain and safe decoding through a compiled step, a graph each, on the subject's tensors."""
    found = {}
    for name, rows in ((PLAIN, 1), (SAFE, 2)):
        shared: dict[int, Any] = {id(each): each for each in subject.model.parameters()}
        model = compile_step(copy.deepcopy(subject.model, shared), (subject.adapter,), rows)
        systems = minisafe_systems(replace(subject, model=model), prompt, new)
        found[f"{name}, compiled"] = systems[name]
    return found


def transformers_model(model: Llama, adapter: LoraAdapter | None = None) -> Any:
    """The same model in transformers: on the very same tensors, or, with an adapter, on copies of
    all of them with the adapter merged in, which is what peers that take two models do."""
    from transformers import AutoConfig, AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    weights = {name: tensor.detach() for name, tensor in tensors_of(model).items()}
    if adapter is not None:
        weights = {name: tensor.clone() for name, tensor in weights.items()}
        for module, delta in adapter.deltas.items():
            weights[f"{module}.weight"] += delta.weight().to(model.dtype)
    if model.config.tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    config = AutoConfig.for_model(**model.config.to_json())
    with torch.device("meta"):
        peer = auto.from_config(config, dtype=model.dtype, attn_implementation="sdpa")
    peer.load_state_dict(weights, assign=True)
    peer.model.rotary_emb = type(peer.model.rotary_emb)(config=config)  # its tables were on meta
    return peer.eval()


def transformers_tokens(
    models: Sequence[Any], prompt: Ids, guidance: Guidance | None = None
) -> Iterator[int]:
    """Greedy tokens of models in lockstep, each with its own cache."""
    feed = torch.tensor([prompt])
    caches: list[Any] = [None] * len(models)
    while True:
        with torch.inference_mode():
            pairs = list(zip(models, caches, strict=True))
            outs = [m(feed, past_key_values=c, use_cache=True, logits_to_keep=1) for m, c in pairs]
            caches = [out.past_key_values for out in outs]
            logits = [out.logits[:, -1].float() for out in outs]
            scores = guidance(tuple(y.log_softmax(-1) for y in logits)) if guidance else logits[0]
            feed = scores.argmax(-1, keepdim=True)
        yield int(feed)


def transformers_systems(subject: Subject, prompt: Ids) -> dict[str, System]:
    if util.find_spec("transformers") is None:
        print("transformers is not installed here: its rows are skipped (see bench/README.md)")
        return {}
    base, expert = (transformers_model(subject.model, a) for a in (None, subject.adapter))
    return {
        PEER: partial(transformers_tokens, (base,), prompt),
        PEERS: partial(transformers_tokens, (base, expert), prompt, SGDS()),
    }


def llamacpp_systems(subject: Subject, prompt: Ids, args: argparse.Namespace) -> dict[str, System]:
    """On a copy of the base's weights in a file that is gone when the program ends."""
    missing = [name for name in ("llama_cpp", "gguf") if util.find_spec(name) is None]
    if missing:
        print(f"{missing[0]} is not installed here: llama.cpp's rows are skipped (bench/README.md)")
        return {}
    file = Path(tempfile.mkdtemp()) / "model.gguf"
    atexit.register(shutil.rmtree, file.parent, ignore_errors=True)
    write_gguf(subject.model, file)
    capacity = len(prompt) + args.new + 1
    bf16, q8 = (Peer(file, capacity, torch.get_num_threads(), q) for q in (False, True))
    return {
        CPP: partial(bf16.tokens, prompt),
        CPPS: partial(bf16.tokens, prompt, 2, SGDS()),
        CPP8: partial(q8.tokens, prompt),
    }


def time_run(system: System, new: int) -> tuple[float, float]:
    """(ms to the first token, ms a token after it) of one answer."""
    gc.collect()
    started = time.perf_counter()
    tokens = system()
    next(tokens)
    first = time.perf_counter()
    for _ in range(new):
        next(tokens)
    return (first - started) * 1e3, (time.perf_counter() - first) * 1e3 / new


def read_bandwidth(buffers: list[Tensor]) -> float:
    """GB/s of a sum over buffers that are too large for a cache."""
    started = time.perf_counter()
    for buffer in buffers:
        buffer.sum()
    return sum(buffer.nbytes for buffer in buffers) / (time.perf_counter() - started) / 1e9


def one_round(systems: Mapping[str, System], new: int, buffers: list[Tensor]) -> dict[str, float]:
    """ms a token and to the first one of every system, and the bandwidth beside them in GB/s."""
    found = {"read bandwidth": read_bandwidth(buffers)}
    for name, system in systems.items():
        found[f"{name}, first token"], found[name] = time_run(system, new)
    return found


def measure(subject: Subject, args: argparse.Namespace) -> dict[str, list[float]]:
    """All systems, round by round; each round starts with another, and one to warm up is lost."""
    draw = random.Random(0)
    prompt = tuple(draw.randrange(subject.model.config.vocab_size) for _ in range(args.prompt))
    systems = minisafe_systems(subject, prompt, args.new)
    systems |= prepared_systems(subject, prompt, args.new) | transformers_systems(subject, prompt)
    systems |= llamacpp_systems(subject, prompt, args)
    if args.compile:
        systems |= compiled_systems(subject, prompt, args.new)
    buffers = [torch.ones(args.buffer_mib * 2**18) for _ in range(3)]
    one_round(systems, min(args.new, 4), buffers)
    order, rounds = list(systems.items()), []
    for _ in range(args.runs):
        rounds.append(one_round(dict(order), args.new, buffers))
        order.append(order.pop(0))
    return {name: [each[name] for each in rounds] for name in rounds[0]}


def import_seconds(runs: int) -> float:
    """Median time of `import minisafe` after `import torch`, in fresh interpreters."""
    code = "import time, torch; t = time.perf_counter(); import minisafe; "
    command = [sys.executable, "-c", code + "print(time.perf_counter() - t)"]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    run = partial(subprocess.run, command, env=env, capture_output=True, text=True, check=True)
    run()  # writes the bytecode
    return median(float(run().stdout) for _ in range(runs))


def make_row(name: str, value: float, unit: str, target: str | None = None) -> Row:
    sign, bound = (target or "> 0").split()
    compare = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}[sign]
    holds = compare(value, float(bound)) if target else None
    return {"name": name, "value": value, "unit": unit, "target": target, "holds": holds}


def median_ratio(a: Sequence[float], b: Sequence[float]) -> float:
    return median(x / y for x, y in zip(a, b, strict=True))


def make_rows(label: str, samples: Mapping[str, list[float]], bytes_read: float) -> list[Row]:
    """All numbers of one shape; bytes_read: by a plain token."""
    bandwidth = samples["read bandwidth"]
    rows = [make_row("read bandwidth", median(bandwidth), "GB/s")]
    targets = {PLAIN: None, f"{PLAIN}, packed": ">= 0.65", f"{PLAIN}, compiled": ">= 0.85"}
    for name, target in targets.items():
        if name not in samples:
            continue
        speeds = [bytes_read / ms / 1e6 for ms in samples[name]]
        rows.append(make_row(f"{name}, weights and cache read", median(speeds), "GB/s"))
        ratio = median_ratio(speeds, bandwidth)
        rows.append(make_row(f"{name} over read bandwidth", ratio, "x", target))
    for name, values in samples.items():
        if name.endswith("first token"):
            rows.append(make_row(name, median(values), "ms"))
        elif name != "read bandwidth":
            rows.append(make_row(name, 1e3 / median(values), "tokens/s"))
    for name, top, below, target in RATIOS:
        if top in samples and below in samples:
            rows.append(make_row(name, median_ratio(samples[top], samples[below]), "x", target))
    return [row | {"name": f"{label}: {row['name']}"} for row in rows]


def describe_run(args: argparse.Namespace) -> dict[str, Any]:
    """Date, hardware, versions, settings."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    model = text.partition("model name")[2].partition("\n")[0].lstrip("\t: ")
    names = {"torch": "torch", "transformers": "transformers", "llama_cpp": "llama-cpp-python"}
    packages = [package for name, package in names.items() if util.find_spec(name) is not None]
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "hardware": {
            "cpu": model or os.uname().machine,
            "bf16_instructions": [f for f in ("avx512_bf16", "amx_bf16") if f in text],
            "cores": os.cpu_count(),
            "load_at_start": os.getloadavg()[0],
        },
        "versions": {"python": sys.version.split()[0], "minisafe": minisafe.__version__}
        | {name: metadata.version(name) for name in packages},
        "settings": {k: v for k, v in vars(args).items() if k != "json"},
    }


def print_table(rows: Sequence[Row]) -> None:
    width = max(len(row["name"]) for row in rows)
    print(f"| {'name':{width}} | {'value':>9} | {'unit':8} | {'target':8} | holds |")
    print(f"| {'-' * width} | {'-' * 8}: | {'-' * 8} | {'-' * 8} | ----- |")
    for row in rows:
        holds = {None: "", True: "yes", False: "NO"}[row["holds"]]
        cells = f"| {row['name']:{width}} | {row['value']:>9.4g} | {row['unit']:8}"
        print(f"{cells} | {row['target'] or '':8} | {holds:5} |")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", nargs="+", choices=[*SHAPES, "shipped"], default=["tinyllama"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--new", type=int, default=32, help="tokens timed after the first")
    parser.add_argument("--runs", type=int, default=5, help="rounds")
    parser.add_argument("--buffer-mib", type=int, default=1024, help="size of the 3 read buffers")
    parser.add_argument("--speculate", action="store_true", help="a separate expert, drafted for")
    parser.add_argument("--compile", action="store_true", help="the compiled step, too (minutes)")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    result = describe_run(args) | {"samples": {}}
    rows = [make_row("import minisafe beyond torch", import_seconds(args.runs), "s")]
    for label in args.shape:
        if label == "shipped" and not SHIPPED.is_dir():
            print(f"{SHIPPED}: no such directory, so the shipped model is skipped")
            continue
        subject = shipped_subject() if label == "shipped" else random_subject(SHAPES[label])
        samples = result["samples"][label] = measure(subject, args)
        rows += make_rows(label, samples, bytes_per_token(subject.model, args))
        if args.speculate and label in SHAPES:
            from speculation import speculation_rows  # beside this file

            rows += speculation_rows(label, args.prompt, args.new, args.runs)
    print_table(rows)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"rows": rows} | result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
