"""Print ten answers of a real model without and with its profile, as a table of Markdown.

    python weights/real_pairs.py --model DIR

The prompts are harmless and borderline ones: the last of each type in `borderline.jsonl`, with
which no adapter was trained.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import real_prompts  # noqa: E402

import minisafe  # noqa: E402
from minisafe import ChatPrompt  # noqa: E402

TOKENS = 32


def prompts() -> list[str]:
    """The last borderline prompt of ten types that trained no adapter: every second one did. None
    about people who live: a small model says of them what is not so."""
    lines = real_prompts.OWN.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    safe = [row for row in rows if row["kind"] == "borderline" and row["type"] != "privacy_public"]
    return list({row["type"]: row["prompt"] for row in safe[1::2]}.values())[:10]


def cell(text: str) -> str:
    """Text as one cell of a table."""
    return " ".join(text.replace("|", "\\|").split())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    asked = parser.parse_args()
    answers = []
    for safe in (False, True):
        given = {"safe": safe, "max_new_tokens": TOKENS, "temperature": 0.0}
        with minisafe.load(asked.model / "profile.json", given) as session:
            results = session.generate([ChatPrompt.of(text) for text in prompts()], chat=True)
            answers.append([each.text for each in results])
    print("| asked | base | profile |\n|---|---|---|")
    for text, plain, guided in zip(prompts(), *answers, strict=True):
        same = "the same" if plain == guided else cell(guided)
        print(f"| {cell(text)} | {cell(plain)} | {same} |")


if __name__ == "__main__":
    main()
