"""Write the table of settings in docs/profile.md from their declarations.

python docs/make_settings.py            # writes the table
python docs/make_settings.py --check    # fails if the table does not match the code
"""

from __future__ import annotations

import sys
from pathlib import Path

from minisafe.declared import Setting
from minisafe.session.profile import NOT_SETTINGS
from minisafe.session.settings import SETTINGS

PAGE = Path(__file__).resolve().parent / "profile.md"
BEGIN, END = "<!-- made by python docs/make_settings.py -->\n", "<!-- end -->\n"


def row(name: str, meaning: str, default: str = "", may: str = "") -> str:
    cells = [f"`{name}`", meaning.rstrip("."), default, may]
    line = " | ".join(each.replace("|", "\\|") for each in cells)
    return f"| {line} |".replace("  ", " ")


def setting_row(setting: Setting) -> str:
    """Name, meaning, default, and marks."""
    marks = {"/set": setting.in_chat, "safety": setting.decides_safety}
    may = ", ".join(mark for mark, holds in marks.items() if holds)
    return row(setting.name, setting.docs or setting.help, setting.default_words, may)


def table() -> str:
    """The whole table; keys that are not settings come last."""
    rows = [setting_row(each) for each in SETTINGS.values()]
    rows += [row(name, meaning) for name, meaning in NOT_SETTINGS.items()]
    return "\n".join(["| key | meaning | default | |", "|---|---|---|---|", *rows]) + "\n"


def page() -> str:
    """The page with the table made from the code."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END, 1)[1]


def main(arguments: list[str]) -> int:
    made = page()
    if "--check" not in arguments:
        PAGE.write_text(made, encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == made:
        return 0
    print("docs/profile.md does not match the code; run `python docs/make_settings.py`",
          file=sys.stderr)  # fmt: skip
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
