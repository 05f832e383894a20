"""`minisafe chat`: a conversation at the terminal, or piped."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import click

from minisafe.chat import Chat
from minisafe.cli.options import common_options, decode_text, describe, harmless, session_from_flags
from minisafe.errors import BadInput, NonFiniteError, SettingError
from minisafe.profile import FIELDS

HELP = """\
/reset           forget the conversation
/safe on|off     switch safe decoding
/set NAME VALUE  change a setting, as /set temperature 0.7
/quit            leave (also Ctrl-D); Ctrl-C ends an answer"""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object an answer.")
@common_options
def chat(as_json: bool) -> None:
    """Talk with the model. Without --profile or --base, with the shipped tiny one.

    \b
    Commands while chatting: /reset, /safe on|off, /set NAME VALUE, /help, /quit.
    Ctrl-C ends the answer and keeps the conversation.
    \b
    Examples:
      minisafe chat --safe
      echo "Hello!" | minisafe chat --safe --json
    """
    session = session_from_flags()
    conversation = Chat(session)
    session.tokenizer.template.check()  # fails now, not at the first message
    click.echo(f"{describe(session.applied)}. /help lists commands.", err=True)
    for line in lines():
        if line.startswith("/"):
            try:
                if not command(conversation, line):
                    break
            except SettingError as error:
                click.echo(f"minisafe: {error}", err=True)
        elif line.strip():
            answer(conversation, line, as_json)


def lines() -> Iterator[str]:
    """What the user types, or standard input line by line; ends with the input."""
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401 (line editing and history)
        while True:
            try:
                yield input("> ")
            except KeyboardInterrupt:
                click.echo("\n(Ctrl-D or /quit leaves)", err=True)
            except EOFError:
                click.echo(err=True)
                return
    for number, line in enumerate(sys.stdin.buffer, 1):
        yield decode_text(line, f"standard input, line {number}").rstrip("\r\n")


def answer(conversation: Chat, text: str, as_json: bool) -> None:
    """Print the answer to one message. Bad messages are reported; at a terminal chat goes on."""
    try:
        with interruptible(conversation) as interrupted:
            pieces = conversation.send(text)
            for piece in pieces:
                if not as_json:
                    click.echo(harmless(piece), nl=False)
                if interrupted:
                    pieces.close()  # type: ignore[attr-defined]
                    break
    except (BadInput, NonFiniteError) as error:
        if not sys.stdin.isatty():
            raise
        click.echo(f"minisafe: {error}", err=True)
        return
    if as_json and conversation.result is not None:
        click.echo(json.dumps(conversation.result.to_json()))
    else:
        click.echo()


@contextmanager
def interruptible(conversation: Chat) -> Iterator[list[bool]]:
    """Within it, a first Ctrl-C ends the answer and fills the list it gives; a second leaves."""
    interrupted: list[bool] = []

    def note(number: int, frame: FrameType | None) -> None:
        if interrupted:
            raise KeyboardInterrupt
        interrupted.append(True)
        conversation.interrupt()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def command(conversation: Chat, line: str) -> bool:
    """Run a /command; False if it ends the chat. Raises `SettingError` for a bad one."""
    name, *words = line.split(maxsplit=2)
    if name == "/quit":
        return False
    if name == "/reset" and not words:
        conversation.reset()
        click.echo("the conversation is forgotten", err=True)
    elif name == "/safe" and words in (["on"], ["off"]):
        conversation.set_safe(words == ["on"])
        click.echo(describe(conversation.applied()), err=True)
    elif name == "/set" and len(words) == 2:
        setting, value = words[0].replace("-", "_"), parsed(*words)
        conversation.set(setting, value)
        click.echo(f"{setting} is {value!r}", err=True)
    elif name == "/help":
        click.echo(HELP, err=True)
    else:
        raise SettingError(f"unknown command {line!r}; /help lists them")
    return True


def parsed(name: str, word: str) -> Any:
    """A typed word as the setting's value."""
    field = FIELDS.get(name.replace("-", "_"))
    kind = str(field.type) if field is not None else "str"
    try:
        if name == "stop":
            return (word,)
        return int(word) if "int" in kind else float(word) if "float" in kind else word
    except ValueError:
        raise SettingError(f"{name} is {word!r}; expected {kind}") from None
