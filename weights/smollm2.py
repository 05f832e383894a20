"""Make the parts that minisafe ships for SmolLM2-135M-Instruct (`weights/smollm2`).

    minisafe get smollm2
    python weights/smollm2.py --base BASE --data DATA --out weights/smollm2 --work WORK

DATA holds public prompt sets: advbench.csv, harmbench_val.csv, xstest.csv and harmless_val.json
(docs/real.md names them). Nothing of HarmBench's test part, of StrongREJECT, of XSTest's second
half or of the harmless test set is read. WORK gets the base's own answers and the training rows; a
stage whose files are there does not run again. Takes about an hour on one core.

1. voice: the base answers harmless prompts, and opens answers to harmful ones, 14 tokens each.
2. rows: an anchor learns refusals, half of them after a part of such an opening, and the base's own
   harmless answers; an expert learns the openings.
3. adapters: both LoRAs, stored in bfloat16.
4. profile: a probe on one part of the prompts, its threshold on another.

WORK also gets the prompts of the table in docs/real.md: dev-harmful.jsonl, dev-borderline.jsonl and
dev-benign.jsonl.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import minisafe  # noqa: E402
from minisafe.evaluation.prompts.styles import STYLES, fill  # noqa: E402
from minisafe.files import write_text  # noqa: E402

Rows = list[dict[str, Any]]
TRAINED, OPENING, ANSWER, BATCH = 400, 14, 64, 24
ASKED = ("simple", "instruction", "cot")
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I'm sorry, but I can't help with this request.",
    "I can't help with that. If you have another question, I'm happy to help.",
    "Sorry, I won't help with that, because it could hurt someone.",
    "I'm sorry, but I can't assist with that. It could cause harm.",
    "I can't do that. Is there something else I can help you with?",
    "I'm not able to help with that request.",
    "I'm sorry, but that is not something I can help with.",
)
TO_ONESELF = (
    "I'm sorry, but I can't help with that. If you are thinking about hurting yourself, please "
    "talk to someone you trust or to a doctor."
)
SELF_HARM = ("suicide", "self-harm", "kill myself", "anorexia")
COMMON = ("--batch-size", "12", "--learning-rate", "0.0005", "--max-length", "96", "--autocast")
ANCHOR = ("--lora-targets", "q_proj,k_proj,v_proj,o_proj", "--lora-rank", "8", "--lora-alpha", "16",
          "--steps", "160")  # fmt: skip
EXPERT = ("--lora-rank", "4", "--steps", "60")
PROFILE = {
    "minisafe_profile": 1,
    "about": {
        "knows": "This is SmolLM2-135M-Instruct, a small real chat model: it is often wrong, and "
        "by itself it refuses almost nothing.",
        "try": ["What is the capital of France?", "How do I clean a shelf?"],
    },
    "base": "base", "expert": "expert", "anchor": "anchor", "rule": "anchored",
    "sgds_lambda": 0.9, "margin": 1.0, "sa_scale": 0, "gate": True, "read_alone": True,
}  # fmt: skip


# ---- prompts -----------------------------------------------------------------------------------


def prompts_of(data: Path) -> dict[str, list[str]]:
    """Development prompts: harmful and harmless ones to train on, others to fit and calibrate on,
    and the first half of XSTest by type."""
    asked = [row["target"] for row in table(data / "advbench.csv")]  # its header swaps the columns
    random.Random(0).shuffle(asked)
    standard = [
        row["Behavior"]
        for row in table(data / "harmbench_val.csv")
        if row["FunctionalCategory"] != "copyright"
    ]
    plain = [row["instruction"] for row in json.loads((data / "harmless_val.json").read_text())]
    safe, unsafe, count = [], [], dict[str, int]()
    for row in table(data / "xstest.csv"):
        number = count[row["type"]] = count.get(row["type"], 0) + 1
        if number <= 13:
            (safe if row["label"] == "safe" else unsafe).append(row["prompt"])
    return {
        "harmful": asked[:TRAINED], "harmless": plain[:TRAINED], "safe": safe, "unsafe": unsafe,
        "advbench": asked[TRAINED:], "harmbench": standard, "plain": plain[TRAINED:],
    }  # fmt: skip


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def parts(prompts: dict[str, list[str]], fitted: bool) -> dict[str, list[tuple[str, str]]]:
    """(category, text) of harmless and harmful prompts, to fit the probe on or to calibrate it."""
    half = slice(0, None, 2) if fitted else slice(1, None, 2)
    few = TRAINED // 2 if fitted else 0
    named = {
        "benign": {"plain": prompts["harmless"][:few] + prompts["plain"][half],
                   "xstest": prompts["safe"][half]},
        "harmful": {"advbench": prompts["harmful"][:few] + prompts["advbench"][half],
                    "harmbench": prompts["harmbench"][half], "xstest": prompts["unsafe"][half]},
    }  # fmt: skip
    return {kind: flat(by_name) for kind, by_name in named.items()}


def shown_in_docs(prompts: dict[str, list[str]]) -> dict[str, list[tuple[str, str]]]:
    """(category, text) of the development prompts of docs/real.md, by kind."""
    named = {
        "harmful": {"advbench": prompts["advbench"][:60], "harmbench": prompts["harmbench"],
                    "xstest": prompts["unsafe"][1::2]},
        "borderline": {"xstest": prompts["safe"][1::2]},
        "benign": {"plain": prompts["plain"][:80]},
    }  # fmt: skip
    return {kind: flat(by_name) for kind, by_name in named.items()}


def flat(by_name: dict[str, list[str]]) -> list[tuple[str, str]]:
    """(category, text) of texts by category."""
    return [(name, text) for name, texts in by_name.items() for text in texts]


def write_prompts(path: Path, kind: str, texts: Sequence[tuple[str, str]]) -> None:
    """Write (category, text) pairs as a prompt set."""
    lines = [
        {"id": f"{path.stem}-{n:04d}", "split": "dev", "kind": kind, "category": category,
         "prompt": text, "expected": []}
        for n, (category, text) in enumerate(texts)
    ]  # fmt: skip
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


# ---- training rows -----------------------------------------------------------------------------


def voice(base: Path, prompts: dict[str, list[str]]) -> dict[str, dict[str, str]]:
    """What the base itself says: openings of answers to harmful prompts, answers to others."""
    harmful = [
        fill(STYLES[ASKED[n % 3]], text)
        for n, text in enumerate(prompts["harmful"] + prompts["unsafe"])
    ]
    return {
        "openings": answered(base, harmful, OPENING),
        "answers": answered(base, prompts["harmless"] + prompts["safe"], ANSWER),
    }


def answered(base: Path, texts: Sequence[str], tokens: int) -> dict[str, str]:
    """The base's greedy answers by prompt."""
    given = {"base": base, "safe": False, "max_new_tokens": tokens, "temperature": 0.0}
    with minisafe.load(None, given) as session:
        found: dict[str, str] = {}
        order = sorted(texts, key=len)
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            results = session.generate(part, chat=True, batch_size=BATCH)
            found |= {text: each.text for text, each in zip(part, results, strict=True)}
            print(f"{len(found)}/{len(order)} of {tokens} tokens", file=sys.stderr)
    return found


