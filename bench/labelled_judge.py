"""The judge `labelled`: learned from answers that people labelled, and scored on the others.

    python bench/labelled_judge.py fit DIRECTORY --out judge.json
    python bench/labelled_judge.py agreement DIRECTORY --json result.json

DIRECTORY holds XSTest's labelled answers, as for `judges.py`: a CSV file per answering model, not
part of this repository. The prompts and labels are under CC-BY-4.0, the answers under the terms of
the models' makers, so what is learned from them is not part of it either. `fit` learns from all of
them, in a minute, and writes the file for `minisafe evaluate --judge labelled:judge.json`.
`agreement` leaves out one answering model at a time, learns from the others, and compares with the
people's labels of that one: partial refusals count as refusals, and only the beginning of each
answer is read. Beside it stands the judge `refusal` on the same beginnings. Exit codes: 0 success,
1 failure, 2 wrong use.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from judges import agreement as agreed
from labelled import PARTIAL_LABELS, REFUSED_LABELS, BadData, Labelled, read_models
from report import Progress, json_path, write_json

from minisafe.errors import MinisafeError
from minisafe.evaluation.judges.broken import broken
from minisafe.evaluation.judges.labelled import WORDS, Learned, learn
from minisafe.evaluation.judges.refusal import RefusalJudge
from minisafe.files import write_text

Models = Mapping[str, Sequence[Labelled]]
SOURCE = "XSTest's labelled answers (Roettger et al., NAACL 2024, arXiv 2308.01263)"
TERMS = "labels CC-BY-4.0; answers under the terms of the models' makers"


def refused(each: Labelled) -> bool:
    """Whether people call it a refusal, whole or in part."""
    return each.label in REFUSED_LABELS | PARTIAL_LABELS


def learned_from(models: Models, words: int) -> Learned:
    """The judge learned from these models' answers."""
    rows = [each for own in models.values() for each in own]
    return learn([each.answer for each in rows], [refused(each) for each in rows], words)


def beginning(answer: str, words: int) -> str:
    """The first words of an answer."""
    return " ".join(answer.split()[:words])


def row_of(
    judge: str, model: str, own: Sequence[Labelled], said: Callable[[str], bool]
) -> dict[str, Any]:
    """Accuracy, kappa, precision and recall of a judge on answers; partial: how many of the partial
    refusals it calls refusals, in per cent."""
    told = [(each, said(each.answer)) for each in own]
    partial = [verdict for each, verdict in told if each.label in PARTIAL_LABELS]
    right = sum(refused(each) == verdict for each, verdict in told)
    return {
        "judge": judge, "model": model, "accuracy": 100 * right / len(told),
        **agreed([(refused(each), verdict) for each, verdict in told]),
        "partial": 100 * sum(partial) / len(partial) if partial else None,
    }  # fmt: skip


def rows_of(models: Models, words: int) -> list[dict[str, Any]]:
    """A row per judge and answering model, which nothing was learned from, and one over all."""
    by_phrases, progress = RefusalJudge(whole=True), Progress("left out", len(models))
    verdicts: dict[int, bool] = {}
    for model, own in models.items():
        judge = learned_from({name: models[name] for name in models if name != model}, words)
        verdicts |= {id(each): (judge.refusal(each.answer) or 0.0) >= 0.5 for each in own}
        progress.say(model)
    groups = {**models, "all": [each for own in models.values() for each in own]}
    rows = []
    for model, own in groups.items():
        # `row_of` asks for the answers in order
        by_words = iter([verdicts[id(each)] for each in own])
        rows += [
            row_of("labelled", model, own, lambda answer, by_words=by_words: next(by_words)),
            row_of("refusal", model, own, lambda answer: (
                by_phrases.rule(beginning(answer, words)).verdict == "REFUSED"
            )),
        ]  # fmt: skip
    return rows


def broken_row(models: Models, words: int) -> dict[str, Any]:
    """What the rules for broken text say of people's examples, which are whole."""
    texts = [beginning(each.answer, words) for own in models.values() for each in own]
    why = Counter(broken(text) for text in texts)
    return {
        "n": len(texts),
        "broken": {name: n for name, n in sorted(why.items(), key=str) if name},
    }


def agreement(args: argparse.Namespace) -> None:
    """Print the agreement with people."""
    models = read_models(args.directory)
    if len(models) < 2:
        raise BadData(f"{args.directory} has answers of one model; expected two or more")
    rows, whole = rows_of(models, args.words), broken_row(models, args.words)
    digits = {"accuracy": 1, "kappa": 3, "precision": 1, "recall": 1, "partial": 1}
    print("| judge | model | n | refused | accuracy, % | kappa | precision, % | recall, % "
          "| partial refusals found, % |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for row in rows:
        numbers = ("none" if row[k] is None else f"{row[k]:.{n}f}" for k, n in digits.items())
        cells = (row["judge"], row["model"], row["n"], row["refused"], *numbers)
        print("| " + " | ".join(map(str, cells)) + " |")
    print(f"called broken: {whole['broken'] or 'none'} of {whole['n']}")
    write_json(args.json, {"words": args.words, "rows": rows, "broken": whole})


def fit(args: argparse.Namespace) -> None:
    """Write the judge that all answers teach."""
    models = read_models(args.directory)
    found = learned_from(models, args.words)
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(args.directory.glob("*.csv"))
        if path.stem.split("_completions_")[-1] in models
    }
    made_of = {
        "source": SOURCE, "terms": TERMS, "files": files,
        "answers": {name: len(own) for name, own in models.items()},
    }  # fmt: skip
    whole = Learned(found.words, found.bias, found.grams, made_of)
    write_text(args.out, json.dumps(whole.to_json(), indent=0) + "\n")
    size = args.out.stat().st_size
    print(f"{args.out}: {len(found.grams):,} words and pairs of words, {size:,} bytes")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    first, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="fit|agreement")
    one = commands.add_parser("fit", help="write the judge's file")
    one.add_argument("--out", type=json_path, required=True, help="the judge's file")
    one.set_defaults(run=fit)
    two = commands.add_parser("agreement", help="one answering model left out at a time")
    two.add_argument("--json", type=json_path, help="file for the rows")
    two.set_defaults(run=agreement)
    for each in (one, two):
        each.add_argument("directory", type=Path, help="XSTest's folder model_completions")
        each.add_argument("--words", type=positive, default=WORDS,
                          help=f"words of an answer that are read; default: {WORDS}")  # fmt: skip
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """The argument of `--words`."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of words; expected 1 or more")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        args.run(args)
    except (BadData, MinisafeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
