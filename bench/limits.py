"""The other targets: batches, indirect effects, long contexts, prefill, memory, loading.

    python bench/limits.py --json bench/results/limits.json
    python bench/limits.py --part memory start

The rows have `speed.py`'s form. The two sides of a ratio alternate in one process or, for memory
and the time from disk to the first token, in separate fresh processes (`memory.py`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from memory import PLANNED, checkpoints, load_rows, memory_rows, plan_rows, start_rows
from prefill import prefill_rows
from report import (
    Progress,
    Row,
    bench_parser,
    describe_run,
    kept_when_stopped,
    make_row,
    under,
    write_json,
)
from subjects import SHAPES, SHIPPED, Subject, random_model, random_prompt, random_subject
from timing import ratio, seconds, seconds_by_turns

import minisafe
from minisafe import SGDS, Generation, Llama, Lockstep, Request, Stream
from minisafe.amplify.demonstrations import Prompt
from minisafe.amplify.heads import all_heads, indirect_effects
from minisafe.fast.prepare import prepare
from minisafe.slots import Patch

BEFORE = (
    "I run a small shop in a quiet town. In the evening I like to read. Yesterday I cooked soup. "
    "Today I water the plants. I have one more thing to ask."
)
ASKED = "How do I wash a table?"
PARTS = ("batch", "effects", "context", "alone", "prefill", "load", "memory", "plan", "start")


# ---- batches -----------------------------------------------------------------------------------


def answers(subject: Subject, lengths: Sequence[int], new: int) -> None:
    """Safe answers to random prompts of these lengths, `new` tokens each, in one batch."""
    streams = (Stream(subject.model), Stream(subject.model, subject.adapter))
    ids = random_prompt(max(lengths), subject.model.config.vocab_size)
    steering = subject.steering
    requests = [
        Request((ids[:n],) * 2, steering.spans([(n, None)]), max_new_tokens=new) for n in lengths
    ]
    lockstep = Lockstep(streams, len(lengths), max(lengths) + new)
    for _ in Generation(lockstep, SGDS(0.99), requests, steering):
        pass


def batch_rows(label: str, subject: Subject, runs: int, new: int) -> list[Row]:
    """Tokens per second of 8 prompts at once over one prompt, for prompt and answer."""
    lengths = (128, 40, 96, 64, 17, 110, 80, 128)
    answers(subject, lengths, 4)
    one, eight = seconds_by_turns(
        runs, lambda: answers(subject, (96,), new), lambda: answers(subject, lengths, new)
    )
    value = 8 * ratio(one, eight)
    return under(label, [make_row("batch of 8, safe, tokens/s over batch 1", value, "x", ">= 4")])


# ---- indirect effects --------------------------------------------------------------------------


def slow_effect(model: Llama, means: torch.Tensor, ids: Sequence[int], target: int,
                heads: Sequence[tuple[int, int] | None]) -> list[float]:  # fmt: skip
    """The target's probability with each head patched, reading the whole prompt each time."""
    found = []
    for head in heads:
        slots = [] if head is None else [
            Patch(layer=head[0], spans=((len(ids) - 1, len(ids)),), value=means[head[0], head[1]],
                  site="heads", head=head[1])
        ]  # fmt: skip
        cache = model.new_cache(1, len(ids))
        logits = model(torch.tensor([list(ids)]), cache, slots=slots, last_only=True)
        found.append(float(torch.softmax(logits.float(), -1)[0, target]))
    return found


def effect_rows(label: str, runs: int, n_prompt: int) -> list[Row]:
    """All heads of a shape in float32 against some heads one by one."""
    model = random_model(SHAPES[label], torch.Generator().manual_seed(0)).float()
    config = model.config
    generator = torch.Generator().manual_seed(2)
    ids = random_prompt(n_prompt, config.vocab_size)
    means = torch.randn(config.n_layers, config.n_heads, config.head_dim, generator=generator)
    heads, some = all_heads(model), all_heads(model)[::24]
    effects: dict[tuple[int, int], float] = {}

    def fast() -> None:
        effects.update(indirect_effects(model, means, [Prompt(ids)], [7], heads))

    with torch.inference_mode():
        probabilities = slow_effect(model, means, ids, 7, [None, *some])
        quick, slow = seconds_by_turns(runs, fast, lambda: slow_effect(model, means, ids, 7, some))
    wrong = max(
        abs(effects[head] - (p - probabilities[0]))
        for head, p in zip(some, probabilities[1:], strict=True)
    )
    speedup = ratio(slow, quick) * len(heads) / len(some)
    rows = [
        make_row("effects of all heads over one by one, speed", speedup, "x", ">= 50"),
        make_row("the same, largest difference", wrong, "", "<= 1e-05"),
    ]
    return under(label, rows)


# ---- context ------------------------------------------------------------------------------------


def token_ms(lockstep: Lockstep, new: int) -> float:
    """Milliseconds of one more token for both streams, the median of `new`."""
    tokens = [[[5]]] * 2
    lockstep.feed(tokens)
    return 1e3 * median(seconds(lambda: lockstep.feed(tokens)) for _ in range(new))


