"""The only way to write a file or a directory: whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from minisafe.errors import OutputError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# texts of errors without a number; the last is NumPy's, "10000 requested and 992 written"
NO_ROOM_WORDS = ("no space left", "quota", "file too large", "requested and")
SYSTEM_WORDS = (*NO_ROOM_WORDS, "os error", "i/o error", "ioerror")


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A new file in the directory of `path`, to be written; it replaces `path` if the body
    succeeds.

    Its name is unpredictable, so nobody can put a link there first. A link at `path` itself is
    replaced, not followed. The file has the mode of an ordinary new file. If anything fails, the
    old file is unchanged and no other file remains.

    Raises `OutputError` if the directory or the file cannot be written.
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
        os.chmod(temporary, mode)  # a library may have replaced the file
        flush(temporary)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({reason(error)})") from None
    except Exception as error:  # safetensors wraps system errors in its own class
        if not says(error, SYSTEM_WORDS):
            raise
        raise OutputError(f"{path}: cannot be written ({reason(error)})") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_directory(path: str | Path) -> Iterator[Path]:
    """A new directory beside `path`, to be filled; it gets that name if the body succeeds.

    If anything fails, also Ctrl-C, nothing remains of it. `path` must not exist, or be an empty
    directory.

    Raises `OutputError` if the directory or a file in it cannot be written.
    """
    path = Path(path)
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", dir=path.absolute().parent))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({reason(error)})") from None
    try:
        yield part
        mask = os.umask(0)
        os.umask(mask)
        part.chmod(0o777 & ~mask)  # mkdtemp makes it private
        part.replace(path)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError):
            raise OutputError(f"{path}: cannot be written ({reason(error)})") from None
        raise


def flush(path: Path) -> None:
    """Make the system write a file to disk: a full disk may only show then."""
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
    """Whether an error's text contains one of these words."""
    text = str(error).lower()
    return any(each in text for each in words)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all; raises `OutputError`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all; raises `OutputError`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)
