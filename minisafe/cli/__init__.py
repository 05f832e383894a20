"""The command line: click commands, one file each. Exit codes: 0 done, 1 failed, 2 wrong use."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any, TextIO

import click

from minisafe import __version__
from minisafe.checkpoint import first_line, is_out_of_memory
from minisafe.cli.amplify import amplify_command
from minisafe.cli.calibrate import calibrate
from minisafe.cli.chat import chat_command
from minisafe.cli.convert import convert
from minisafe.cli.edit import edit_command
from minisafe.cli.evaluate import evaluate_command
from minisafe.cli.finetune import finetune
from minisafe.cli.generate import generate
from minisafe.cli.inspect import inspect
from minisafe.cli.once import check_once
from minisafe.cli.sweep import sweep
from minisafe.cli.vouch import vouch_command
from minisafe.display import one_line
from minisafe.errors import MinisafeError


class Commands(click.Group):
    """Ends in peace when the reader, such as `head`, has seen enough; click would exit with 1.

    An option that counts once may be given once: click would take the last and drop the others.
    """

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            check_once(command, rest, ctx)
        return name, command, rest

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="minisafe")
def cli() -> None:
    """A small Llama engine that makes a model safer while it decodes.

    \b
    Example:
      minisafe chat --safe
    """


COMMANDS = (
    chat_command, generate, inspect, amplify_command, finetune, convert, edit_command,
    evaluate_command, calibrate, sweep, vouch_command,
)  # fmt: skip
for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Run the command line; every error that is the user's is one line and exit code 2."""
    warnings.showwarning = show_warning
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        fail(as_line(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        fail("stopped", 130)
    except MinisafeError as error:
        fail(str(error), error.exit_code)
    except OSError as error:
        fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 2)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        fail(f"out of memory: {first_line(error)}; use a smaller batch, context or dtype", 2)
    sys.exit(code if isinstance(code, int) else 0)


def as_line(error: click.ClickException) -> str:
    """Wrong use in one line, with the command whose help says more; click would take three."""
    context = getattr(error, "ctx", None)
    if context is None:
        return error.format_message()
    said = error.format_message().rstrip(".")
    return f"{said}; `{context.command_path} --help` explains the flags"


def fail(message: str, code: int) -> None:
    """Say why in one line, and leave."""
    click.echo(one_line(f"minisafe: {message}"), err=True)
    sys.exit(code)


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Warnings as one line; where in the code they come from is nothing to a user."""
    click.echo(one_line(f"minisafe: warning: {message}"), err=True)
