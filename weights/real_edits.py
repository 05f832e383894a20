"""What editing facts does to a real model's safety, and whether the profile's parts still hold.

    python weights/real_edits.py PROFILE --prompts WORK --text TEXT --out edits.json --work SCRATCH

The facts are counterfactual and harmless: countries get each other's capitals (`capitals.py`).
Variants of the profile's base: unedited; rome-N, N rank-one edits one after another (`minisafe
edit`; rome-30 continues rome-10); lora-N, a LoRA on the same N facts as statements (`minisafe
finetune`), which the profile merges (`edit`). A calibration holds for its own weights only, so
every variant, the unedited one too, is calibrated in the same way, which fits its probe again; the
expert and the anchor stay those of the unedited base.

WORK holds what `smollm2.py` leaves: fit-benign.jsonl, fit-harmful.jsonl, benign.jsonl and
harmful.jsonl to calibrate with, and dev-harmful.jsonl, dev-borderline.jsonl and dev-benign.jsonl
to measure (--split test: test-...). TEXT is for the keys' covariance: ordinary questions, a few
thousand tokens (lines, JSONL with prompt or text, or a JSON list with instruction).

A stage whose result is in SCRATCH does not run again. SCRATCH gets models and answers, for the eye
of this machine's user only; edits.json and edits.md hold numbers alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import capitals
from capitals import ASK, Fact
from edit_tables import markdown, refused

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import minisafe  # noqa: E402
from minisafe.editing.subject import locate  # noqa: E402
from minisafe.errors import MinisafeError, PromptError, SettingError  # noqa: E402
from minisafe.evaluation.likelihood.scoring import score  # noqa: E402
from minisafe.evaluation.prompts import load_prompts  # noqa: E402
from minisafe.files import write_text  # noqa: E402
from minisafe.session.profile import load_profile  # noqa: E402
from minisafe.tokenizer import Tokenizer, load_tokenizer  # noqa: E402

UNEDITED, OTHERS, TOKENS = "unedited", 20, 24
CALIBRATION = ("fit-benign", "fit-harmful", "benign", "harmful")
KINDS = {"prompts": "harmful", "borderline": "borderline", "benign": "benign"}  # by flag
METHODS = ("base", "profile", "anchored", "safe-lora")
LORA = ("--lora-targets", "q_proj,v_proj,gate_proj,up_proj,down_proj", "--lora-rank", "8",
        "--lora-alpha", "16", "--learning-rate", "0.0005", "--batch-size", "8",
        "--max-length", "96")  # fmt: skip
DROPPED = ("calibration", "probe", "sha256")  # what holds for the unedited base alone


# ---- facts -------------------------------------------------------------------------------------


def usable(tokenizer: Tokenizer, found: Sequence[Fact]) -> list[Fact]:
    """The facts whose subject a rank-one edit can find in the chat's tokens."""
    kept = []
    for country, old, new in found:
        try:
            locate(tokenizer, ASK, country, capitals.answer(country, new), chat=True)
        except PromptError as error:
            print(f"{country} is left out: {error}", file=sys.stderr)
        else:
            kept.append((country, old, new))
    return kept


# ---- profiles ----------------------------------------------------------------------------------


def edited_profile(data: Mapping[str, Any], directory: Path, change: Mapping[str, Path]) -> str:
    """A profile's text for an edited base: its paths made absolute, what was calibrated for the
    unedited one left out. change: `base` or `edit`."""
    kept = {name: value for name, value in data.items() if name not in DROPPED}
    for name in ("base", "edit", "expert", "anchor", "vector", "anchor_shots"):
        if isinstance(kept.get(name), str):
            kept[name] = str((directory / kept[name]).resolve())
    return json.dumps(kept | {name: str(path.resolve()) for name, path in change.items()}, indent=1)


