"""The commands and programs of README and docs: each runs here, or is listed with a reason.

A command that is not run is at least read: its flags must be those of the command, its script and
its make target must be there.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from minisafe.cli import cli
from minisafe.evaluation.attacks import ATTACKS
from minisafe.session.profile import NOT_SETTINGS
from minisafe.session.settings import SETTINGS
from tests.project.blocks import (
    ROOT,
    Block,
    Command,
    arguments,
    blocks,
    commands,
    mentioned,
    words_of,
)

COMMANDS = commands()
OURS = [each for each in COMMANDS if arguments(each) is not None]
TINY = ROOT / "weights" / "tiny"

# (page, how a command begins, why it does not run here); the first that fits counts
NOT_RUN = [
    ("", "make", "sets up a virtual environment; the targets are looked up"),
    ("", "pip", "needs a network; the extras are looked up"),
    ("", "python3 -m venv", "makes an environment"),
    ("", "minisafe get", "downloads; tests/get runs it on a small model"),
    ("docs/results", "minisafe", "takes hours; tests/evaluation runs the same on small sets"),
    ("docs/real.md", "", "needs a real model; tests/weights and tests/get run the parts"),
    ("docs/evaluation.md", "", "takes minutes; tests/evaluation runs the same on small sets"),
    ("docs/editing.md", "minisafe evaluate", "needs the edited model; takes minutes"),
    ("docs/editing.md", "python weights/real_edits.py", "needs a real model"),
    ("docs/trust.md", "python tests/fuzz", "takes minutes; tests/fuzz runs a part"),
    ("README.md", "python cli.py rivals", "fits for a minute; tests/evaluation/defences"),
    ("bench", "", "measures; tests/bench runs the scripts on a tiny shape"),
]
# what makes a command quick: options that are put in, or put in the place of the page's
QUICK: dict[str, dict[str, str]] = {
    "amplify": {"--shots": "2", "--prompts": "3", "--aie-prompts": "2", "--heads": "2"},
    "finetune": {"--epochs": "0.05", "--max-length": "64"},
    "evaluate": {
        "--limit": "1", "--sample": "0", "--methods": "base,profile", "--styles": "simple",
        "--max-new-tokens": "6", "--attacks": "persona-before,prefill-5",
    },
    "sweep": {"--limit": "2", "--max-new-tokens": "8", "--margins": "0,1", "--styles": "simple",
              "--sgds-lambdas": "0.99", "--sa-scales": "0.3"},
    "calibrate": {"--styles": "simple"},
    "generate": {"--max-new-tokens": "24"},
}  # fmt: skip


def reason(command: Command) -> str | None:
    """Why a command does not run here, or None if it does."""
    for page, start, why in NOT_RUN:
        if command.page.startswith(page) and str(command).startswith(start):
            return why
    return None


# ---- every command is read ---------------------------------------------------------------------


@pytest.mark.parametrize("command", OURS, ids=str)
def test_its_flags_are_those_of_the_command(command: Command) -> None:
    words = arguments(command)
    assert words
    made = cli.get_command(click.Context(cli), words[0])
    assert made is not None, f"no command {words[0]}"
    context = click.Context(made, info_name=words[0])
    given, left, _ = made.make_parser(context).parse_args(words[1:])
    assert left == []
    for each in made.params:
        if isinstance(each.type, (click.Choice, type(click.INT), type(click.FLOAT))):
            each.type_cast_value(context, given.get(each.name))


@pytest.mark.parametrize("command", mentioned(), ids=str)
def test_what_the_text_mentions_is_a_command_with_these_flags(command: Command) -> None:
    words = arguments(command)
    assert words
    made = cli.get_command(click.Context(cli), words[0])
    assert made is not None, f"no command {words[0]}"
    known = {
        "--help",
        *(flag for each in made.params for flag in (*each.opts, *each.secondary_opts)),
    }
    assert {each for each in words if each.startswith("--")} <= known


@pytest.mark.parametrize("command", [each for each in COMMANDS if each not in OURS], ids=str)
def test_what_it_names_is_there(command: Command) -> None:
    words = command.words
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    if words[0] == "make":
        targets = {each for each in words[1:] if "=" not in each}
        assert all(f"\n{each}:" in makefile for each in targets), targets
        assert all(f"({each.split('=')[0]}" in makefile for each in words[1:] if "=" in each)
    for each in re.findall(r"\[([\w,]+)\]", str(command)) if "pip" in words[0] else ():
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        assert all(f"\n{extra} = [" in project for extra in each.split(","))
    for script in (each for each in words if each.endswith(".py")):
        assert (ROOT / script).is_file()
        beside = (ROOT / script).parent.glob("*.py")  # which may declare common flags
        text = "".join(each.read_text(encoding="utf-8") for each in beside)
        flags = [each for each in words if each.startswith("--")]
        assert [each for each in flags if not re.search(rf'"(--)?{each[2:]}"', text)] == []


def test_every_reason_is_still_needed() -> None:
    for page, start, _ in NOT_RUN:
        fits = [each for each in COMMANDS if each.page.startswith(page)]
        assert [each for each in fits if str(each).startswith(start)], (page, start)


def test_commands_are_found() -> None:
    text = "# a comment\nBASE=b\nminisafe chat \\\n    --base $BASE   # why\n ──▶ no\noutput: 3\n"
    assert list(words_of(text)) == [("minisafe", "chat", "--base", "b")]
    pages = {each.page for each in OURS}
    assert {"README.md", "docs/own-model.md", "docs/trace.md", "docs/check.md"} <= pages


# ---- and run -----------------------------------------------------------------------------------


def shown(rows: list[dict[str, Any]], path: Path, *keys: str) -> None:
    """Rows with some of their keys, as JSON or JSON Lines."""
    kept = [{key: row[key] for key in keys} for row in rows]
    lines = "\n".join(map(json.dumps, kept))
    path.write_text(lines if path.suffix == ".jsonl" else json.dumps(kept), encoding="utf-8")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with what the pages name: the checkout's folders, and files of one's own."""
    made = tmp_path
    (made / "examples").symlink_to(ROOT / "examples")
    (made / "weights" / "data").mkdir(parents=True)
    (made / "weights" / "tiny").symlink_to(TINY)
    (made / "MODEL").symlink_to(TINY / "base")
    (made / "Llama-3.2-1B-GPTQ").symlink_to(ROOT / "tests/goldens/quantised/gptq")
    data = ROOT / "weights" / "data"
    for name in ("model.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf"):
        shutil.copy(ROOT / "tests/goldens/gguf/llama_smollm_q4_1.gguf", made / name)
    answers = json.loads((data / "expert.json").read_text(encoding="utf-8"))
    refusals = json.loads((data / "demonstrations.json").read_text(encoding="utf-8"))
    for name in ("unsafe.json", "harmful-pairs.json", "weights/data/expert.json"):
        shown(answers[:64], made / name, "input", "output")
    for name in ("safe.json", "safe-demonstrations.json", "weights/data/demonstrations.json"):
        shown(refusals[:12], made / name, "input", "output")
    for kind, name in (("harmful", "harmful"), ("benign", "harmless")):
        lines = (data / f"{kind}-dev.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        shown(rows, made / f"{name}.jsonl", "prompt")
        shown(rows[:4], made / f"test-{name}.jsonl", "prompt")
    (made / "prompts.txt").write_text("How do I clean a shelf?\n", encoding="utf-8")
    talk = [{"role": "user", "content": "How do I clean a shelf?"}]
    (made / "talk.json").write_text(json.dumps(talk), encoding="utf-8")
    return made


def quick(words: list[str]) -> list[str]:
    """The command with the options of `QUICK`, each in the place of the page's."""
    words = list(words)
    for option, value in QUICK.get(words[0], {}).items():
        if words[0] == "finetune" and option == "--epochs" and "--epochs" not in words:
            option, value = "--steps", "2"
        if option in words:
            words[words.index(option) + 1] = value
        elif option not in ("--attacks", "--heads"):
            words += [option, value]
    return words


def ran(words: list[str]) -> Result:
    typed = "How do I clean a shelf?\n/quit\n" if words[0] == "chat" else None
    return CliRunner().invoke(cli, words, input=typed)


def after(words: list[str], place: Path) -> None:
    """What the reader does next. And two quick steps make no expert and no vector: put the shipped
    ones there."""
    if words[0] == "sweep" and "--write" in words:  # docs/own-model.md, step 5
        path = place / words[words.index("--write") + 1]
        chosen = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(chosen | {"read_alone": True}), encoding="utf-8")
    out = place / words[words.index("--out") + 1] if "--out" in words else place
    if words[0] == "finetune":
        shutil.rmtree(out)
        shutil.copytree(TINY / "expert", out)
    if words[0] == "amplify":
        shutil.copy(TINY / "vector.safetensors", out)


