"""`minisafe generate`: continue prompts, one or a batch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from minisafe.cli.options import (
    PATH,
    check_text,
    common_flags,
    common_options,
    describe,
    harmless,
    load_session,
    read_text,
)
from minisafe.errors import PromptError
from minisafe.files import json_lines, parse_json
from minisafe.session import Session
from minisafe.session.answer import Result
from minisafe.session.chat_prompt import ChatPrompt

Prompts = list[str | ChatPrompt]
MOST_BYTES = 256 << 20  # of a file of conversations


@click.command()
@click.argument("prompt", required=False)
@click.option("--file", "file", type=PATH, help="Read one prompt from a file.")
@click.option("--lines", type=PATH, help="Read a batch of prompts from a file, one per line.")
@click.option(
    "--messages",
    type=PATH,
    help="Read conversations: a .json list of messages, or a .jsonl file, one per line.",
)
@click.option("--chat", is_flag=True, help="Put each prompt into the model's chat template.")
@click.option("--prefill", default="", help="Text with which each answer begins; needs --chat.")
@click.option("--batch-size", type=int, default=8, show_default=True, help="Prompts per batch.")
@click.option("--echo", is_flag=True, help="Show the prompt before its continuation.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per prompt.")
@common_options
def generate(
    prompt: str | None,
    file: Path | None,
    lines: Path | None,
    messages: Path | None,
    chat: bool,
    prefill: str,
    batch_size: int,
    echo: bool,
    as_json: bool,
) -> None:
    """Continue PROMPT, tokenised without changes. Without PROMPT, read a file or standard input.

    \b
    Examples:
      minisafe generate --chat --safe "How do I clean a shelf?"
      minisafe generate --base MODEL "Once upon a time" --max-new-tokens 100
      minisafe generate --lines prompts.txt --json > answers.jsonl
      minisafe generate --safe --messages conversation.json
    """
    if prefill and not chat:
        raise click.UsageError("--prefill needs --chat; a conversation's file states its own")
    prompts: Prompts
    if messages is not None:
        if chat or any(source is not None for source in (prompt, file, lines)):
            raise click.UsageError("give --messages alone; a conversation is always a chat")
        prompts = [*read_conversations(messages)]
    else:
        texts = read_prompts(prompt, file, lines)
        prompts = [begun(text, prefill) for text in texts] if prefill else [*texts]
    session = load_session(common_flags())
    click.echo(describe(session.stages), err=True)
    if as_json:
        print_json(session, prompts, chat, batch_size)
    elif len(prompts) == 1:
        print_stream(session, prompts[0], chat, echo)
    else:
        print_batch(session, prompts, chat, batch_size)


def read_conversations(path: Path) -> list[ChatPrompt]:
    """The conversations of a JSON or JSON Lines file; raises `PromptError`."""
    if path.suffix.lower() == ".jsonl":
        found = [
            ChatPrompt.from_json(value, f"{path}, line {number}")
            for number, value in json_lines(path, PromptError, MOST_BYTES)
        ]
        if not found:
            raise PromptError(f"{path}: no conversations; expected one per line")
        return found
    return [ChatPrompt.from_json(parse_json(read_text(path), str(path), PromptError), str(path))]


def begun(text: str, prefill: str) -> ChatPrompt:
    """A prompt whose answer begins with `prefill`."""
    check_text(prefill, "the prefill")
    return ChatPrompt(({"role": "user", "content": text},), prefill)


def read_prompts(prompt: str | None, file: Path | None, lines: Path | None) -> list[str]:
    """The prompts from the given source; raises `PromptError` or a usage error."""
    if sum(source is not None for source in (prompt, file, lines)) > 1:
        raise click.UsageError("give one of PROMPT, --file and --lines")
    if lines is not None:
        prompts = [line.rstrip("\r") for line in read_text(lines).split("\n") if line.strip()]
        if not prompts:
            raise PromptError(f"{lines}: no prompts; expected one per line")
        return prompts
    if file is not None:
        return [read_text(file)]
    if prompt is None or prompt == "-":
        if prompt is None and sys.stdin.isatty():
            raise click.UsageError("no PROMPT; give one, or --file, --lines, or standard input")
        return [read_text(None)]
    check_text(prompt, "the prompt")
    return [prompt]


def shown(prompt: str | ChatPrompt) -> str:
    """What a prompt asks: its text, or its last message."""
    return prompt if isinstance(prompt, str) else prompt.question


def print_stream(session: Session, prompt: str | ChatPrompt, chat: bool, echo: bool) -> None:
    """Print a single answer as it streams."""
    show = harmless if sys.stdout.isatty() else str
    if echo:
        click.echo(show(shown(prompt)), nl=False)
    for piece in session.stream(prompt, chat=chat):
        click.echo(show(piece), nl=False)
    click.echo()


def print_batch(session: Session, prompts: Prompts, chat: bool, batch_size: int) -> None:
    """Print every prompt and its answer, numbered."""
    show = harmless if sys.stdout.isatty() else str
    for number, (prompt, result) in enumerate(
        zip(prompts, session.generate(prompts, chat=chat, batch_size=batch_size), strict=True), 1
    ):
        click.echo(f"[{number}/{len(prompts)}] {show(shown(prompt))}\n{show(result.text)}\n")


def print_json(session: Session, prompts: Prompts, chat: bool, batch_size: int) -> None:
    """Print one line per prompt, in order, as soon as it and all earlier ones are done."""
    done: dict[int, Result] = {}
    shown = 0
    for number, piece in session.run(prompts, chat=chat, batch_size=batch_size):
        if isinstance(piece, Result):
            done[number] = piece
        while shown in done:
            click.echo(json.dumps(done.pop(shown).to_json()))
            shown += 1
