"""Commands, which begin with a slash."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from minisafe.cli.chat.settings import parsed, setting_name, shown, table
from minisafe.cli.chat.talk import Talk, tell
from minisafe.cli.options import describe
from minisafe.errors import SettingError
from minisafe.files.display import harmless
from minisafe.session.saved import load_chat, save_chat
from minisafe.session.settings import SETTABLE, SETTINGS


class Leave(Exception):
    """Ends the chat."""


@dataclass(frozen=True)
class Command:
    """words: the argument, for people. about: the help text. needs: whether the argument is
    required."""

    words: str
    about: str
    run: Callable[[Talk, str], None]
    needs: bool = False


def run_command(talk: Talk, line: str) -> None:
    """Run a line that begins with a slash.

    Raises `SettingError` for an unknown command, `Leave` to end the chat, and the command's own
    errors.
    """
    name, _, rest = line.partition(" ")
    command, rest = COMMANDS.get(name.strip()), rest.strip()
    if command is None:
        raise SettingError(f"unknown command {line.strip()[:80]!r}; /help lists them")
    if (command.needs and not rest) or (rest and not command.words):
        usage = f"{name} {command.words}".strip()
        raise SettingError(f"got {line.strip()[:80]!r}; expected {usage}")
    command.run(talk, rest)


def show_help(talk: Talk, rest: str) -> None:
    """`/help`: the commands, the settings with their values, and what acts now."""
    commands = [(f"{name} {each.words}", each.about) for name, each in COMMANDS.items()]
    settings = table(talk.chat.session.settings)
    tell("\n".join([
        *rows(commands),
        '"""  begins and ends a message of several lines; or end each line in \\',
        "",
        "Settings and their values; /set NAME VALUE changes one:",
        *rows(settings, indent=2),
        "",
        f"Now: {describe(talk.chat.stages())}.",
    ]))  # fmt: skip


def rows(pairs: Sequence[tuple[str, str]], indent: int = 0) -> list[str]:
    """Lines of two columns."""
    wide = min(28, max(len(harmless(first)) for first, _ in pairs))
    return [
        f"{' ' * indent}{harmless(first, 60):<{wide}}  {second}".rstrip() for first, second in pairs
    ]


def set_setting(talk: Talk, rest: str) -> None:
    """`/set` lists, `/set NAME` shows, `/set NAME VALUE` changes."""
    if not rest:
        tell("\n".join(rows(table(talk.chat.session.settings))))
        return
    name, _, word = rest.partition(" ")
    name, word = setting_name(name), word.strip()
    if word:
        talk.chat.set(name, parsed(name, word))
    value = getattr(talk.chat.session.settings, name)
    about = "" if word else f": {SETTINGS[name].help}"
    tell(f"{name} is {shown(value)}{about}")


def set_system(talk: Talk, rest: str) -> None:
    """`/system` shows the system prompt, `/system TEXT` changes it, `/system none` removes it."""
    if rest:
        talk.chat.set("system", parsed("system", rest))
    tell(f"system is {shown(talk.chat.session.settings.system)}")


def set_safe(talk: Talk, rest: str) -> None:
    """`/safe` says what acts; `/safe on` and `/safe off` switch safe decoding."""
    if rest not in ("", "on", "off"):
        raise SettingError(f"got /safe {rest[:80]!r}; expected /safe on or /safe off")
    if rest:
        talk.chat.set_safe(rest == "on")
    tell(describe(talk.chat.stages()))


def reset(talk: Talk, rest: str) -> None:
    """`/reset` deletes the conversation."""
    talk.chat.reset()
    tell("the conversation is deleted")


def undo(talk: Talk, rest: str) -> None:
    """`/undo` removes the last message and its answer."""
    tell(f"removed: {harmless(talk.chat.undo(), 200)}")


def regenerate(talk: Talk, rest: str) -> None:
    """`/regen` answers the last message again."""
    before = talk.chat.conversation().exchanges
    talk.answer(talk.chat.regenerate())
    after = talk.chat.conversation().exchanges
    greedy = talk.chat.session.settings.temperature == 0
    if greedy and before and after and before[-1].ids == after[-1].ids:
        tell("(temperature is 0, so the answer is the same; /set temperature 0.8 varies it)")


def save(talk: Talk, rest: str) -> None:
    """`/save FILE` writes the conversation."""
    save_chat(talk.chat, path_of(rest))
    tell(f"saved to {rest}")


def load(talk: Talk, rest: str) -> None:
    """`/load FILE` continues a saved conversation and says which settings it changed."""
    changed = load_chat(talk.chat, path_of(rest))
    exchanges = talk.chat.conversation().exchanges
    tell(f"loaded {len(exchanges)} message{'' if len(exchanges) == 1 else 's'} and answers")
    if exchanges:
        tell(f"> {harmless(exchanges[-1].question, 500)}\n{harmless(exchanges[-1].answer, 2000)}")
    for name in changed:
        tell(f"{name} is {shown(getattr(talk.chat.session.settings, name))}")


def path_of(text: str) -> Path:
    """A typed path; `~` is the home directory."""
    return Path(os.path.expanduser(text))


def why(talk: Talk, rest: str) -> None:
    """`/why` says in one line what acted on the last answer."""
    tell("no answer yet" if talk.chat.why is None else talk.chat.why.line())


def leave(talk: Talk, rest: str) -> None:
    """`/quit` ends the chat."""
    raise Leave


COMMANDS = {
    "/help": Command("", "this list", show_help),
    "/set": Command("[NAME [VALUE]]", "show or change settings", set_setting),
    "/safe": Command("[on|off]", "show or switch safe decoding", set_safe),
    "/system": Command("[TEXT]", "show or change the system prompt; none removes it", set_system),
    "/why": Command("", "what safe decoding did to the last answer", why),
    "/regen": Command("", "answer the last message again", regenerate),
    "/undo": Command("", "remove the last message and its answer", undo),
    "/save": Command("FILE", "write the conversation to a file", save, needs=True),
    "/load": Command("FILE", "continue a saved conversation", load, needs=True),
    "/reset": Command("", "delete the conversation", reset),
    "/quit": Command("", "end the chat (also Ctrl-D)", leave),
}  # fmt: skip


def complete(line: str) -> list[str]:
    """Completions of a line's last word: a command, a setting, on or off, or a file."""
    words = line.split(" ")
    if not line.startswith("/"):
        return []
    if len(words) == 1:
        return [f"{name} " if each.words else name for name, each in COMMANDS.items()
                if name.startswith(line)]  # fmt: skip
    if words[0] in ("/save", "/load"):
        return files(words[-1])
    options = {"/set": SETTABLE, "/safe": ("on", "off")}.get(words[0], ())
    typed = words[-1].replace("-", "_")
    return [each for each in options if len(words) == 2 and each.startswith(typed)]


def files(start: str) -> list[str]:
    """Files whose path begins with `start`."""
    found = sorted(glob.glob(glob.escape(os.path.expanduser(start)) + "*"))
    return [each + os.sep if os.path.isdir(each) else each for each in found]
