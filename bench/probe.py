"""One fresh process from start to an answer: what it took in seconds and bytes, as JSON.

    python bench/probe.py DIRECTORY --system plain --weights packed --prompt 128

`memory.py` starts it. It imports only what its system needs, so that the peer pays for no minisafe.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import argparse  # noqa: E402 (the clock runs from before the imports)
import json  # noqa: E402
from collections.abc import Iterator, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

SYSTEMS = ("plain", "safe", "transformers")
STATUS = Path("/proc/self/status")
FIELDS = {"VmHWM": "peak", "RssAnon": "anonymous", "RssFile": "file"}


def memory() -> dict[str, int]:
    """Bytes: the peak of resident memory so far, and what is resident now, anonymous and of files.

    Linux only. Not `resource.getrusage`: its ru_maxrss starts with the size of the parent.
    """
    lines = (line.partition(":") for line in STATUS.read_text().splitlines())
    return {FIELDS[key]: int(value.split()[0]) * 1024 for key, _, value in lines if key in FIELDS}


def prompt_of(n: int, vocab_size: int) -> tuple[int, ...]:
    return tuple(7 * i % (vocab_size - 3) + 3 for i in range(n))


def minisafe_answer(args: argparse.Namespace, found: dict[str, Any]) -> Iterator[object]:
    """Tokens of plain or safe decoding; bytes of weights (as stored) and caches go to `found`."""
    from minisafe import SGDS, Generation, Lockstep, Request, Steering, Stream
    from minisafe.checkpoint import load_model
    from minisafe.guidance import Plain
    from minisafe.prepare import prepare

    model = load_model(args.directory)
    found["weights"] = sum(each.nbytes for each in model.parameters())
    adapter = random_adapter(model)
    prepare(model, args.weights)
    n, config = args.prompt, model.config
    prompt = prompt_of(n, config.vocab_size)
    streams, spans, steering = (Stream(model),), (), None
    guidance: Any = Plain()
    if args.system == "safe":
        streams, guidance = (*streams, Stream(model, adapter)), SGDS()
        vector = adapter.deltas[min(adapter.deltas)].a[0].float()
        steering = Steering({config.n_layers // 4: vector}, scale=1.5, positions="last")
        spans = tuple(steering.spans([(n, None)]))
    lockstep = Lockstep(streams, capacity=n + args.new + 1)
    found["caches"] = sum(group.cache.n_bytes for group in lockstep.groups)
    request = Request((prompt,) * len(streams), spans, max_new_tokens=args.new + 1)
    yield from Generation(lockstep, guidance, [request], steering)


def random_adapter(model: Any) -> Any:
    """A LoRA of rank 4 on all q_proj and v_proj."""
    import torch

    from minisafe.checkpoint import linear_modules
    from minisafe.lora import LoraAdapter, LoraDelta

    generator = torch.Generator().manual_seed(0)
    deltas = {}
    for name, (n_out, n_in) in linear_modules(model).items():
        if name.endswith(("q_proj", "v_proj")):
            a = torch.randn(4, n_in, generator=generator) * n_in**-0.5
            b = torch.randn(n_out, 4, generator=generator)
            deltas[name] = LoraDelta(a.to(model.dtype), b.to(model.dtype), 0.5)
    return LoraAdapter(deltas)


def transformers_answer(args: argparse.Namespace, found: dict[str, Any]) -> Iterator[object]:
    """Tokens of the peer, read the way its documentation says."""
    import torch
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(args.directory, dtype="auto").eval()
    found["weights"] = sum(each.nbytes for each in model.parameters())
    feed, cache = torch.tensor([prompt_of(args.prompt, model.config.vocab_size)]), None
    for _ in range(args.new + 1):
        with torch.inference_mode():
            out = model(feed, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, feed = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
        yield int(feed)


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
    for _ in tokens:  # in the loop, for the end of the tokens is the end of the model
        found["now"] = memory() if STATUS.exists() else {}
    found["libraries"] = libraries
    print(json.dumps(found))


if __name__ == "__main__":
    main()