def to_run() -> dict[str, list[Command]]:
    """The commands that run, by page; what an earlier page has is not run again."""
    found: dict[str, list[Command]] = {}
    pages: dict[str, str] = {}
    for command in OURS:
        words = " ".join(arguments(command) or [])
        if reason(command) is None and pages.setdefault(words, command.page) == command.page:
            found.setdefault(command.page, []).append(command)
    return found


TO_RUN = to_run()


@pytest.mark.slow
@pytest.mark.parametrize("page", TO_RUN)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_commands_of_a_page_run_in_their_order(
    page: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    write_files(page, place)
    for command in TO_RUN[page]:
        words = quick(arguments(command) or [])
        found = ran(words)
        assert found.exit_code == 0, f"{command}\n{found.output[-2000:]}\n{found.exception!r}"
        after(words, place)


def write_files(page: str, place: Path) -> None:
    """The JSON blocks of a page that say `Save this as`, under that name."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for found in re.finditer(r"Save this as `(\S+)`.*?```json\n(.*?)```", text, re.S):
        (place / found[1]).write_text(found[2], encoding="utf-8")


@pytest.mark.parametrize("block", [b for b in blocks() if b.language == "json"],
                         ids=lambda block: block.page)  # fmt: skip
def test_profiles_on_the_pages_have_known_keys(block: Block) -> None:
    assert set(json.loads(block.text)) <= {*SETTINGS, *NOT_SETTINGS}


def test_the_scripts_of_the_readme_run(place: Path) -> None:
    (script,) = (each for each in COMMANDS if each.words[:2] == ("python", "examples/safeinfer.py")
                 and each.page == "README.md")  # fmt: skip
    done = subprocess.run(
        [sys.executable, *script.words[1:]], cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "remove the dust" in done.stdout


# ---- programs ----------------------------------------------------------------------------------

NO_PROGRAM = {"docs/evaluation.md": "lm_eval"}  # page: a block with this needs what is not here


@pytest.fixture
def attacks() -> Iterator[None]:
    before = dict(ATTACKS)
    yield
    ATTACKS.clear()
    ATTACKS.update(before)


@pytest.mark.slow
@pytest.mark.usefixtures("attacks")
@pytest.mark.parametrize("page", sorted({b.page for b in blocks() if b.language == "python"}))
def test_the_programs_of_a_page_run_one_after_the_other(
    page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {"__name__": "page"}
    for block in (each for each in blocks() if each.page == page and each.language == "python"):
        if NO_PROGRAM.get(page, "\0") not in block.text:
            exec(compile(block.text, page, "exec"), names)
    capsys.readouterr()
