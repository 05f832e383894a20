"""A program that embeds minisafe: what it imports, and what it can do without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# a command line's, a template's (its process has it), and those of extras
NOT_NEEDED = (
    "click", "jinja2", "markupsafe", "hypothesis", "matplotlib", "gguf", "pyarrow", "transformers",
    "lm_eval", "scipy", "psutil",
)  # fmt: skip
LOADED = f"""
import sys
import minisafe
session = minisafe.load("weights/tiny", {{"max_new_tokens": 4}})
(result,) = session.generate(["How do I clean"])
print("answered:", len(result.tokens))
print("loaded:", *sorted(set({NOT_NEEDED}) & set(sys.modules)))
print("rooms:", *sorted({{name.split(".")[1] for name in sys.modules if "minisafe." in name}}))
"""
BLOCKED = f"""
import sys
sys.modules.update(dict.fromkeys({NOT_NEEDED}))  # as if they were not installed
import minisafe
session = minisafe.load("weights/tiny", {{"max_new_tokens": 4}})
(result,) = session.generate(["How do I clean"])
print("answered:", len(result.tokens))
try:
    session.generate(["How do I clean a shelf?"], chat=True)
except minisafe.MinisafeError as error:
    print("chat:", error)
"""
CHAT = f"""
import sys
import minisafe
session = minisafe.load("weights/tiny", {{"max_new_tokens": 4}})
(result,) = session.generate(["How do I clean a shelf?"], chat=True)
print("answered:", len(result.tokens))
print("loaded:", *sorted(set({NOT_NEEDED}) & set(sys.modules)))
"""
# what a program that answers has no use for: each is a room of its own, and stays on the disk
ROOMS_ASLEEP = {
    "cli", "testing", "check", "evaluation", "explorer", "get", "trace", "convert", "amplify",
    "finetune", "editing",
}  # fmt: skip


def said(program: str) -> dict[str, str]:
    """What a fresh process prints, by the word before the colon."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(line.split(":", 1) for line in done.stdout.splitlines())


def test_an_answer_imports_neither_click_nor_jinja2() -> None:
    found = said(LOADED)
    assert (found["answered"], found["loaded"].split()) == (" 4", [])
    assert ROOMS_ASLEEP & set(found["rooms"].split()) == set()


def test_a_chat_imports_them_in_the_process_of_its_template_only() -> None:
    found = said(CHAT)
    assert (found["answered"], found["loaded"].split()) == (" 4", [])


def test_without_them_an_answer_is_given_and_a_chat_says_what_is_missing() -> None:
    found = said(BLOCKED)
    assert found["answered"] == " 4"
    assert "pip install jinja2" in found["chat"]
