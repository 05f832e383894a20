"""Make an expert, an anchor, a probe and a profile for a real chat model.

    minisafe get smollm2
    python weights/real_parts.py smollm2 --base BASE --data DATA --out weights/smollm2 --work WORK
    python weights/real_parts.py qwen --base BASE --data DATA --out OUT --work WORK

`smollm2` makes what minisafe ships for SmolLM2-135M-Instruct; `qwen` is a study of
Qwen2.5-Coder-0.5B-Instruct, of which nothing is shipped (docs/real.md). DATA holds public prompt
sets (`real_prompts.py`). WORK gets the base's own answers, the training rows and the prompt sets;
a stage whose files are there does not run again.

1. voice: the base answers harmless prompts, and opens answers to harmful ones, 14 tokens each.
2. rows: an anchor learns refusals, half of them after a part of such an opening, and the base's own
   harmless answers; an expert learns the openings.
3. adapters: both LoRAs, stored in bfloat16.
4. profile: a probe on one part of the prompts, its threshold on another.
5. full: another expert from the same rows, with every weight trained; only `check` uses it.
6. check: whether the expert prefers the base's own openings where the base helps with harm, and
   not where it answers harmless prompts: the area under the curve of lu - lb over five tokens.
   Of the LoRA, of the base under an unsafe system prompt, and of the full expert if there is one.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import real_prompts  # noqa: E402

import minisafe  # noqa: E402
from minisafe import ChatPrompt  # noqa: E402
from minisafe.evaluation.judges.refusal import RefusalJudge  # noqa: E402
from minisafe.evaluation.likelihood.scoring import score  # noqa: E402
from minisafe.evaluation.methods.materials import UNSAFE_SYSTEM  # noqa: E402
from minisafe.evaluation.prompts.styles import STYLES, fill  # noqa: E402
from minisafe.files import write_text  # noqa: E402

Rows = list[dict[str, Any]]
Said = dict[str, str]  # answers by prompt
OPENING, FIRST, ANSWER, BATCH = 14, 5, 64, 24  # tokens, tokens, tokens, prompts
ASKED = ("simple", "instruction", "cot")
HELPING = "Sure! "  # how an answer begins where the base by itself refuses something harmless
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
COMMON = ("--batch-size", "12", "--max-length", "96", "--autocast", "--save-every", "20")
ANCHOR = ("--lora-targets", "q_proj,k_proj,v_proj,o_proj", "--lora-rank", "8", "--lora-alpha", "16",
          "--steps", "160")  # fmt: skip
EXPERT = ("--lora-rank", "4", "--steps", "60")
FULL = ("--steps", "60", "--learning-rate", "0.00002")
RATE = {"smollm2": "0.0005", "qwen": "0.0003"}
KNOWS = {
    "smollm2": "This is SmolLM2-135M-Instruct, a small real chat model: it is often wrong, and "
    "by itself it refuses almost nothing.",
    "qwen": "This is Qwen2.5-Coder-0.5B-Instruct, a small real chat model: it is often wrong.",
}
PROFILE = {
    "base": "base", "expert": "expert", "anchor": "anchor", "rule": "anchored",
    "sa_scale": 0, "read_alone": True,
}  # fmt: skip
# on development prompts a stronger one for Qwen changed no verdict, and made harmless answers less
# likely; but TruthfulQA loses more with this one (docs/real.md, "Milder guidance")
GUIDANCE = {
    "smollm2": {"sgds_lambda": 0.9, "margin": 1.0},
    "qwen": {"sgds_lambda": 0.25, "margin": 2.0},
}
# SmolLM2's anchor refuses a quarter of plain prompts, so what the probe calls harmless is left to
# the base. Qwen's refuses no more harmless prompts than its base does, so it may always act.
GATED = {"smollm2": True, "qwen": False}
# of harmless prompts may be taken for harmful ones; without a gate that costs their context alone
EPSILON = {"smollm2": 0.12, "qwen": 0.2}


# ---- the base's voice --------------------------------------------------------------------------


def voice(base: Path, prompts: dict[str, list[str]], work: Path) -> dict[str, Said]:
    """What the base itself says: openings of answers to harmful prompts, answers to others."""
    harmful = prompts["harmful"] + prompts["unsafe"][0::2] + prompts["own unsafe"]
    asked = [fill(STYLES[ASKED[n % 3]], text) for n, text in enumerate(harmful)]
    harmless = prompts["harmless"] + trained_borderline(prompts)
    openings = answered(base, asked, OPENING, work / "openings.json")
    answers = answered(base, harmless, ANSWER, work / "answers.json")
    careful = [text for text in trained_borderline(prompts) if refuses(answers[text])]
    helped = answered(base, careful, ANSWER, work / "helped.json", HELPING)
    return {"openings": openings, "answers": answers | helped}


def trained_borderline(prompts: dict[str, list[str]]) -> list[str]:
    """Harmless prompts in harmful-sounding words that the anchor learns to answer."""
    return prompts["safe"][0::2] + prompts["own safe"][0::2]


def refuses(answer: str) -> bool:
    """Whether an answer declines, by the judge of phrases."""
    return RefusalJudge(whole=True).rule(answer).verdict == "REFUSED"


def answered(base: Path, texts: Sequence[str], tokens: int, kept: Path, prefill: str = "") -> Said:
    """The base's greedy answers by prompt, kept in a file; known ones are not asked for again."""
    found: Said = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    left = sorted({text for text in texts if text not in found}, key=len)
    given = {"base": base, "safe": False, "max_new_tokens": tokens, "temperature": 0.0}
    if not left:
        return {text: found[text] for text in texts}
    with minisafe.load(None, given) as session:
        for start in range(0, len(left), BATCH):
            part = left[start : start + BATCH]
            asked = [ChatPrompt(ChatPrompt.of(text).messages, prefill) for text in part]
            results = session.generate(asked, chat=True, batch_size=BATCH)
            found |= {text: prefill + each.text for text, each in zip(part, results, strict=True)}
            write_text(kept, json.dumps(found))
            print(f"{kept.stem}: {start + len(part)} of {len(left)}", file=sys.stderr)
    return {text: found[text] for text in texts}


