"""What rounding the weights costs in quality: a model beside itself in int8 and in int4.

    python bench/rounded.py weights/tiny/base --questions weights/data/benign-dev.jsonl
    python bench/rounded.py MODEL --limit 50 --json bench/results/rounded.json

The plain model answers each question greedily, in float32. Every form then reads these answers:
KL is the mean divergence of its next-token distribution from the plain one, over the answers'
positions, and "same choice" the share of positions where both like the same token best. "Same
answer" is the share of questions whose greedy answer is the same, token by token. Forms decode in
bfloat16, which has a row of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from report import Progress, describe_run, write_json
from torch import Tensor

from minisafe import Llama
from minisafe.checkpoint import load_model
from minisafe.convert.rounded import directory_source, round_model
from minisafe.fast.rounded import load_rounded
from minisafe.files import json_lines
from minisafe.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
FORMS = (("int8", 0), ("int4", 32), ("int4", 64), ("int4", 128))


def greedy(model: Llama, prompt: Sequence[int], new: int, eos: frozenset[int]) -> list[int]:
    """The greedy answer to one prompt."""
    cache = model.new_cache(1, len(prompt) + new)
    ids, found = torch.tensor([list(prompt)]), list[int]()
    while len(found) < new:
        token = int(model(ids, cache, last_only=True).argmax())
        found.append(token)
        if token in eos:
            break
        ids = torch.tensor([[token]])
    return found


def log_probs(model: Llama, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """(len(answer), vocab), of the tokens of the answer."""
    ids = torch.tensor([[*prompt, *answer[:-1]]])
    return model(ids)[0, len(prompt) - 1 :].float().log_softmax(-1)


def compared(
    model: Llama, plain: Llama, asked: Sequence[tuple[int, ...]], answers: Sequence[list[int]],
    eos: frozenset[int],
) -> dict[str, Any]:  # fmt: skip
    """The numbers of one form."""
    divergences, same, whole = [], [], 0
    for prompt, answer in zip(asked, answers, strict=True):
        expected, found = (log_probs(each, prompt, answer) for each in (plain, model))
        divergences.append((expected.exp() * (expected - found)).sum(-1))
        same.append(expected.argmax(-1) == found.argmax(-1))
        whole += greedy(model, prompt, len(answer), eos) == answer
    return {
        "kl": float(torch.cat(divergences).mean()),
        "same_choice": float(torch.cat(same).float().mean()),
        "same_answer": whole / len(asked), "positions": len(torch.cat(same)),
        "questions": len(asked),
    }  # fmt: skip


def forms_of(directory: Path, root: Path) -> Iterator[tuple[str, int, Llama]]:
    """(name, bytes of the weights' file, model) of each form that fits."""
    plain = load_model(directory, "bfloat16")
    yield "bfloat16", sum(each.nbytes for each in plain.parameters()), plain
    source = directory_source(directory)
    for form, group in FORMS:
        if group and (source.config.hidden % group or source.config.intermediate % group):
            continue
        name, out = f"{form}{f' in groups of {group}' if group else ''}", root / f"{form}-{group}"
        done = round_model(source, out, form, group, "bfloat16", lambda n, total: None)
        yield name, int(done["weights_bytes"]), load_rounded(out)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path, help="a plain model directory")
    default = ROOT / "weights" / "data" / "benign-dev.jsonl"
    parser.add_argument("--questions", type=Path, default=default, help="JSON lines with a prompt")
    parser.add_argument("--limit", type=int, default=100, help="questions, evenly spaced")
    parser.add_argument("--new", type=int, default=48, help="most tokens of an answer")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args(argv)

    tokenizer = load_tokenizer(args.directory)
    plain = load_model(args.directory, "float32")
    rows = [row["prompt"] for _, row in json_lines(args.questions)]
    rows = rows[:: max(1, len(rows) // args.limit)][: args.limit]
    asked = [tokenizer.encode_chat([{"role": "user", "content": text}]).ids for text in rows]
    config = json.loads((args.directory / "config.json").read_text(encoding="utf-8"))
    ends = config.get("eos_token_id")
    eos = frozenset(ends if isinstance(ends, list) else [ends])
    progress = Progress("rounded", len(FORMS) + 2)
    torch.set_num_threads(1)
    with torch.inference_mode(), TemporaryDirectory() as name:
        answers = [greedy(plain, prompt, args.new, eos) for prompt in asked]
        progress.say("float32, the answers")
        found = []
        for form, size, model in forms_of(args.directory, Path(name)):
            row = {"weights": form, "bytes": size}
            found.append(row | compared(model, plain, asked, answers, eos))
            progress.say(form)
            print(json.dumps(found[-1]), flush=True)
    if args.json is not None:
        write_json(args.json, {"rows": found} | describe_run(args))


if __name__ == "__main__":
    main()
