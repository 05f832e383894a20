"""The command line: click commands, one per file.

Exit codes: 0 success, 1 failure, 2 wrong use or rejected input, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import Any, TextIO

import click

from minisafe import __version__
from minisafe.checkpoint import first_line, is_out_of_memory
from minisafe.cli.once import check_once
from minisafe.errors import MinisafeError
from minisafe.files.display import one_line

# click before 8.2 prints the help itself
NO_ARGS: tuple[type[click.UsageError], ...] = (
    (click.exceptions.NoArgsIsHelpError,) if hasattr(click.exceptions, "NoArgsIsHelpError") else ()
)
# the name of each command in its file; the file is imported only if the command runs
HOMES = {
    "chat": "chat_command",
    "get": "get",
    "generate": "generate",
    "tour": "tour",
    "trace": "trace_command",
    "inspect": "inspect",
    "amplify": "amplify_command",
    "finetune": "finetune",
    "convert": "convert",
    "compile": "compile_command",
    "edit": "edit_command",
    "evaluate": "evaluate_command",
    "report": "report",
    "calibrate": "calibrate",
    "sweep": "sweep",
    "rivals": "rivals_command",
    "vouch": "vouch_command",
    "check": "check_command",
}


class Commands(click.Group):
    """Exits with 0 if the reader of the output, such as `head`, closes it; click would exit with 1.

    An option with one value may be given only once; click would silently take the last value.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in HOMES:
            return None
        module = importlib.import_module(f"minisafe.cli.{cmd_name}")
        command: click.Command = getattr(module, HOMES[cmd_name])
        return command

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


def commands() -> tuple[click.Command, ...]:
    """Every command, imported."""
    context = click.Context(cli)
    found = (cli.get_command(context, name) for name in cli.list_commands(context))
    return tuple(each for each in found if each is not None)


def main() -> None:
    """Run the command line; every user error is one line and exit code 2."""
    warnings.showwarning = show_warning
    try:
        code = cli.main(standalone_mode=False)
    except NO_ARGS as error:
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
    """A usage error in one line that names the command's help; click would print three lines."""
    context = getattr(error, "ctx", None)
    if context is None:
        return error.format_message()
    said = error.format_message().rstrip(".")
    return f"{said}; `{context.command_path} --help` explains the flags"


def fail(message: str, code: int) -> None:
    """Print the reason in one line and exit."""
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
    """Print a warning as one line, without its place in the code."""
    click.echo(one_line(f"minisafe: warning: {message}"), err=True)