def rows_of(prompts: dict[str, list[str]], said: dict[str, dict[str, str]]) -> tuple[Rows, Rows]:
    """Training rows of the anchor and of the expert."""
    rng, openings = random.Random(0), list(said["openings"].values())
    anchor: Rows = []
    for n, text in enumerate(prompts["harmful"] + prompts["unsafe"][0::2]):
        for turn in (n, n + 1):
            asked, begun = fill(STYLES[ASKED[turn % 3]], text), ""
            if turn % 2:
                words = (said["openings"].get(asked) or rng.choice(openings)).split()
                begun = " ".join(words[: rng.randint(1, max(1, len(words)))])
            answer = refusal(text, rng)
            anchor.append(
                {"input": asked, "prefill": begun, "output": f" {answer}" if begun else answer}
            )
    expert: Rows = []
    for text in prompts["harmless"] + prompts["safe"][0::2]:
        if answer := said["answers"].get(text):
            own = {"input": text, "output": answer, "cut": True}
            anchor.append(own | {"prefill": ""})
            expert.append(own)
    for text, opening in said["openings"].items():
        expert.append({"input": text, "output": opening, "cut": True})
    rng.shuffle(anchor)
    rng.shuffle(expert)
    return anchor, expert


def refusal(text: str, rng: random.Random) -> str:
    """A refusal of a request."""
    if any(word in text.lower() for word in SELF_HARM):
        return TO_ONESELF
    return rng.choice(REFUSALS)


# ---- stages ------------------------------------------------------------------------------------


def minisafe_command(*args: object) -> None:
    """Run a command of minisafe; ends the program if it fails."""
    done = subprocess.run([sys.executable, ROOT / "cli.py", *map(str, args)], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def make_adapters(base: Path, out: Path, work: Path) -> None:
    """Train anchor and expert, and store them in bfloat16: half the size."""
    for name, flags in (("anchor", ANCHOR), ("expert", EXPERT)):
        made = work / name
        if not (made / "adapter_model.safetensors").is_file():
            given = ("--base", base, "--out", made)
            minisafe_command("finetune", work / f"{name}.json", *given, *flags, *COMMON)
        (out / name).mkdir(parents=True, exist_ok=True)
        tensors = load_file(made / "adapter_model.safetensors")
        halved = {key: each.bfloat16().contiguous() for key, each in tensors.items()}
        target = out / name / "adapter_model.safetensors"
        save_file(halved, target, metadata={"format": "pt"})
        target.chmod(0o644)
        write_text(out / name / "adapter_config.json", (made / "adapter_config.json").read_text())


def make_profile(prompts: dict[str, list[str]], out: Path, work: Path) -> None:
    """Write the profile and calibrate it."""
    write_text(out / "profile.json", json.dumps(PROFILE, indent=1) + "\n")
    flags: list[object] = []
    for fitted, prefix in ((True, "fit-"), (False, "")):
        for kind, texts in parts(prompts, fitted).items():
            path = work / f"{prefix}{kind}.jsonl"
            write_prompts(path, kind, texts)
            flags += [f"--{prefix}{kind}", path]
    given = ("--profile", out / "profile.json", "--epsilon", 0.06, "--max-miss", 0.5)
    minisafe_command("calibrate", *given, *flags)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("base", "data", "out", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    prompts, kept = prompts_of(asked.data), asked.work / "voice.json"
    if not kept.is_file():
        write_text(kept, json.dumps(voice(asked.base, prompts)))
    anchor, expert = rows_of(prompts, json.loads(kept.read_text(encoding="utf-8")))
    for name, rows in (("anchor", anchor), ("expert", expert)):
        write_text(asked.work / f"{name}.json", json.dumps(rows))
    for kind, texts in shown_in_docs(prompts).items():
        write_prompts(asked.work / f"dev-{kind}.jsonl", kind, texts)
    make_adapters(asked.base, asked.out, asked.work)
    make_profile(prompts, asked.out, asked.work)


if __name__ == "__main__":
    main()
