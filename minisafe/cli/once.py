"""Rejects options that are given twice but allowed once."""

from __future__ import annotations

import click


def check_once(command: click.Command, args: list[str], parent: click.Context) -> None:
    """Raise `click.UsageError` for an option that is given twice but allowed once.

    Click silently takes the last value, so a second prompt set, method or vector would replace the
    first.
    """
    context = click.Context(command, info_name=command.name, parent=parent, resilient_parsing=True)
    _, _, given = command.make_parser(context).parse_args(args=list(args))
    counted = [each for each in given if isinstance(each, click.Option) and not each.multiple]
    for option in counted:
        if counted.count(option) > 1 and not option.is_eager:  # --help is eager
            names = " or ".join((*option.opts, *option.secondary_opts))
            raise click.UsageError(f"{names} is given more than once; expected it once", parent)
