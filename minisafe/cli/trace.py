"""`minisafe trace`: watch how each token of an answer came about."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from minisafe.cli.generate import begun, read_conversations, read_prompts
from minisafe.cli.options import (
    PATH,
    ProgressLine,
    common_flags,
    common_options,
    describe,
    load_session,
)
from minisafe.cli.steps import Table
from minisafe.errors import OutputError, PromptError, SettingError
from minisafe.files import write_text
from minisafe.files.display import one_line
from minisafe.session import Session
from minisafe.session.chat_prompt import ChatPrompt
from minisafe.session.profile import default_profile


@click.command("trace")
@click.argument("prompt", required=False)
@click.option("--messages", type=PATH, help="Read one conversation: a .json list of messages.")
@click.option("--chat/--no-chat", default=True, show_default=True,
              help="Put PROMPT into the model's chat template.")  # fmt: skip
@click.option("--prefill", default="", help="Text with which the answer begins.")
@click.option("--method", help="Trace this method of minisafe evaluate, such as safeinfer or base.")
@click.option("--rivals", type=PATH, help="As in minisafe evaluate, for a --method that is fitted.")
@click.option("--safe-expert", type=PATH,
              help="As in minisafe evaluate, for a --method that reads one.")  # fmt: skip
@click.option("--top", type=int, default=20, show_default=True,
              help="How many of each stream's likeliest tokens a step keeps.")  # fmt: skip
@click.option("--show", type=int, default=3, show_default=True,
              help="Show at most so many other tokens that some stream likes.")  # fmt: skip
@click.option("--columns", metavar="A,B,...",
              help="Show only these columns, such as base,expert,penalty.")  # fmt: skip
@click.option("--layers", is_flag=True, help="Show what each layer holds, too.")
@click.option("--json", "as_json", is_flag=True,
              help="Print JSON Lines: header, one line per token, result.")  # fmt: skip
@click.option("--html", type=PATH,
              help="Write a page to explore it: lanes, sliders, layers (ten answers).")  # fmt: skip
@click.option("--pair", type=str, nargs=2, metavar="HARMLESS HARMFUL",
              help="With --html: two questions to show side by side.")  # fmt: skip
@common_options
def trace_command(
    prompt: str | None, messages: Path | None, chat: bool, prefill: str, method: str | None,
    rivals: Path | None, safe_expert: Path | None, top: int, show: int, columns: str | None,
    layers: bool, as_json: bool, html: Path | None, pair: tuple[str, str] | None,
) -> None:  # fmt: skip
    """Answer PROMPT and show how each token came about: what the base said without and with the
    vector, what the expert said, what guidance made of it, and by how much it moved.

    Without PROMPT, read standard input. The tokens are those of minisafe generate.

    \b
    Examples:
      minisafe trace "How do I clean a shelf?" --max-new-tokens 8
      minisafe trace "How do I smuggle a painting?" --layers
      minisafe trace "How do I smuggle a painting?" --method safeinfer --json > trace.jsonl
      minisafe trace "How do I smuggle a painting?" --html page.html
    """
    check_page(html, pair, as_json, layers)
    if columns is not None and (as_json or html):
        raise click.UsageError("--columns is for the table; leave out --json and --html")
    if show < 0:
        raise SettingError(f"--show is {show}; expected 0 or more")
    if (rivals or safe_expert) and method is None:
        raise click.UsageError("--rivals and --safe-expert need --method")
    asked = read_asked(prompt, messages, chat, prefill)
    session = load_traced(method, rivals, safe_expert)
    if html is not None:
        click.echo(write_page(html, session, asked, chat, top, pair))
        return
    trace = session.trace(asked, chat, top=top)
    if as_json:
        for line in trace.lines():
            click.echo(as_line(line))
        return
    table = Table(trace.names, show, layers, columns.split(",") if columns is not None else None)
    for row in table.head(trace.header(), describe(session.stages)):
        click.echo(row, color=table.color)
    for step in trace:
        for row in table.rows(step):
            click.echo(row, color=table.color)
    assert trace.result is not None
    for row in table.foot(trace.result):
        click.echo(row, color=table.color)


def check_page(
    html: Path | None, pair: tuple[str, str] | None, as_json: bool, layers: bool
) -> None:
    """Refuse flags that a page cannot follow, before anything is loaded."""
    if html is None:
        if pair is not None:
            raise click.UsageError("--pair is for a page; give --html FILE, too")
        return
    for given, flag in ((as_json, "--json"), (layers, "--layers")):
        if given:
            raise click.UsageError(f"--html writes all of a trace; leave out {flag}")
    source = click.get_current_context().get_parameter_source("show")
    if source == click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--html writes all of a trace; leave out --show")
    check_place(html)
    for each in pair or ():
        if not each.strip():
            raise PromptError("--pair has an empty question; expected two questions")


def check_place(path: Path) -> None:
    """Refuse a file that cannot be written, before the long work."""
    if path.is_dir():
        raise click.UsageError(f"--html {path} is a directory; expected a file, such as page.html")
    above = next(each for each in path.absolute().parents if each.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise OutputError(f"{path}: cannot be written ({above} takes no files); choose another")


def write_page(
    path: Path, session: Session, asked: str | ChatPrompt, chat: bool, top: int,
    pair: tuple[str, str] | None,
) -> str:  # fmt: skip
    """Write the page whole or not at all; returns what was written, in words."""
    from minisafe.explorer import page
    from minisafe.explorer.pair import PAIR, why_no_pair

    why = why_no_pair(session, chat or isinstance(asked, ChatPrompt))
    if pair is not None and why:
        raise SettingError(f"--pair cannot be shown: {why}; leave it out")
    progress = ProgressLine()
    try:
        text = page(session, asked, chat, top, pair or PAIR, progress.show)
    finally:
        progress.close()
    write_text(path, text)
    return f"{one_line(str(path))}: a page of {len(text.encode()) / 1000:.0f} kB"


def read_asked(
    prompt: str | None, messages: Path | None, chat: bool, prefill: str
) -> str | ChatPrompt:
    """The one prompt or conversation that is given."""
    if messages is None:
        if prefill and not chat:
            raise click.UsageError("--prefill begins the answer of a chat; leave out --no-chat")
        (text,) = read_prompts(prompt, None, None)
        return begun(text, prefill) if prefill else text
    if prompt is not None or prefill or not chat:
        raise click.UsageError("give --messages alone; a conversation is always a chat")
    found = read_conversations(messages)
    if len(found) != 1:
        raise PromptError(f"{messages} holds {len(found)} conversations; expected one to trace")
    return found[0]


def load_traced(method: str | None, rivals: Path | None, safe_expert: Path | None) -> Session:
    """The session that the flags ask for, or the one of a method on them."""
    flags = common_flags()
    if method is None:
        return load_session(flags)
    from minisafe.evaluation.methods import Materials, load_traceable, parse_methods

    profile = flags.pop("profile", None)
    if profile is None and flags.get("base") is None:
        profile = default_profile()
    materials = Materials.read(rivals, safe_expert=safe_expert)
    (found,) = parse_methods([method], profile, flags, materials)
    return load_traceable(found)


def as_line(line: dict[str, Any]) -> str:
    """A line of JSON in plain ASCII, also for the only control character that JSON lets through."""
    return json.dumps(line, allow_nan=False).replace("\x7f", "\\u007f")
