"""One fresh process from start to an answer: its seconds and bytes, as JSON.

    python bench/probe.py DIRECTORY --system plain --weights packed --prompt 128

`memory.py` starts it. It imports only what its system needs, so the peer does not pay for minisafe.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import argparse  # noqa: E402 (the clock starts before the imports)
import json  # noqa: E402
from collections.abc import Iterator, Sequence  # noqa: E402
from dataclasses import replace  # noqa: E402
from itertools import islice  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

SYSTEMS = ("plain", "safe", "anchored", "two", "transformers")  # two: a second model is the expert
STATUS = Path("/proc/self/status")
FIELDS = {"VmHWM": "peak", "RssAnon": "anonymous", "RssFile": "file"}


def memory() -> dict[str, int]:
    """Bytes: the peak of resident memory so far, and resident memory now, anonymous and of files.

    Linux only. `resource.getrusage` does not help: its ru_maxrss starts with the parent's size.
    """
    lines = (line.partition(":") for line in STATUS.read_text().splitlines())
    return {FIELDS[key]: int(value.split()[0]) * 1024 for key, _, value in lines if key in FIELDS}


def prompt_of(n: int, vocab_size: int) -> tuple[int, ...]:
    return tuple(7 * i % (vocab_size - 3) + 3 for i in range(n))


def minisafe_answer(args: argparse.Namespace, found: dict[str, Any]) -> Iterator[object]:
    """Tokens of plain, safe or anchored decoding of equal rows, or with a second model; bytes of
    weights (as stored) and caches go to `found`."""
    import torch
    from subjects import subject_of

    from minisafe import SGDS, Generation, Lockstep, Request, Stream
    from minisafe.checkpoint import load_model
    from minisafe.checkpoint.rounded import WEIGHTS
    from minisafe.fast.prepare import prepare
    from minisafe.fast.rounded import load_rounded
    from minisafe.guidance import Anchored, Plain

    rounded = args.directory / WEIGHTS
    if rounded.is_file():
        model = load_rounded(args.directory)
        found["weights"] = rounded.stat().st_size
    else:
        model = load_model(args.directory, args.dtype)
        found["weights"] = sum(each.nbytes for each in model.parameters())
    subject = subject_of(model, torch.Generator().manual_seed(0))
    if not rounded.is_file():
        prepare(model, args.weights)
    n, steering = args.prompt, None
    prompt = prompt_of(n, model.config.vocab_size)
    streams: tuple[Stream, ...] = (Stream(model),)
    rule: Any = Plain()
    if args.system == "safe":
        streams, rule = (*streams, Stream(model, subject.adapter)), SGDS()
        steering = subject.steering
    elif args.system == "anchored":
        adapters = subject.adapter, subject.anchor
        streams, rule = (*streams, *(Stream(model, each) for each in adapters)), Anchored()
        steering = replace(subject.steering, streams=(Anchored.drawn_from,))
    elif args.system == "two":
        expert = prepare(load_model(args.directory, args.dtype), args.weights)
        streams, rule = (*streams, Stream(expert)), SGDS()
    room = n + args.new + 1
    lockstep = Lockstep(streams, args.rows, room, cache_dtype=args.cache_dtype)
    found["caches"] = sum(group.cache.n_bytes for group in lockstep.groups)
    spans = () if steering is None else steering.spans([(n, None)])
    request = Request((prompt,) * len(streams), spans, max_new_tokens=args.new + 1)
    yield from Generation(lockstep, rule, [request] * args.rows, steering)


def transformers_answer(args: argparse.Namespace, found: dict[str, Any]) -> Iterator[object]:
    """Tokens of the peer, loaded as its documentation recommends."""
    from huggingface import transformers_tokens
    from transformers import LlamaForCausalLM

    auto: Any = LlamaForCausalLM
    model = auto.from_pretrained(args.directory, dtype="auto").eval()
    found["weights"] = sum(each.nbytes for each in model.parameters())
    prompt = prompt_of(args.prompt, model.config.vocab_size)
    yield from islice(transformers_tokens((model,), prompt), args.new + 1)


def start_up(system: str) -> None:
    """Import the libraries and let them start their threads and kernels with a first product."""
    import torch

    if system == "transformers":
        from transformers import LlamaForCausalLM  # noqa: F401
    else:
        import minisafe  # noqa: F401
    ones = torch.ones(64, 64, dtype=torch.bfloat16)
    (ones @ ones).sum().item()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path, help="a model directory")
    parser.add_argument("--system", choices=SYSTEMS, default="plain")
    parser.add_argument("--weights", default="packed", help="as in a profile")
    parser.add_argument("--dtype", help="as in a profile; by default the checkpoint's")
    parser.add_argument("--cache-dtype", default="auto", help="as in a profile")
    parser.add_argument("--rows", type=int, default=1, help="equal prompts read together")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--new", type=int, default=8, help="tokens after the first")
    args = parser.parse_args(argv)

    import torch

    torch.set_num_threads(args.threads)
    start_up(args.system)
    imported = time.perf_counter()
    libraries = memory() if STATUS.exists() else {}
    found: dict[str, Any] = {"import_s": imported - STARTED, "caches": 0}
    answer = transformers_answer if args.system == "transformers" else minisafe_answer
    tokens = iter(answer(args, found))
    next(tokens)
    found["first_token_s"] = time.perf_counter() - imported
    for _ in tokens:  # inside the loop, because the model ends with the tokens
        found["now"] = memory() if STATUS.exists() else {}
    found["libraries"] = libraries
    print(json.dumps(found))


if __name__ == "__main__":
    main()
