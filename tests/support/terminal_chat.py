"""Run by cli/chat/test_terminal.py in a real terminal: the program, with answers that take a while.

`python terminal_chat.py SECONDS ARGS...`: so many seconds a token; the rest is for `minisafe`.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from minisafe.__main__ import main
from minisafe.tokenizer import TextStream

seconds = float(sys.argv.pop(1))
push = TextStream.push


def slow(self: TextStream, id_: int) -> Any:
    time.sleep(seconds)
    return push(self, id_)


TextStream.push = slow  # type: ignore[method-assign]
main()
