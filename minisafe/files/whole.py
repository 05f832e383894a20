"""The one way to write a file: whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from minisafe.errors import OutputError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# of errors that lost their number; the last is NumPy's, "10000 requested and 992 written"
NO_ROOM_WORDS = ("no space left", "quota", "file too large", "requested and")
SYSTEM_WORDS = (*NO_ROOM_WORDS, "os error", "i/o error", "ioerror")


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A new file beside `path`, to be written; it takes `path`'s place if the body succeeds.

    Its name cannot be foreseen, so nobody can lay a link there. A link at `path` itself is
    replaced, not followed. The file has the mode that an ordinary new file has. Whatever fails,
    the file that was there is untouched and nothing is left beside it.

    Raises `OutputError` where the directory or the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        handle = os.open(temporary, flags, 0o666)
        mode = os.fstat(handle).st_mode & 0o777
        os.close(handle)
        yield temporary
        os.chmod(temporary, mode)  # a library may have put a file of its own there
        flush(temporary)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({reason(error)})") from None
    except Exception as error:  # safetensors has an error of its own for what the system says
        if not says(error, SYSTEM_WORDS):
            raise
        raise OutputError(f"{path}: cannot be written ({reason(error)})") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have the system write a file out: a full disk may only be known then."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def reason(error: Exception) -> str:
    """Why writing failed, and what to do about it."""
    number = getattr(error, "errno", None)
    if number in NO_ROOM or says(error, NO_ROOM_WORDS):
        return "the disk is full; make room or choose another place"
    said = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0]
    return said or type(error).__name__


def says(error: Exception, words: tuple[str, ...]) -> bool:
    """Whether an error's text holds one of these words."""
    text = str(error).lower()
    return any(each in text for each in words)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all; raises `OutputError`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all; raises `OutputError`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)