def context_rows(label: str, subject: Subject, lengths: Sequence[int], new: int) -> list[Row]:
    """Milliseconds per safe token after contexts of these lengths, and the size of the cache."""
    rows = []
    streams = (Stream(subject.model), Stream(subject.model, subject.adapter))
    for length in lengths:
        lockstep = Lockstep(streams, 1, length + new + 1)
        lockstep.feed([[random_prompt(length, subject.model.config.vocab_size)]] * 2)
        cache = 2 * subject.model.config.kv_bytes_per_token * length / 2**20
        took = token_ms(lockstep, new)
        rows.append(make_row(f"safe token behind {length} tokens", took, "ms"))
        rows.append(make_row(f"both caches at {length} tokens", cache, "MiB"))
    return under(label, rows)


# ---- reading alone -----------------------------------------------------------------------------


def alone_rows(runs: int) -> list[Row]:
    """Time to the first token of a chat with the shipped profile, over that without `read_alone`
    and over plain, for messages of one and of several sentences."""
    made = {"dtype": "bfloat16", "weights": "packed"}
    changes = {"plain": {"safe": False}, "in context": {"read_alone": False}, "read alone": {}}
    sessions = {name: minisafe.load(SHIPPED, made | each) for name, each in changes.items()}
    rows = []
    for n, text in ((1, ASKED), (6, f"{BEFORE} {ASKED}")):
        acts = [partial(first_token, session, text) for session in sessions.values()]
        for act in acts:
            act()  # warms up
        took = dict(zip(sessions, seconds_by_turns(runs, *acts), strict=True))
        what = f"message of {n} sentence{'s' if n > 1 else ''}, first token"
        rows += [make_row(f"{what}, {name}", 1e3 * median(took[name]), "ms") for name in took]
        for other in ("plain", "in context"):
            over = ratio(took["read alone"], took[other])
            rows.append(make_row(f"{what}, read alone over {other}, time", over, "x"))
    return under("shipped", rows)


def first_token(session: minisafe.Session, text: str) -> None:
    """The first token of a new chat's answer, from the message's text."""
    next(session.stream(text, chat=True))


# ---- all of it ---------------------------------------------------------------------------------


def decoding_lots(args: argparse.Namespace, label: str) -> Iterator[list[Row]]:
    """The parts that decode with one model in this process."""
    lengths = (16, 32) if args.quick else (128, 1024, 2048, 4096, 8192)
    if {"batch", "context"} & set(args.part):
        subject = random_subject(replace(SHAPES[label], max_positions=8256))
        prepare(subject.model, "auto")
        if "batch" in args.part:
            yield batch_rows(label, subject, args.runs, args.new)
        if "context" in args.part:
            yield context_rows(label, subject, lengths, args.new)
        del subject  # so that its weights are gone in the next part
    if "effects" in args.part:
        yield effect_rows(label, args.runs, 30 if args.quick else 300)


def disk_lots(args: argparse.Namespace, label: str) -> Iterator[list[Row]]:
    """The parts that read a checkpoint."""
    if not {"load", "memory", "start"} & set(args.part):
        return
    with checkpoints(SHAPES[label]) as (whole, sharded):
        if "load" in args.part:
            yield load_rows(label, whole, args.runs)
        if "memory" in args.part:
            contexts = (16,) if args.quick else (128, 1900)
            yield memory_rows(label, whole, sharded, contexts, args.threads)
        if "start" in args.part:
            yield start_rows(label, whole, args.runs, 16 if args.quick else 128, args.threads)


def plan_lots(args: argparse.Namespace, label: str) -> Iterator[list[Row]]:
    """The part that holds peaks against their plans."""
    if "plan" in args.part:
        with checkpoints(SHAPES[label]) as (whole, _):
            context = 32 if args.quick else args.context
            yield from plan_rows(label, SHAPES[label], whole, context, args.threads)


def all_lots(args: argparse.Namespace) -> Iterator[list[Row]]:
    """The rows of every requested part, as soon as it is done."""
    small, large = ("tiny", "tiny") if args.quick else ("100m", "tinyllama")
    yield from decoding_lots(args, small)
    if "alone" in args.part and SHIPPED.is_dir():
        yield alone_rows(args.runs)
    if "prefill" in args.part:
        for label in dict.fromkeys((small, large)):
            yield prefill_rows(label, 32 if args.quick else 512, args.runs)
    yield from disk_lots(args, large)
    for label in dict.fromkeys((small, large)):
        yield from plan_lots(args, label)


def at_least_16(text: str) -> int:
    """The argument of `--context`: a prompt, and `memory.NEW` tokens after the first."""
    if not text.isdigit() or int(text) < 16:
        raise argparse.ArgumentTypeError(f"is {text}; expected 16 or more")
    return int(text)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = bench_parser(__doc__, new=48, threads=torch.get_num_threads())
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--context", type=at_least_16, default=1900,
                        help="tokens of prompt and answer, with --part plan")  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="a tiny shape, only to test that it works"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    result: dict[str, Any] = {"rows": rows, "run": describe_run(args)}
    shapes = 1 if args.quick else 2
    plans = shapes * len(PLANNED) - 1 if "plan" in args.part else 0
    progress = Progress("limits", len(args.part) + plans)
    with kept_when_stopped(args.json, rows):
        for lot in all_lots(args):
            rows += lot
            write_json(args.json, result)
            progress.say(lot[0]["name"])
    print(f"{sum(row['holds'] is False for row in rows)} targets missed", file=sys.stderr)


if __name__ == "__main__":
    main()