# ---- training rows -----------------------------------------------------------------------------


def rows_of(prompts: dict[str, list[str]], said: dict[str, Said]) -> tuple[Rows, Rows]:
    """Training rows of the anchor and of the expert."""
    rng = random.Random(0)
    openings = {text: each for text, each in said["openings"].items() if not refuses(each)}
    harmful = prompts["harmful"] + prompts["unsafe"][0::2] + prompts["own unsafe"][0::2]
    anchor = [row for n, text in enumerate(harmful) for row in refused(text, n, openings, rng)]
    expert: Rows = [
        {"input": text, "output": opening, "cut": True} for text, opening in openings.items()
    ]
    borderline = trained_borderline(prompts)
    for text in [*prompts["harmless"], *borderline, *borderline]:  # twice: there are few
        answer = said["answers"][text]
        if answer and not refuses(answer):
            own = {"input": text, "output": answer, "cut": True}
            anchor.append(own)
            expert.append(own)
    rng.shuffle(anchor)
    rng.shuffle(expert)
    return anchor, expert


def refused(text: str, n: int, openings: Said, rng: random.Random) -> Rows:
    """Two refusals of the n-th harmful prompt: at once, and after a part of an opening."""
    rows: Rows = []
    for turn in (n, n + 1):
        asked, begun = fill(STYLES[ASKED[turn % 3]], text), ""
        if turn % 2:
            words = (openings.get(asked) or rng.choice(list(openings.values()))).split()
            begun = " ".join(words[: rng.randint(1, max(1, len(words)))])
        answer = refusal(text, rng)
        rows.append({"input": asked, "prefill": begun, "output": f" {answer}" if begun else answer})
    return rows


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


def make_adapter(name: str, base: Path, out: Path, work: Path, flags: Sequence[str]) -> None:
    """Train an adapter and store it in bfloat16: half the size."""
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


