"""Messages from earlier chats, in a small file that only its owner can read."""

from __future__ import annotations

import json
import os
from pathlib import Path

from minisafe.errors import MinisafeError
from minisafe.files import read_bytes

MOST = 1000  # messages
LONGEST = 10_000  # characters of a stored message
MAX_BYTES = 64 << 20  # minisafe never writes a larger file


def default_path() -> Path | None:
    """The history's path by the XDG rules; None without a home directory."""
    state = os.environ.get("XDG_STATE_HOME", "")
    try:
        root = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    except RuntimeError:  # no home directory
        return None
    return root / "minisafe" / "history.jsonl"


class History:
    """Messages, oldest first. If the file cannot be read or written, there is silently no history:
    a chat does not need one.

    path: the file; None keeps nothing across runs.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.messages = self._read()

    def _read(self) -> list[str]:
        """The last `MOST` messages; shortens a file with more than twice as many."""
        try:
            if self.path is None or not self.path.is_file():
                return []
            lines = read_bytes(self.path, MAX_BYTES).decode("utf-8", "replace").splitlines()
        except (MinisafeError, OSError):
            self.path = None
            return []
        found = [text for line in lines[-MOST:] if (text := message_of(line)) is not None]
        if len(lines) > 2 * MOST:
            self._write(found, os.O_TRUNC)
        return found

    def add(self, text: str) -> None:
        """Add a message, unless it repeats the last one."""
        if not text.strip() or len(text) > LONGEST or self.messages[-1:] == [text]:
            return
        self.messages.append(text)
        self._write([text], os.O_APPEND)

    def _write(self, messages: list[str], how: int) -> None:
        if self.path is None:
            return
        flags = os.O_WRONLY | os.O_CREAT | how | getattr(os, "O_NOFOLLOW", 0)
        data = "".join(json.dumps(text) + "\n" for text in messages).encode()
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self.path, flags, 0o600)
            try:
                os.write(handle, data)
            finally:
                os.close(handle)
        except OSError:
            self.path = None


def message_of(line: str) -> str | None:
    """The message on a line of the file; None if the line is invalid."""
    try:
        text = json.loads(line)
        text.encode()
    except (ValueError, AttributeError, RecursionError):
        return None
    return text if isinstance(text, str) and len(text) <= LONGEST else None
