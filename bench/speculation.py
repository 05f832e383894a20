"""The time of speculation for an expert with separate weights over the base alone, in one run.

    python bench/speed.py --speculate --shape 100m tinyllama
    python bench/speculation.py --shape 100m --json bench/results/speculation.json

The expert is a second model of the base's shape. Its rate of agreement is a parameter, because
random weights would agree almost never or always: guidance reads both models as sGDS does, and then
accepts the base's choice with a given probability (`Agreeing`). All systems run in each round; a
ratio is the median of the rounds' ratios. Prompts are read before the clock starts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any, ClassVar

import torch
from report import Row, bench_parser, describe_run, make_row, print_table, under, write_json
from subjects import SHAPES, random_model, random_prompt
from timing import by_turns, ratio
from torch import Tensor

from minisafe import SGDS, Generation, LlamaConfig, Lockstep, Request, Sampling, Stream
from minisafe.fast.block import forwards_a_token
from minisafe.fast.prepare import prepare
from minisafe.fast.speculation import AUTOMATIC, Speculation
from minisafe.guidance import Plain

SHARES = (0.9, 0.6, 0.0)
TARGETS = {0.9: "<= 1.65", 0.0: "<= 2.1"}  # over the base alone
PLAIN, LOCKSTEP = "base alone", "two models in lockstep"


@dataclass(frozen=True)
class Agreeing:
    """sGDS whose result is replaced by one that accepts a draft with probability `share`."""

    share: float
    sampled: bool
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    n_streams: ClassVar[int] = 2
    drawn_from: ClassVar[int] = 0
    first_tokens: ClassVar[int | None] = None

    def __call__(self, log_probs: tuple[Tensor, ...]) -> Tensor:
        base = log_probs[0]
        SGDS()(log_probs)  # takes its usual time
        if self.sampled:  # the base's distribution, and one token that it almost never draws
            rest = torch.full_like(base, 1 - self.share)
            only = torch.zeros_like(base).scatter(-1, base.argmin(-1, keepdim=True), rest)
            return (self.share * base.exp() + only).log()
        differs = torch.rand(len(base), 1, generator=self.generator) >= self.share
        others = base.scatter(-1, base.argmax(-1, keepdim=True), -torch.inf)
        return torch.where(differs.to(base.device), others, base)


@dataclass(frozen=True)
class Timed:
    """ms per token after the first, and the share of accepted drafts, if there were any."""

    ms: float
    acceptance: float | None = None


def timed(
    streams: tuple[Stream, ...], prompt: tuple[int, ...], new: int, rule: Any,
    temperature: float = 0.0, most: int = 0,
) -> Timed:  # fmt: skip
    """One answer of `new` tokens after the first; blocks of up to `most`, 0 for plain lockstep."""
    lockstep = Lockstep(streams, capacity=len(prompt) + new + AUTOMATIC + 2)
    request = Request((prompt,) * len(streams), (), Sampling(temperature), new + 1)
    given = lockstep, rule, [request]
    generation = Speculation(*given, most=most) if most else Generation(*given)
    feed, started = lockstep.feed, []

    def first_feed(*args: Any) -> Any:
        found = feed(*args)
        started.append(time.perf_counter())
        return found

    lockstep.feed = first_feed  # type: ignore[method-assign,assignment]
    tokens = len(list(generation))
    ms = (time.perf_counter() - started[0]) * 1e3 / (tokens - 1)
    if isinstance(generation, Speculation):
        return Timed(ms, generation.accepted / generation.verified)
    return Timed(ms)


def ideal(acceptance: float) -> float:
    """Time over the base's for this acceptance: the best block length, without other costs."""
    return min(forwards_a_token(block, acceptance) for block in range(1, 65))


def two_models(config: LlamaConfig, weights: str) -> tuple[Stream, Stream]:
    generators = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    base, expert = (prepare(random_model(config, each), weights) for each in generators)
    return Stream(base), Stream(expert)


def measure(
    config: LlamaConfig, n_prompt: int, new: int, runs: int, weights: str
) -> dict[str, list[Timed]]:
    """Every system, round by round; a first round warms up."""
    streams = two_models(config, weights)
    run = partial(timed, prompt=random_prompt(n_prompt, config.vocab_size))
    systems = {
        PLAIN: partial(run, streams[:1], rule=Plain()),
        LOCKSTEP: partial(run, streams, rule=SGDS()),
    }
    for share in SHARES:
        for how, temperature in (("greedy", 0.0), ("sampled", 1.0)):
            systems[f"agreement {share:g}, {how}"] = partial(
                run, streams, rule=Agreeing(share, temperature > 0),
                temperature=temperature, most=AUTOMATIC,
            )  # fmt: skip
    by_turns(1, *(partial(system, new=min(new, 4)) for system in systems.values()))
    found = by_turns(runs, *(partial(system, new=new) for system in systems.values()))
    return dict(zip(systems, found, strict=True))


def make_rows(label: str, samples: dict[str, list[Timed]]) -> list[Row]:
    """Time over the base's for each system, its acceptance, and the ideal time for that."""
    plain = [each.ms for each in samples[PLAIN]]
    rows = [make_row(PLAIN, median(plain), "ms")]
    for name, found in samples.items():
        if name == PLAIN:
            continue
        over = ratio([each.ms for each in found], plain)
        share = float(name.split()[1].rstrip(",")) if name != LOCKSTEP else None
        target = None if share is None else TARGETS.get(share)
        rows.append(make_row(f"{name}, over base alone, time", over, "x", target))
        if share is not None:
            acceptance = median(each.acceptance or 0.0 for each in found)
            rows.append(make_row(f"{name}, acceptance met", acceptance, ""))
            of_ideal = over / ideal(acceptance)
            limit = "<= 1.15" if share == 0.9 else None
            rows.append(make_row(f"{name}, over the ideal", of_ideal, "x", limit))
    return under(f"{label}, speculation", rows)


def speculation_rows(
    label: str, n_prompt: int, new: int, runs: int, weights: str = "auto"
) -> list[Row]:
    """All rows of one of `subjects.SHAPES`: `runs` rounds of `new` tokens after `n_prompt`."""
    return make_rows(label, measure(SHAPES[label], n_prompt, new, runs, weights))


def main(argv: Sequence[str] | None = None) -> None:
    parser = bench_parser(__doc__, new=64)
    parser.add_argument("--shape", nargs="+", choices=[*SHAPES], default=["100m"])
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--weights", default="auto", help="as in a profile")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    result: dict[str, Any] = {"rows": rows} | describe_run(args)
    for label in args.shape:
        rows += speculation_rows(label, args.prompt, args.new, args.runs, args.weights)
        write_json(args.json, result)
    print_table(rows)


if __name__ == "__main__":
    main()
