"""The floors of the house, and their table in docs/architecture.md.

    python docs/make_house.py [--check]

`HOUSE` is the table: tests/project/test_house.py holds every import of the package to it, and this
script writes it into the page. With --check it writes nothing and exits with 1 where the page is
another.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parent / "architecture.md"
BEGIN, END = "<!-- floors: docs/make_house.py -->", "<!-- end of floors -->"

# module or folder -> (floor, what it is for); imports go from a higher floor to a lower one
HOUSE = {
    "errors": (0, "named errors: what came, what was expected, what to do"),
    "deadline": (0, "a time budget: when it ends"),
    "declared": (1, "a setting's declaration: name, type, range, help"),
    "files/": (1, "foreign files read with suspicion, own files written whole, text shown safely"),
    "config": (1, "the shape of a model"),
    "gate": (1, "whether an answer is guided at all; its threshold"),
    "logistic": (1, "logistic regression, fitted to its minimum"),
    "probe": (2, "**how harmful a text is**, from how every stream would begin to answer it"),
    "guidance": (1, "**the rule**: log-probabilities of several streams to those to sample from"),
    "divergence": (1, "how far two distributions are apart"),
    "lora": (1, "low-rank changes of weights, as values"),
    "rounding": (1, "weights rounded to 8 or 4 bits, and back"),
    "rotary": (2, "rotary positions"),
    "linear": (2, "a projection, with low-rank rows"),
    "cache_dtype": (2, "keys and values in a smaller dtype"),
    "cache": (3, "keys and values; the cache owns the positions"),
    "sampling": (2, "log-probabilities to a token"),
    "policy": (
        2,
        "**the safety decision**: what the next token is drawn from, which streams read on",
    ),
    "tokenizer/": (2, "text to ids and back; chat templates"),
    "slots": (4, "what to add, record or patch, and where"),
    "step": (5, "what the layers of one forward share"),
    "vectors": (5, "**the vector** as a value, and where it is added"),
    "model": (6, "**the transformer**, top-down, with Hugging Face's names"),
    "lockstep": (7, "**several streams** read the same answer and advance together"),
    "checkpoint/": (7, "directories to values and back: models, adapters, vectors"),
    "engine": (8, "**the sampling loop**: requests in, events out"),
    "convert/": (9, "a model in GGUF, or with rounded weights, to a directory"),
    "fast/": (9, "the same answers sooner: packed, int8, int4, compiled, drafted ahead"),
    "amplify/": (9, "makes a vector: head activations, causal effect"),
    "finetune/": (9, "makes an expert"),
    "editing/": (9, "makes an edited model"),
    "trace/": (10, "what an answer is drawn from, token by token and layer by layer"),
    "session/": (11, "settings to a session; text in, text out; what acted"),
    "get/": (12, "a model that is not shipped: downloaded, checked, converted"),
    "explorer/": (12, "one answer as a page to explore"),
    "evaluation/": (12, "prompts, methods, judges, runner, report"),
    "check/": (12, "decoding invariants, measured on a user's model and machine"),
    "testing/": (13, "the same as property tests, for another kernel or engine (hypothesis)"),
    "cli/": (13, "one command per file"),
}


def table() -> str:
    """The floors from the top, as Markdown."""
    lines = ["| floor | rooms | for |", "|---|---|---|"]
    for floor in sorted({floor for floor, _ in HOUSE.values()}, reverse=True):
        for name, (its, what) in HOUSE.items():
            if its == floor:
                file = f"minisafe/{name}" if name.endswith("/") else f"minisafe/{name}.py"
                lines.append(f"| {floor} | [`{name}`](../{file}) | {what} |")
    return "\n".join(lines)


def page() -> str:
    """docs/architecture.md with the table of today."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the floors into docs/architecture.md.")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    given = parser.parse_args()
    if given.check:
        same = PAGE.read_text(encoding="utf-8") == page()
        print("up to date" if same else "run python docs/make_house.py")
        sys.exit(0 if same else 1)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