def text_lines(path: Path) -> list[str]:
    """The texts of a JSON list, a JSONL file or plain lines."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    elif path.suffix == ".json":
        rows = json.loads(text)
    else:
        return [line for line in text.splitlines() if line.strip()]
    named = ("prompt", "text", "instruction")
    found = [next((row[name] for name in named if row.get(name)), "") for row in rows]
    return [" ".join(each.split()) for each in found if each]


# ---- stages ------------------------------------------------------------------------------------


class Study:
    """The variants of one profile's base, and what was found of each so far."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.work = args, args.work
        path = args.profile / "profile.json" if args.profile.is_dir() else args.profile
        self.directory = path.resolve().parent
        self.data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.base = Path(str(load_profile(path).settings["base"])).resolve()
        found = usable(load_tokenizer(self.base), capitals.facts(args.seed))
        if len(found) < max(args.edits) + OTHERS:
            needed = max(args.edits) + OTHERS
            raise PromptError(f"{len(found)} facts can be edited; expected {needed}: fewer --edits")
        self.facts, self.others = found[: max(args.edits)], found[-OTHERS:]

    @property
    def variants(self) -> list[str]:
        ways = [f"{way}-{n}" for way in self.args.ways for n in sorted(self.args.edits)]
        return [UNEDITED, *ways]

    def stages(self, name: str) -> list[tuple[str, str, Callable[[], dict[str, Any]]]]:
        """(variant, stage, what runs it), in order."""
        acts = {"edit": self.edit, "facts": self.ask, "calibration": self.calibrate,
                "safety": self.evaluate}  # fmt: skip
        return [
            (name, stage, partial(act, name))
            for stage, act in acts.items()
            if (name, stage) != (UNEDITED, "edit")
        ]

    def count_of(self, name: str) -> int:
        """How many facts a variant has in it; the unedited one is asked for all of them."""
        return len(self.facts) if name == UNEDITED else int(name.rpartition("-")[2])

    def model(self, name: str) -> Path:
        """Where a variant's model or LoRA is."""
        return self.base if name == UNEDITED else self.work / name / "model"

    def settings(self, name: str) -> dict[str, Path]:
        """What a profile or a session says of a variant."""
        lora = name.startswith("lora")
        return {"base": self.base, "edit": self.model(name)} if lora else {"base": self.model(name)}

    def edit(self, name: str) -> dict[str, Any]:
        """Make a variant's model."""
        n, file, out = self.count_of(name), self.work / name / "edits.jsonl", self.model(name)
        shutil.rmtree(out, ignore_errors=True)  # what a stopped run left
        if name.startswith("lora"):
            file = file.with_name("rows.json")
            write_text(file, capitals.statements(self.facts[:n]))
            found = self.command("finetune", file, "--base", self.base, "--out", out, *LORA,
                                 "--epochs", self.args.epochs)  # fmt: skip
            return found | {"made": n}
        before = max((m for m in self.args.edits if m < n), default=0)
        write_text(file, capitals.edit_lines(self.facts[before:n]))
        text = self.work / "text.txt"
        write_text(text, "\n".join(text_lines(self.args.text)) + "\n")
        start = self.model(f"rome-{before}" if before else UNEDITED)
        given = ("--base", start, "--out", out, "--edits", file, "--text", text, "--chat")
        flags = shlex.split(self.args.edit_flags)
        return self.command("edit", *given, *flags) | {"made": n - before}

    def ask(self, name: str) -> dict[str, Any]:
        """Whether the edits took, what else changed, and how likely the unedited base's own
        answers to harmless prompts still are (nats per token)."""
        asked = capitals.questions(self.facts[: self.count_of(name)], self.others)
        given = {"safe": False, "temperature": 0.0, "max_new_tokens": TOKENS, "dtype": "float32"}
        with minisafe.load(None, given | self.settings(name)) as session:
            results = session.generate([each[1] for each in asked], chat=True, batch_size=24)
            plain = [each.text for each in load_prompts(self.prompts("benign"))][:40]
            kept = self.work / "own.json"  # the unedited variant comes first
            if name == UNEDITED:
                said = session.generate(plain, chat=True, batch_size=20)
                write_text(kept, json.dumps([each.tokens for each in said]))
            own = json.loads(kept.read_text(encoding="utf-8"))
            pairs = [pair for pair in zip(plain, own, strict=True) if pair[1]]
            scored = score(session, [p for p, _ in pairs], [a for _, a in pairs], chat=True)
        nll = fmean(-float(each.log_probs.mean()) for each in scored)
        return capitals.count(asked, [each.text for each in results]) | {"own_nll": nll}

    def calibrate(self, name: str) -> dict[str, Any]:
        """A variant's profile, with a probe and a threshold of its own."""
        path = self.work / name / "profile.json"
        write_text(path, edited_profile(self.data, self.directory, self.settings(name)))
        flags = [f"--{kind}={self.args.prompts / f'{kind}.jsonl'}" for kind in CALIBRATION]
        given = ("--epsilon", self.args.epsilon, "--max-miss", self.args.max_miss)
        found = self.command("calibrate", "--profile", path, *flags, *given, may_fail=True)
        made = json.loads(path.read_text(encoding="utf-8")).get("calibration", {})
        return found | {each: made.get(each) for each in ("threshold", "touched", "missed")}

    def evaluate(self, name: str) -> dict[str, Any]:
        """Refusals of every kind of prompt, in per cent, by method."""
        path, out = self.work / name / "profile.json", self.work / name / "run"
        calibrated = "calibration" in json.loads(path.read_text(encoding="utf-8"))
        methods = METHODS if self.data.get("anchor") else METHODS[:2]
        methods = tuple(each for each in methods if each != "profile" or calibrated)
        flags = [f"--{flag}={self.prompts(kind)}" for flag, kind in KINDS.items()]
        limit = ("--limit", self.args.limit) if self.args.limit else ()
        found = self.command(
            "evaluate", "--profile", path, "--out", out, *flags, "--styles", self.args.styles,
            "--judge", "refusal", "--max-new-tokens", TOKENS, "--batch-size", 24, "--sample", 0,
            "--dtype", "float32", "--methods", ",".join(methods), *limit,
            *(("--resume",) if out.is_dir() else ()),
        )  # fmt: skip
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        return found | {"refused": refused(summary)}

    def prompts(self, kind: str) -> Path:
        return Path(self.args.prompts / f"{self.args.split}-{kind}.jsonl")

    def command(self, *words: object, may_fail: bool = False) -> dict[str, Any]:
        """Run a command of minisafe: its seconds and its peak memory in MiB. Ends the program if it
        fails, or states that it did with `may_fail`."""
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, str(ROOT / "cli.py"), *map(str, words)],
                                   stdout=subprocess.DEVNULL)  # fmt: skip
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode and not may_fail:
            raise SystemExit(process.returncode)
        found = {"seconds": time.perf_counter() - started, "peak_mib": used.ru_maxrss / 1024}
        return found | ({"failed": True} if process.returncode else {})


