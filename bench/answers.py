"""Whether bfloat16 changes a model's greedy answers: the price of the quicker dtype, in text.

    python bench/answers.py weights/smollm2 --prompts benign.jsonl --limit 200 --json answers.json

The same weights answer harmless prompts in float32 and in bfloat16. Rows: the share of equal
answers (with its Wilson 95 % interval), the first token that differs, and the mean negative
log-likelihood (nats per token) of both dtypes' answers under both dtypes: that of the float32
answers says how much bfloat16 misjudges, that of the bfloat16 answers under float32 how much worse
its choices are. `--safe` compares the profile as it is; likelihoods are always the base's.
No answer is kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from report import (
    Progress,
    Row,
    bench_parser,
    describe_run,
    kept_when_stopped,
    make_row,
    write_json,
)

import minisafe
from minisafe.errors import MinisafeError
from minisafe.evaluation.likelihood.scoring import score
from minisafe.evaluation.prompts import load_prompts
from minisafe.evaluation.statistics import wilson
from minisafe.session import Session

WIDE, NARROW = "float32", "bfloat16"
Ids = tuple[int, ...]


def opened(args: argparse.Namespace, dtype: str, safe: bool) -> Session:
    """The profile in a dtype."""
    given = {"dtype": dtype, "weights": args.weights, "max_new_tokens": args.new}
    return minisafe.load(args.profile, given | {"temperature": 0.0, "safe": safe})


def answered(
    args: argparse.Namespace, dtype: str, prompts: Sequence[str], progress: Progress
) -> list[Ids]:
    """The ids of the greedy answers in a dtype."""
    found: list[Ids] = []
    with opened(args, dtype, args.safe) as session:
        for start in range(0, len(prompts), args.batch_size):
            part = prompts[start : start + args.batch_size]
            results = session.generate(part, chat=True, batch_size=args.batch_size)
            found += [each.tokens for each in results]
            progress.say(f"answers in {dtype}")
    return found


def likelihoods(
    args: argparse.Namespace,
    dtype: str,
    prompts: Sequence[str],
    answers: Sequence[Sequence[Ids]],
    progress: Progress,
) -> list[list[float]]:
    """Negative log-likelihood per token of several lists of answers to the prompts, by the base in
    a dtype. An empty answer has 0."""
    found: list[list[float]] = [[] for _ in answers]
    with opened(args, dtype, safe=False) as session:
        for n, prompt in enumerate(prompts):
            for place, each in enumerate(answers):
                found[place].append(nll(session, prompt, each[n]) if each[n] else 0.0)
            progress.say(f"likelihoods in {dtype}")
    return found


def nll(session: Session, prompt: str, answer: Ids) -> float:
    """Nats per token of an answer to a prompt."""
    (scored,) = score(session, [prompt], [answer], chat=True)
    return -float(scored.log_probs.mean())


def first_difference(one: Ids, other: Ids) -> int | None:
    """The first token, from 1, in which two answers differ; None if they are equal."""
    if one == other:
        return None
    shared = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(shared, 1) if a != b), min(len(one), len(other)) + 1)


def share_rows(what: str, hits: int, n: int) -> list[Row]:
    """A share in per cent, with the ends of its interval."""
    low, high = wilson(hits, n)
    named = {what: hits / n, f"{what}, from": low, f"{what}, to": high}
    return [make_row(name, 100 * value, "%") for name, value in named.items()]


def answer_rows(wide: Sequence[Ids], narrow: Sequence[Ids]) -> list[Row]:
    """How alike the answers of both dtypes are."""
    pairs = zip(wide, narrow, strict=True)
    places = [place for pair in pairs if (place := first_difference(*pair)) is not None]
    n = len(wide)
    rows = [make_row("prompts", n, "prompts"), *share_rows("equal answers", n - len(places), n)]
    if places:
        rows.append(make_row("first token that differs, median", median(places), "token"))
        first = sum(place == 1 for place in places)
        rows.append(make_row("answers that differ from their first token on", first, "answers"))
    return rows


def likelihood_rows(found: dict[str, Sequence[Sequence[float]]]) -> list[Row]:
    """Means of both answers under both dtypes; found: by dtype of the likelihood, for the answers
    in float32 and in bfloat16."""
    rows = [
        make_row(f"NLL of {kind}'s answers by {dtype}", fmean(values), "nats")
        for dtype, both in found.items()
        for kind, values in zip((WIDE, NARROW), both, strict=True)
    ]
    (own, others), (misjudged, _) = found[WIDE], found[NARROW]
    means = {
        "float32's answers: NLL by bfloat16 minus by float32": fmean(misjudged) - fmean(own),
        "by float32: NLL of bfloat16's answers minus of its own": fmean(others) - fmean(own),
    }
    return rows + [make_row(name, value, "nats") for name, value in means.items()]


def measure(args: argparse.Namespace, prompts: Sequence[str], rows: list[Row]) -> None:
    """Add all rows."""
    batches = -(-len(prompts) // args.batch_size)
    progress = Progress("answers", 2 * batches)
    wide, narrow = (answered(args, dtype, prompts, progress) for dtype in (WIDE, NARROW))
    rows += answer_rows(wide, narrow)
    progress = Progress("likelihoods", 2 * len(prompts))
    rows += likelihood_rows({
        dtype: likelihoods(args, dtype, prompts, (wide, narrow), progress)
        for dtype in (WIDE, NARROW)
    })  # fmt: skip


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = bench_parser(__doc__, new=64)
    parser.add_argument("profile", type=Path, help="a profile, or a directory that has one")
    parser.add_argument("--prompts", type=Path, required=True, help="harmless prompts")
    parser.add_argument("--column", help="of the prompts, in a file of unknown layout")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--weights", default="auto", help="the setting (docs/profile.md)")
    parser.add_argument("--safe", action="store_true", help="the whole profile")
    args = parser.parse_args(argv)
    if args.limit < 1 or args.batch_size < 1:
        parser.error("--limit and --batch-size: expected 1 or more")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        prompts = [each.text for each in load_prompts(args.prompts, args.column)][: args.limit]
    except MinisafeError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    rows: list[Row] = []
    result: dict[str, Any] = {"rows": rows} | describe_run(args)
    with kept_when_stopped(args.json, rows):
        try:
            measure(args, prompts, rows)
        finally:
            write_json(args.json, result)


if __name__ == "__main__":
    main()
