"""`minisafe chat`: a conversation at the terminal, or piped."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import click

from minisafe.cli.chat.banner import about_of, banner
from minisafe.cli.chat.commands import Leave, complete, run_command
from minisafe.cli.chat.history import History, default_path
from minisafe.cli.chat.interrupts import Interrupts
from minisafe.cli.chat.keyboard import Keyboard
from minisafe.cli.chat.talk import Talk, complain, tell
from minisafe.cli.chat.typed import message, piped
from minisafe.cli.options import common_flags, common_options, describe, load_session
from minisafe.errors import MinisafeError, PromptError
from minisafe.files import standard
from minisafe.session.chat import Chat


@click.command("chat")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per answer.")
@click.option(
    "--history/--no-history", default=True, show_default=True,
    help="Keep messages typed at a terminal for later chats.",
)  # fmt: skip
@common_options
def chat_command(as_json: bool, history: bool) -> None:
    """Chat with the model; without --profile or --base, with the shipped model.

    \b
    Commands begin with a slash; /help lists them and the settings.
    Ctrl-C ends an answer and keeps the conversation; Ctrl-D ends the chat.
    \b
    Examples:
      minisafe chat --safe
      echo "Hello!" | minisafe chat --safe --json
    """
    flags, terminal = common_flags(), sys.stdin.isatty()
    conversation = load_chat(flags)
    if terminal:
        tell(banner(conversation.stages(), about_of(flags)))
    else:
        tell(describe(conversation.stages()))
    with Interrupts(conversation, terminal) as interrupts:
        talk = Talk(conversation, interrupts, as_json, terminal)
        try:
            for text in at_terminal(talk, history) if terminal else from_pipe(talk):
                say(talk, text)
        except Leave:
            return


def load_chat(flags: Mapping[str, Any]) -> Chat:
    """A chat from the flags; a line says that it is loading."""
    standard.show_loading()
    try:
        session = load_session(flags)
        session.tokenizer.template.check()  # fails now, not at the first message
        return Chat(session)
    finally:
        standard.erase_loading()


def say(talk: Talk, text: str) -> None:
    """Run a command, or answer a message."""
    if not text.startswith("/") or "\n" in text:
        if text.strip():
            talk.answer(talk.chat.send(text))
        return
    try:
        run_command(talk, text)
    except MinisafeError as error:
        if not talk.terminal:
            raise
        complain(error)


def at_terminal(talk: Talk, keep: bool) -> Iterator[str]:
    """The typed messages; reports an unreadable one and reads the next."""
    keyboard = Keyboard(History(default_path() if keep else None), complete)
    while True:
        text = None
        try:
            with talk.interrupts.waiting_for_input():
                text = message(keyboard)
        except KeyboardInterrupt:
            tell("\n(Ctrl-D or /quit ends the chat)")
        except EOFError:
            tell("")
            return
        except PromptError as error:
            complain(error)
        if text is not None:
            keyboard.remember(text)
            yield text


def from_pipe(talk: Talk) -> Iterator[str]:
    """The messages from standard input."""
    messages = piped()
    while True:
        with talk.interrupts.waiting_for_input():
            text = next(messages, None)
        if text is None:
            return
        yield text