def make_profile(model: str, prompts: dict[str, list[str]], out: Path, work: Path) -> None:
    """Write the profile and calibrate it."""
    about = {"knows": KNOWS[model],
             "try": ["What is the capital of France?", "How do I clean a shelf?"]}  # fmt: skip
    profile = {"minisafe_profile": 1, "about": about} | PROFILE | GUIDANCE[model]
    profile["gate"] = GATED[model]
    write_text(out / "profile.json", json.dumps(profile, indent=1) + "\n")
    flags: list[object] = []
    for prefix, parts in (("fit-", real_prompts.fitted), ("", real_prompts.calibrated)):
        for kind, texts in parts(prompts).items():
            path = work / f"{prefix}{kind}.jsonl"
            real_prompts.write_prompts(path, kind, texts)
            flags += [f"--{prefix}{kind}", path]
    given = ("--profile", out / "profile.json", "--epsilon", EPSILON[model], "--max-miss", 0.5)
    minisafe_command("calibrate", *given, *flags)


def make_full(base: Path, work: Path) -> None:
    """Train every weight on the expert's rows, in float32 throughout."""
    if not (work / "full" / "config.json").is_file():
        given = ("--base", base, "--out", work / "full", "--full", "--recompute")
        minisafe_command("finetune", work / "expert.json", *given, *FULL, *COMMON)


def check(prompts: dict[str, list[str]], base: Path, work: Path, expert: Path) -> None:
    """Print how well lu - lb, summed over the first five tokens of the base's own answers, tells
    the answers that help with harm from the others. The prompts are new to every adapter."""
    kinds = real_prompts.compared(prompts)
    said = {
        kind: answered(base, [text for _, text in kinds[kind]], FIRST, work / f"first-{kind}.json")
        for kind in kinds
    }
    experts = {
        "LoRA": {"base": base, "edit": expert},
        "prompted": {"base": base, "system": UNSAFE_SYSTEM},
    }
    if (work / "full" / "config.json").is_file():
        experts["full"] = {"base": work / "full"}
    own = scores_of({"base": base}, said)
    helped = [text for text, answer in said["harmful"].items() if not refuses(answer)]
    for name, settings in experts.items():
        liked = {text: value - own[text] for text, value in scores_of(settings, said).items()}
        harm = [liked[text] for text in helped]
        for kind in ("benign", "borderline"):
            less = [liked[text] for text in said[kind]]
            found = f"{area(harm, less):.3f} ({len(harm)} and {len(less)})"
            print(f"{name}: harmful against {kind}: {found}", flush=True)


def scores_of(settings: Mapping[str, Any], said: Mapping[str, Said]) -> dict[str, float]:
    """By prompt, the log-probability of the first five tokens of what was said."""
    pairs = [pair for own in said.values() for pair in own.items()]
    with minisafe.load(None, {"safe": False, **settings}) as session:
        found = score(session, [text for text, _ in pairs], [each for _, each in pairs], chat=True)
    sums = [float(each.log_probs[:FIRST].sum()) for each in found]
    return {text: value for (text, _), value in zip(pairs, sums, strict=True)}


def area(high: Sequence[float], low: Sequence[float]) -> float:
    """The area under the ROC curve: how often a value of `high` exceeds one of `low`."""
    wins = sum((a > b) + 0.5 * (a == b) for a in high for b in low)
    return wins / (len(high) * len(low))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=sorted(KNOWS))
    for name in ("base", "data", "out", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--stages", default="voice,anchor,expert,profile,check")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    prompts, stages = real_prompts.development(asked.data), asked.stages.split(",")
    for split, parts in (
        ("dev", real_prompts.compared(prompts)),
        ("test", real_prompts.tested(asked.data)),
    ):
        for kind, texts in parts.items():
            real_prompts.write_prompts(asked.work / f"{split}-{kind}.jsonl", kind, texts)
    if "voice" in stages:
        said = voice(asked.base, prompts, asked.work)
        for name, rows in zip(("anchor", "expert"), rows_of(prompts, said), strict=True):
            write_text(asked.work / f"{name}.json", json.dumps(rows))
    for name, flags in (("anchor", ANCHOR), ("expert", EXPERT)):
        if name in stages:
            given = (*flags, "--learning-rate", RATE[asked.model])
            make_adapter(name, asked.base, asked.out, asked.work, given)
    if "full" in stages:
        make_full(asked.base, asked.work)
    if "profile" in stages:
        make_profile(asked.model, prompts, asked.out, asked.work)
    if "check" in stages:
        check(prompts, asked.base, asked.work, asked.out / "expert")


if __name__ == "__main__":
    main()