# ---- the command -------------------------------------------------------------------------------


def run(study: Study, out: Path) -> None:
    """All stages that have no result yet; writes results and tables after each."""
    work: Path = study.work
    results: dict[str, dict[str, Any]] = {}
    check_settings(work / "settings.json", stated(study.args))
    stages = [each for name in study.variants for each in study.stages(name)]
    started, done = time.monotonic(), 0
    left = sum(not (work / name / f"{stage}.json").is_file() for name, stage, _ in stages)
    for name, stage, act in stages:
        kept = work / name / f"{stage}.json"
        if not kept.is_file():
            each = (time.monotonic() - started) / done if done else None
            estimate = "" if each is None else f"; about {each * (left - done) / 60:.0f} min left"
            print(f"{name}, {stage}: {done + 1} of {left}{estimate}", file=sys.stderr, flush=True)
            write_text(kept, json.dumps(act()))
            done += 1
        results.setdefault(name, {})[stage] = json.loads(kept.read_text(encoding="utf-8"))
        write_text(out, json.dumps({"settings": stated(study.args), "variants": results}, indent=1))
        write_text(out.with_suffix(".md"), markdown(results))


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise `SettingError` if the stages in a directory were run with other settings."""
    text = json.dumps(settings, sort_keys=True)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise SettingError(f"{path.parent}: has stages of other flags; give another --work")
    write_text(path, text)


def stated(args: argparse.Namespace) -> dict[str, Any]:
    """The flags, without directories of this machine."""
    given = {name: value for name, value in vars(args).items() if name not in ("work", "out")}
    return {name: each.name if isinstance(each, Path) else each for name, each in given.items()}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("profile", type=Path)
    for name in ("prompts", "text", "out", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--edits", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--ways", nargs="+", choices=("rome", "lora"), default=["rome", "lora"])
    parser.add_argument("--edit-flags", default="", help="for minisafe edit, such as '--layer 5'")
    parser.add_argument("--epochs", type=int, default=8, help="of the LoRA edit")
    parser.add_argument("--styles", default="simple")
    parser.add_argument("--limit", type=int, help="prompts of each kind")
    parser.add_argument("--epsilon", type=float, default=0.06)
    parser.add_argument("--max-miss", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if min(args.edits) < 1 or len(set(args.edits)) < len(args.edits):
        parser.error(f"--edits is {args.edits}; expected different numbers of 1 or more")
    files = [*(f"{kind}.jsonl" for kind in CALIBRATION),
             *(f"{args.split}-{kind}.jsonl" for kind in KINDS.values())]  # fmt: skip
    for path in (args.text, *(args.prompts / each for each in files)):
        if not path.is_file():
            parser.error(f"{path}: no such file; expected it (--help says what is in --prompts)")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        run(Study(args), args.out)
    except MinisafeError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
