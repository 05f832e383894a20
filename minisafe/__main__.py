"""The program's entry: `python -m minisafe`, `python cli.py` and the installed `minisafe`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from minisafe.files import standard


def main() -> None:
    """Run the command line; handles closed standard streams, and Ctrl-C during the import."""
    standard.open_closed()
    with standard.forgiving():
        if sys.argv[1:2] == ["chat"]:
            standard.show_loading()
        with standard.leaving_at_once():
            run = imported()
        try:
            run()
        except ImportError as error:  # of a library that is imported where it is used
            standard.end_without_room(error)
            raise


def imported() -> Callable[[], None]:
    """The command line, with all libraries that it needs at once."""
    try:
        from minisafe.cli import main as run
    except (ImportError, OSError, MemoryError) as error:
        standard.end_without_room(error)
        raise
    return run


if __name__ == "__main__":
    main()
