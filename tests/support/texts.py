"""Two hundred texts that tell tokenizers apart: ordinary questions, and odd ones."""

from __future__ import annotations

import json
import random
from pathlib import Path

QUESTIONS = Path(__file__).resolve().parents[2] / "weights" / "data" / "benign-dev.jsonl"
PARTS = (
    "Hello", " world", "don't", "WE'LL", " it's", "naïve", " café", "Größe", "日本語", " 한국어",
    "🙂", "👩‍💻",
    "مرحبا", " hello_world", "camelCase", "x=1", "12", " 345", "6789", "3.14", "1,000", "٣", "²",
    "\n", "\n\n", "  ", "   ", "\t", " \n ", "...", "?!", "--", "(a)", "[b]", "{c}", "<d>", "<|x|>",
    "http://a.b/c?d=1", "f(x) = x**2", "'s", "'S", " '", "#", "\u00a0", "\u200b", "e", "ﬁ",
)  # fmt: skip


def texts(n: int = 200, seed: int = 0) -> list[str]:
    """Half of them are questions of the shipped set, half are random parts put together."""
    lines = QUESTIONS.read_text(encoding="utf-8").splitlines()
    asked = [json.loads(line)["prompt"] for line in lines][: n // 2]
    draw = random.Random(seed)
    odd = ["".join(draw.choices(PARTS, k=draw.randint(1, 12))) for _ in range(n - len(asked))]
    return asked + odd


def some_texts() -> list[str]:
    """Sixty of them, of both kinds."""
    return texts()[::3][:20] + texts()[-40:]
